"""Suites, and what `andromeda-scale` typed on the cluster's login node makes of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster import Cluster
from processes import wait_until

from andromeda_scale.launch import jobs
from andromeda_scale.launch.run_dir import RunDir
from andromeda_scale.suite.resources import TOP

ACTS = Path(__file__).parents[1] / "dist"  # launch_worker.py: ranks that do as they are told
SUITE = """\
question: does it run on nodes?
model: andromeda-tiny
data: {source: random}
train: {seq_len: 32}
parity: "off"
collect: []
measure: {warmup: {min_steps: 2, max_steps: 2}, steps: 3, repeats: 2, profile_steps: 0}
device: cpu
limits: {timeout_s: 120, heartbeat_s: 60}
"""
LIMIT_S = 180.0


class Login:
    """A shell on the login node, in a directory with a suite `x.yaml`."""

    def __init__(self, cluster: Cluster, folder: Path, more: str) -> None:
        self.cluster, self.folder, self.run = cluster, folder, folder / "run"
        (folder / "x.yaml").write_text(SUITE + more, encoding="utf-8")
        given = os.environ.get("PYTHONPATH")  # an empty part would be the current directory
        path = os.pathsep.join([str(ACTS), given] if given else [str(ACTS)])
        self.environment = {"PYTHONPATH": path}

    def type(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """andromeda-scale with these arguments."""
        program = [sys.executable, "-m", "andromeda_scale.cli", *arguments]
        return self.cluster.run(
            *program, cwd=self.folder, environment=self.environment, timeout_s=LIMIT_S
        )

    def submit(self, *options: str) -> str:
        """Submit x.yaml into `run`; the job's id."""
        done = self.type("submit", "x.yaml", "--run-dir", "run", *options)
        assert done.returncode == 0, done.stderr
        return jobs.of_run(self.run)[-1]

    def job(self, job_id: str) -> jobs.Job:
        """A job as the product reads it, asked on the login node."""
        program = "import sys; from andromeda_scale.launch import jobs; "
        program += "job = jobs.look(sys.argv[1]); print(*vars(job).values(), sep='|')"
        shown = self.cluster.run(sys.executable, "-c", program, job_id)
        *words, code = shown.stdout.strip().split("|")
        return jobs.Job(*words, exit_code=int(code))

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait, and show the job's log when it was in vain."""
        try:
            wait_until(condition, what, LIMIT_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None

    def wait_for_end(self, job_id: str) -> jobs.Job:
        self.wait_for(lambda: self.job(job_id).over, f"the end of job {job_id}")
        return self.job(job_id)

    def wait_for_ranks(self, world: str, repeat: int, rank: int = 0) -> None:
        """Wait until a rank of a repeat has started."""
        place = f"running/*_w{world}_*-{repeat}-*/rank-{rank}.jsonl"
        self.wait_for(lambda: bool(list(self.run.glob(place))), place)

    def log(self) -> str:
        return "".join(file.read_text() for file in sorted(self.run.glob("slurm/*.out")))

    def opened(self) -> RunDir:
        return RunDir.open(self.run)

    def ended(self) -> dict[tuple[str, int], dict[str, Any]]:
        """(world, repeat) -> status.json of what has ended."""
        run = self.opened()
        found = {
            (str(run.plan.cases[item.case_id].world), item.repeat): run.status(item)
            for item in run.plan.repeats
        }
        return {key: status for key, status in found.items() if status is not None}

    def words(self) -> dict[tuple[str, int], str]:
        return {key: status["status"] for key, status in self.ended().items()}

    def hosts(self, repeat: int) -> list[str]:
        """The nodes of a repeat, as each wrote into its own file."""
        nodes = [line for line in self.lines("node") if line["repeat"] == repeat]
        return [line["values"]["environment"]["hostname"] for line in nodes]

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """Lines of one kind of all records of the cases."""
        files = sorted(self.run.glob("cases/*/*/node-*.jsonl"))
        found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        return [line for line in found if line["kind"] == kind]


def acting_template(folder: Path) -> str:
    """The line of a suite for a template whose agents' ranks do as ACT_<rank> says."""
    shipped = (TOP / "slurm" / "allocation.sbatch").read_text(encoding="utf-8")
    acting = shipped.replace("@agent@", "@agent@ --worker launch_worker:main --node-silence-s 3")
    (folder / "acts.sbatch").write_text(acting, encoding="utf-8")
    return "template: acts.sbatch"
