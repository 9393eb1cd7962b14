"""What agents do when the first node of a SLURM job is lost: with it went the job's script."""

from __future__ import annotations

import os
import sys
import time

from andromeda_scale.launch import jobs
from andromeda_scale.launch.process import StopRequest

PATIENCE_S = 600.0  # SLURM gives a silent node up after SlurmdTimeout, 300 s by default
MAX_RESTARTS = 5  # a job that loses its first node again and again is ended by its time limit
_LOOK_S = 2.0


def requeue(first_host: str, stop: StopRequest) -> bool:
    """Have SLURM start this job anew once it has given `first_host` up; whether it will.

    Under --no-kill SLURM takes a lost node out of the job and leaves the others waiting, also when
    it was the one that ran the script. Agent 0 says goodbye before it fails for a reason of its
    own, so an agent comes here only when agent 0 vanished.
    """
    job_id = os.environ.get("SLURM_JOB_ID")
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    if job_id is None or not restarts.isdecimal() or int(restarts) >= MAX_RESTARTS:
        return False
    deadline = time.monotonic() + PATIENCE_S
    while not stop.requested and time.monotonic() < deadline:
        if jobs.node_is_down(first_host):
            refused = jobs.requeue(job_id)
            said = f"not requeued: {refused}" if refused else "requeued"
            print(f"{first_host} is lost; job {job_id} {said}", file=sys.stderr, flush=True)
            return refused is None
        time.sleep(_LOOK_S)
    return False
