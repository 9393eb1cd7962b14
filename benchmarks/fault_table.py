"""What is in the results when a cluster, a disk or a clock breaks: each fault on a real SLURM.

    python benchmarks/fault_table.py [--only SCENE,SCENE]      (root, Debian; some 15 minutes)

The nodes are those of tests/cluster. Prints a row a fault as Markdown: what was done, and what the
run directory, the job's log or the command then said. The slow disk needs bindfs. Exit status 1 if
a row was not found. Kills of the driver: benchmarks/kills.py.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "cluster"))
from cluster import Cluster  # noqa: E402
from slurm_packages import install  # noqa: E402
from submitted import Login, acting_template  # noqa: E402
from test_node_faults import Held, preempt, requeue  # noqa: E402

from andromeda_scale.launch.disk import write_atomic  # noqa: E402

Row = tuple[str, str]  # what was done, what was found
SMALL = "small"  # a disk of DISK, below the folder of the scenes
SLOW = "slow"  # a disk of RATE bytes a second
DISK, RATE = "2m", 5_000
ONCE = ("--set", "measure.repeats=1", "--set", "limits.heartbeat_s=8")
TRAINING = """\
world: 2x1
threads_per_rank: 1
env: {GLOO_SOCKET_IFNAME: eth0}
"""


class Scene:
    """A place for one fault: the cluster, a folder of its own, and the two odd disks."""

    def __init__(self, cluster: Cluster, folder: Path, disks: Path) -> None:
        self.cluster, self.folder, self.disks = cluster, folder, disks

    def held(self, nodes: int = 2, folder: Path | None = None) -> Held:
        return Held(self.cluster, folder or self.folder, nodes)

    def trained(self, more: str, folder: Path | None = None) -> Login:
        """A login after a submitted suite of real ranks has ended."""
        text = TRAINING + more
        login = Login(self.cluster, folder or self.folder, text)
        login.wait_for_end(login.submit(*ONCE))
        return login


def ends(login: Login) -> str:
    """The statuses of a run's repeats, failures with rank, host and cause."""
    found = []
    for _, status in sorted(login.ended().items()):
        who = f"rank {status['rank']} on " if status.get("rank") is not None else ""
        why = f" ({who}{status['host'] or 'no host'}: {status['cause']})" if status["cause"] else ""
        found.append(status["status"] + why)
    return ", ".join(found)


def log_says(login: Login, *words: str) -> str:
    """The first line of the job's log with each of the words."""
    lines = login.log().splitlines()
    return "; ".join(next(line for line in lines if word in line).strip() for word in words)


# Ranks


def training_ranks(scene: Scene) -> Iterator[Row]:
    strikes = {
        "a rank segfaults": {"kind": "crash", "signal": "SIGSEGV"},
        "a rank is SIGKILLed": {"kind": "crash", "signal": "SIGKILL"},
        "a rank is out of memory, others wait in a collective": {"kind": "oom"},
        "a rank hangs in compute": {"kind": "hang"},
    }
    axis = [[{**strike, "rank": 1, "step": 3}] for strike in strikes.values()]
    run = scene.trained(f"axes: {{faults: {json.dumps(axis)}}}\n").opened()
    for item in run.plan.repeats:
        (fault,) = run.plan.cases[item.case_id].faults
        what = next(w for w, strike in strikes.items() if strike.items() <= vars(fault).items())
        status = run.status(item) or {}
        yield what, f"{outcome(status)}; {status['seconds']:.0f} s in all"


def acting_ranks(scene: Scene) -> Iterator[Row]:
    acts = {
        "a rank raises": "raise",
        "a rank never joins": "silent",
        "a rank leaves before its collective": "leave",
    }
    template = acting_template(scene.folder)
    axis = f"env: {{GLOO_SOCKET_IFNAME: eth0, ACT_1: [{', '.join(acts.values())}]}}"
    text = f"world: 2x1\n{axis}\nslurm: {{{template}}}\n"
    login = Login(scene.cluster, scene.folder, text)
    login.wait_for_end(login.submit(*ONCE))
    run = login.opened()
    for item in run.plan.repeats:
        act = run.plan.cases[item.case_id].env["ACT_1"]
        what = next(w for w, value in acts.items() if value == act)
        yield what, outcome(run.status(item) or {})


