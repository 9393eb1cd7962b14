"""What the other agents of a SLURM job do when agent 0 is gone: have the job started anew."""

from __future__ import annotations

import os
import socket
import sys
import time

from andromeda_scale.errors import UserError
from andromeda_scale.launch import jobs
from andromeda_scale.launch.control import Control
from andromeda_scale.launch.process import StopRequest

MAX_RESTARTS = 5  # a job that loses its agent 0 again and again is ended
PATIENCE_S = 600.0  # SLURM gives a silent node up after SlurmdTimeout, 300 s by default
_TOLD_S = 3.0  # within which every agent of a job that is ended from outside is told
_CONNECT_S = 5.0
_LOOK_S = 2.0


def requeue(control: Control, stop: StopRequest) -> None:
    """Have SLURM requeue this job if agent 0 is lost to all its agents, or else cancel it.

    Agent 0 says goodbye before it fails for a reason of its own, so here it was killed, or its
    node was. That does not end the job: under --no-kill SLURM takes a lost node out of it and
    leaves the others waiting, also when that node ran the script.
    """
    job_id = os.environ.get("SLURM_JOB_ID")
    if job_id is None or not _lost_to_all(control, stop) or not _running(job_id):
        return
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    if restarts.isdecimal() and int(restarts) < MAX_RESTARTS:
        _say(f"job {job_id} is to be requeued, and to resume")  # after it nothing may be heard
        refused = jobs.requeue(job_id)
    else:
        refused = f"it was, {restarts} times"
    if refused is not None and _running(job_id):  # no other agent was first
        _say(f"job {job_id} cannot be requeued ({refused}), so it is cancelled")
        try:
            jobs.cancel([job_id])
        except (UserError, jobs.NoAnswerError) as error:
            _say(str(error))


def _lost_to_all(control: Control, stop: StopRequest) -> bool:
    """Whether agent 0 is dead or stuck, and neither alive beyond a broken connection nor ended
    with the job."""
    if _waited(stop, _TOLD_S):
        return False
    try:
        socket.create_connection((control.host, control.port), _CONNECT_S).close()
    except ConnectionRefusedError:
        return True  # its host says so
    except OSError:
        return _given_up(control.host, stop)
    return control.unanswered


def _given_up(host: str, stop: StopRequest) -> bool:
    """Whether SLURM gives up a node that this one cannot reach: the others may reach it."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if jobs.node_is_down(host):
            return True
        if _waited(stop, _LOOK_S):
            break
    return False


def _waited(stop: StopRequest, seconds: float) -> bool:
    """Wait; whether this agent was told to stop meanwhile."""
    deadline = time.monotonic() + seconds
    while not stop.requested and time.monotonic() < deadline:
        time.sleep(0.05)
    return stop.requested


def _running(job_id: str) -> bool:
    try:
        job = jobs.look(job_id)
    except jobs.NoAnswerError as error:
        _say(str(error))
        return False
    return job is not None and job.word == "RUNNING"


def _say(what: str) -> None:
    print(f"agent 0 is lost: {what}", file=sys.stderr, flush=True)
