"""What a cluster does to a sweep, and what is in the results; a real SLURM.

What ranks do to each other needs no cluster: tests/dist/test_launch.py and test_kill.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from cluster import Cluster
from processes import wait_until
from submitted import Login, acting_template

from andromeda_scale.launch.jobs import of_run

OK = ["ok", "ok", "ok"]


class Held:
    """A job on two of `nodes` nodes whose second of three repeats waits for `go`."""

    def __init__(self, cluster: Cluster, folder: Path, nodes: int) -> None:
        self._go = folder / "go"
        template = acting_template(folder)
        variables = f"GLOO_SOCKET_IFNAME: eth0, ACT_1: held, GO: '{self._go}'"
        text = f"world: 2x1\nenv: {{{variables}}}\nslurm: {{{template}, nodes: {nodes}}}\n"
        self.cluster, self.login = cluster, Login(cluster, folder, text)
        self.job_id = self.login.submit("--set", "measure.repeats=3")
        self.login.wait_for_ranks("2x1", 1, rank=1)

    def go(self) -> None:
        self._go.touch()

    def end(self) -> list[str]:
        """Let it go on to its end; the statuses of its repeats."""
        self.go()
        self.login.wait_for_end(self.job_id)
        return [word for _, word in sorted(self.login.words().items())]

    def status(self, repeat: int) -> dict[str, object]:
        return self.login.ended()["2x1", repeat]

    def restarts(self) -> int:
        words = self.cluster.ask("scontrol", "show", "job", self.job_id).split()
        return int(next(w for w in words if w.startswith("Restarts=")).partition("=")[2])


class Struck(NamedTuple):
    held: Held
    words: list[str]  # the statuses of its repeats
    others_s: float  # from the death of agent 0 to that of the last other agent


@pytest.fixture(scope="module")
def struck(running: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Struck:
    """A job whose agent 0 is killed in the second of three repeats, and in the same repeat, after
    the restart, one of its nodes."""
    held = Held(running, tmp_path_factory.mktemp("struck"), nodes=3)
    others = [running.agent(node) for node in ("n2", "n3")]
    (attempt,) = held.login.run.glob("running/*")
    running.agent("n1").kill()
    start_s = time.monotonic()
    wait_until(lambda: not any(map(alive, others)), "the end of the other agents")
    seconds = time.monotonic() - start_s
    held.login.wait_for(lambda: not attempt.exists(), "the restart")
    held.login.wait_for_ranks("2x1", 1, rank=1)
    running.crash_node("n2")
    held.login.wait_for(lambda: ("2x1", 1) in held.login.ended(), "the end of the repeat")
    words = held.end()
    running.mend()
    return Struck(held, words, seconds)


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.thorough
def test_a_killed_agent_0_ends_the_others_at_once_and_has_the_job_requeued(struck: Struck) -> None:
    assert struck.others_s < 30  # the communication timeouts are minutes
    log = struck.held.login.log()
    assert "agent 1 on n2: agent 0 on n1 closed the connection; this agent ends" in log
    assert f"agent 0 is lost: job {struck.held.job_id} is to be requeued, and to resume" in log
    assert struck.held.restarts() == 1
    assert not list(struck.held.login.run.glob("running/*"))


@pytest.mark.thorough
def test_a_node_that_loses_power_fails_its_repeat_and_the_next_runs_on_the_spare(
    struck: Struck,
) -> None:
    assert struck.words == ["ok", "node_failed", "ok"], struck.held.login.log()
    assert struck.held.status(1)["host"] == "n2"
    assert struck.held.status(1)["cause"] == "agent 1 on n2 fell silent"
    assert struck.held.login.hosts(2) == ["n1", "n3"]


@pytest.mark.thorough
def test_an_agent_0_that_is_stopped_is_given_up_and_the_job_requeued(
    cluster: Cluster, tmp_path: Path
) -> None:
    held = Held(cluster, tmp_path, nodes=2)
    cluster.agent("n1").suspend()
    held.login.wait_for(lambda: held.restarts() == 1, "the restart")
    held.end()
    assert set(held.login.words().values()) <= {"ok", "node_failed"}
    assert len(held.login.words()) == 3
    assert "agent 0 on n1 answers no more" in held.login.log()


@pytest.mark.thorough
def test_a_node_that_is_set_down_fails_its_repeat_and_the_next_runs_on_the_spare(
    cluster: Cluster, tmp_path: Path
) -> None:
    held = Held(cluster, tmp_path, nodes=3)
    cluster.tell("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    held.login.wait_for(lambda: ("2x1", 1) in held.login.ended(), "the end of the repeat")
    assert held.end() == ["ok", "node_failed", "ok"], held.login.log()
    assert held.status(1)["host"] == "n2"
    assert held.login.hosts(2) == ["n1", "n3"]


@pytest.mark.thorough
def test_the_loss_of_the_first_node_requeues_the_job_which_resumes(
    cluster: Cluster, tmp_path: Path
) -> None:
    held = Held(cluster, tmp_path, nodes=2)
    kept = tmp_path / "run" / "cases"
    before = {file: file.stat().st_mtime_ns for file in kept.glob("*/0/status.json")}
    cluster.crash_node("n1")
    held.go()
    assert held.end() == OK, held.login.log()
    assert held.restarts() == 1
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert "n1" not in held.login.hosts(1) + held.login.hosts(2)


@pytest.mark.thorough
def test_a_cancelled_run_is_closed_as_interrupted_and_a_resume_finishes_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    held = Held(cluster, tmp_path, nodes=2)
    login = held.login
    assert login.type("resume", "run").returncode == 2  # its job is alive
    assert login.type("cancel", "run").stdout == f"cancelled job {held.job_id}\n"
    assert held.login.wait_for_end(held.job_id).word == "CANCELLED"
    login.wait_for(lambda: ("2x1", 1) in login.ended(), "the closed repeat")
    assert login.words() == {("2x1", 0): "ok", ("2x1", 1): "interrupted"}
    assert held.login.type("status", "run").stdout.startswith(f"job {held.job_id}: CANCELLED")
    held.go()
    assert login.type("resume", "run", "--wait").returncode == 1  # these ranks measure nothing
    assert list(login.words().values()) == OK
    assert len(of_run(login.run)) == 2


@pytest.mark.thorough
def test_a_run_directory_that_vanishes_on_one_node_costs_one_repeat(
    cluster: Cluster, tmp_path: Path
) -> None:
    held = Held(cluster, tmp_path, nodes=2)
    cluster.hide("n2", held.login.run)
    assert held.end() == ["ok", "node_failed", "ok"], held.login.log()
    assert "n2 cannot write the run directory" in str(held.status(1)["cause"])
    assert "cannot be written from this node; files go through agent 0" in held.login.log()
    # What the hidden node's ranks wrote of the last repeat came through the store.
    last = [line for line in held.login.lines("start") if line["repeat"] == 2]
    assert [line["rank"] for line in last] == [0, 1]


def requeue(held: Held) -> None:
    held.cluster.tell("scontrol", "requeue", held.job_id)


def preempt(held: Held) -> None:
    more = ["--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null"]
    held.cluster.tell("sbatch", *more, "--wrap", "sleep 1")


@pytest.mark.thorough
@pytest.mark.parametrize("fault", [requeue, preempt])
def test_a_job_that_is_requeued_or_preempted_goes_on_where_it_was(
    fault: Callable[[Held], None], cluster: Cluster, tmp_path: Path
) -> None:
    held = Held(cluster, tmp_path, nodes=2)
    fault(held)
    held.login.wait_for(lambda: held.login.words().get(("2x1", 1)) == "interrupted", "its end")
    assert held.end() == OK, held.login.log()


@pytest.mark.thorough
def test_a_job_that_meets_its_time_limit_is_closed_and_its_table_printed(
    cluster: Cluster, tmp_path: Path
) -> None:
    held = Held(cluster, tmp_path, nodes=2)
    cluster.tell("scontrol", "update", f"jobid={held.job_id}", "TimeLimit=1")
    job = held.login.wait_for_end(held.job_id)  # TERM comes before the limit
    assert job.exit_code == 130
    assert held.login.words() == {("2x1", 0): "ok", ("2x1", 1): "interrupted"}
    assert "does it run on nodes?" in held.login.log()
    held.go()
    held.login.type("resume", "run", "--wait")
    assert list(held.login.words().values()) == OK