def outcome(status: dict[str, Any]) -> str:
    who = f"`{status['status']}`, rank {status['rank']} on {status['host']}"
    return f"{who}: {status['cause']}"


# Nodes


def power(scene: Scene) -> Iterator[Row]:
    held = scene.held(nodes=3)
    scene.cluster.crash_node("n2")
    held.login.wait_for(lambda: ("2x1", 1) in held.login.ended(), "the end of the repeat")
    held.end()
    yield "a node loses power", f"{ends(held.login)}; then on {' and '.join(held.login.hosts(2))}"


def set_down(scene: Scene) -> Iterator[Row]:
    held = scene.held(nodes=3)
    scene.cluster.tell("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    held.login.wait_for(lambda: ("2x1", 1) in held.login.ended(), "the end of the repeat")
    held.end()
    yield "a node is set down", f"{ends(held.login)}; then on {' and '.join(held.login.hosts(2))}"


def first_node(scene: Scene) -> Iterator[Row]:
    yield _restarted(scene, "the first node loses power", lambda: scene.cluster.crash_node("n1"))


def agent_killed(scene: Scene) -> Iterator[Row]:
    kill = lambda: scene.cluster.agent("n1").kill()  # noqa: E731
    yield _restarted(scene, "agent 0 is SIGKILLed, its node lives", kill)


def agent_stopped(scene: Scene) -> Iterator[Row]:
    stop = lambda: scene.cluster.agent("n1").suspend()  # noqa: E731
    yield _restarted(scene, "agent 0 is stopped (SIGSTOP)", stop)


def _restarted(scene: Scene, what: str, fault: Callable[[], None]) -> Row:
    held = scene.held()
    fault()
    held.login.wait_for(lambda: held.restarts() == 1, "the restart")
    held.end()
    return what, f"restarts: {held.restarts()}; {ends(held.login)} on {held.login.hosts(2)}"


# The job


def time_limit(scene: Scene) -> Iterator[Row]:
    held = scene.held()
    scene.cluster.tell("scontrol", "update", f"jobid={held.job_id}", "TimeLimit=1")
    job = held.login.wait_for_end(held.job_id)
    before = ends(held.login)
    held.go()
    held.login.type("resume", "run", "--wait")
    yield "the job's time limit", f"{before}; exit {job.exit_code}; resumed: {ends(held.login)}"


def cancelled(scene: Scene) -> Iterator[Row]:
    held = scene.held()
    refused = held.login.type("resume", "run")
    held.login.type("cancel", "run")
    job = held.login.wait_for_end(held.job_id)
    held.login.wait_for(lambda: ("2x1", 1) in held.login.ended(), "the closed repeat")
    before = ends(held.login)
    held.go()
    held.login.type("resume", "run", "--wait")
    yield "cancelled", f"{job.word}, {before}; resumed: {ends(held.login)}"
    yield "a second job on a run directory", f"exit {refused.returncode}: {refused.stderr.strip()}"


def requeued(scene: Scene) -> Iterator[Row]:
    for what, fault in {"requeued": requeue, "preempted": preempt}.items():
        folder = scene.folder / what
        folder.mkdir()
        held = scene.held(folder=folder)
        fault(held)
        held.login.wait_for(lambda: held.restarts() == 1, "the restart")  # noqa: B023
        held.end()
        yield what, f"restarts: {held.restarts()}; {ends(held.login)}"


def second_driver(scene: Scene) -> Iterator[Row]:
    held = scene.held()
    # as another job would, on other nodes of the cluster
    agent = [sys.executable, "-m", "andromeda_scale.agent", "run/suite.yaml", "--run-dir", "run"]
    two = ["srun", "--nodes=2", "--nodelist=n3,n4", "--ntasks-per-node=1", "--mpi=none"]
    done = scene.cluster.run(
        *two, *agent, cwd=scene.folder, environment=held.login.environment, timeout_s=180
    )
    held.end()
    said = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    yield "a second driver on a run directory", f"{said}; the first: {ends(held.login)}"


# Disks


def full_disk(scene: Scene) -> Iterator[Row]:
    folder = scene.disks / SMALL
    held = scene.held(folder=folder)
    filler = folder / "filler"
    subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=4k"], capture_output=True)
    held.go()
    job = held.login.wait_for_end(held.job_id)
    before = ends(held.login)
    readable = held.login.type("report", "run").returncode
    filler.unlink()
    held.login.type("resume", "run", "--wait")
    why = log_says(held.login, "disk full")
    said = f"job {job.word}, exit {job.exit_code}, {why}; {before}; report: exit {readable}"
    yield "disk full", f"{said}; resumed with space: {ends(held.login)}"


def read_only(scene: Scene) -> Iterator[Row]:
    held = scene.held()
    scene.cluster.protect("n2", held.login.run)
    held.end()
    yield "run directory unwritable on one node", ends(held.login)


def vanished(scene: Scene) -> Iterator[Row]:
    held = scene.held()
    scene.cluster.hide("n2", held.login.run)
    held.end()
    said = log_says(held.login, "files go through agent 0").partition(": ")[2]
    yield "run directory vanished on one node", f"{ends(held.login)}; {said}"


def slow_disk(scene: Scene) -> Iterator[Row]:
    if not (scene.disks / SLOW).is_mount():
        raise OSError("no slow disk: bindfs is missing")
    times = []
    for folder in (scene.folder, scene.disks / SLOW):
        login = scene.trained("", folder)
        times.append(pd.read_parquet(login.run / "results.parquet")["step_time_s"].iloc[0])
    (status,) = login.ended().values()
    said = f"{ends(login)}; {status['seconds']:.0f} s, of them {status['outside_s']:.0f} s outside"
    steps = f"step {1e3 * times[1]:.0f} ms, on the fast disk {1e3 * times[0]:.0f} ms"
    yield f"shared disk of {RATE // 1000} kB/s", f"{said} the ranks' phases; {steps}"


CLOCK = """\
import time
real = time.time
time.time = lambda: real() + float(open({offset!r}).read())
"""


def clock_steps(scene: Scene) -> Iterator[Row]:
    """The wall clock of one node's Python is ahead, and goes an hour further during a launch."""
    ahead = scene.folder / "ahead"  # not where the job runs: both nodes might find it there
    ahead.mkdir()
    offset = ahead / "offset"
    write_atomic(offset, "1000")
    (ahead / "sitecustomize.py").write_text(CLOCK.format(offset=str(offset)))
    shipped = (REPOSITORY / "slurm" / "allocation.sbatch").read_text()
    there = f'export PYTHONPATH="{ahead}:$PYTHONPATH"'
    on_second = f"""bash -c '[ "$SLURM_NODEID" != 1 ] || {there}; exec "$@"' - @agent@"""
    (scene.folder / "clock.sbatch").write_text(shipped.replace("@agent@", on_second))
    text = TRAINING + "slurm: {template: clock.sbatch}\nfaults: [{kind: data, delay_s: 0.3}]\n"
    login = Login(scene.cluster, scene.folder, text)
    once = ("--set", "measure.repeats=1", "--set", "measure.steps=20")
    job_id = login.submit(*once)
    record = "running/*/rank-1.jsonl"
    login.wait_for(lambda: any(f.read_text() for f in login.run.glob(record)), record)
    write_atomic(offset, "4600")
    login.wait_for_end(job_id)
    starts = {line["rank"]: line["unix_time_s"] for line in login.lines("start")}
    ranks = pd.read_parquet(login.run / "ranks.parquet")
    steps = ", ".join(f"{1e3 * s:.0f}" for s in ranks["step_time_s"])
    first_s = starts[1] - starts[0]
    assert first_s > 900, f"the clock was not planted on the second node alone: {starts}"
    (status,) = login.ended().values()
    last_s = status["ranks"]["1"]["ended_unix_s"] - status["ranks"]["0"]["ended_unix_s"]
    apart = f"{first_s:.0f} s apart at the start, {last_s:.0f} s at the end"
    said = f"{ends(login)} after {status['seconds']:.0f} s; clocks {apart}"
    yield "a node's clock is ahead, and steps by an hour", f"{said}; step ms by rank: {steps}"


# Records


def damaged(scene: Scene) -> Iterator[Row]:
    login = scene.trained("")
    (file,) = login.run.glob("cases/*/*/node-1.jsonl")
    good = file.read_text()
    lines = good.splitlines()
    other = [json.dumps({**json.loads(line), "v": 99}) for line in lines]
    wrong = [json.dumps({**json.loads(line), "rank": 7}) for line in lines]
    damages = {
        "truncated": good[: len(good) * 2 // 3],
        "garbled": good.replace('"kind": "phase"', '"kind": ph\x00', 1),
        "from another version": "\n".join(other) + "\n",
        "duplicated": good + good,
        "from a wrong rank": "\n".join(wrong) + "\n",
    }
    for what, text in damages.items():
        file.write_text(text)
        done = login.type("report", "run")
        said = next((x for x in done.stdout.splitlines() if "node-1" in x or "[1]" in x[:3]), "")
        yield f"a record {what}", f"exit {done.returncode}: {said.strip()}"


SCENES = (
    training_ranks, acting_ranks, power, set_down, first_node, agent_killed, agent_stopped,
    time_limit, cancelled, requeued, second_driver, full_disk, read_only, vanished, slow_disk,
    clock_steps, damaged,
)  # fmt: skip


def mounted(disks: Path) -> list[Path]:
    """Mount the small and the slow disk, where that can be; before any node is started."""
    small, slow, below = disks / SMALL, disks / SLOW, disks / "below"
    for folder in (small, slow, below):
        folder.mkdir(parents=True)
    done = [["mount", "-t", "tmpfs", "-o", f"size={DISK}", "small", str(small)]]
    rates = [f"--write-rate={RATE}", f"--read-rate={RATE}"]
    if shutil.which("bindfs"):
        done.append(["bindfs", *rates, str(below), str(slow)])
    return [Path(command[-1]) for command in done if subprocess.run(command).returncode == 0]


def show(cluster: Cluster, folder: Path, only: str) -> bool:
    """Play the scenes, print their rows; whether all were found."""
    print("| fault | found |\n|---|---|", flush=True)
    fine = True
    for scene in SCENES:
        if only and scene.__name__ not in only.split(","):
            continue
        place = folder / scene.__name__
        place.mkdir()
        cluster.wait_idle()
        try:
            for what, found in scene(Scene(cluster, place, folder / "disks")):
                print(f"| {what} | {found.replace('|', '/')} |", flush=True)
        except (AssertionError, LookupError, OSError, StopIteration, RuntimeError) as error:
            fine = False
            print(f"| {scene.__name__} | NOT FOUND: {type(error).__name__}: {error} |", flush=True)
        cluster.mend()
    return fine


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="scenes, by their functions' names")
    options = parser.parse_args()
    install()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        disks = mounted(folder / "disks")
        try:
            cluster = Cluster(folder / "cluster")
            try:
                fine = show(cluster, folder, options.only)
            finally:
                cluster.close()
        finally:
            for disk in disks:
                subprocess.run(["umount", str(disk)], check=False)
    sys.exit(not fine)


if __name__ == "__main__":
    main()
