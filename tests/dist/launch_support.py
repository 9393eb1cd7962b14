"""Plans whose ranks do what they are told (`launch_worker.py`), and what they leave behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from andromeda_scale.contracts.planned import Plan, PlannedRepeat
from andromeda_scale.launch.run_dir import RunDir
from andromeda_scale.suite.config import Case, Limits, StrategySpec
from andromeda_scale.suite.training import Train
from andromeda_scale.suite.world import World

HERE = Path(__file__).parent
WORKER = "launch_worker:main"
PATIENCE_S = 60.0  # of a test that waits for something that must come
LIMITS = Limits(timeout_s=30, heartbeat_s=1.5)


def make_case(
    name: str,
    world: World | int = 2,
    acts: Mapping[int, str] | None = None,
    *,
    limits: Limits = LIMITS,
    env: Mapping[str, str] | None = None,
    compiled: bool = False,
) -> Case:
    """A case whose ranks act as in `acts`."""
    return Case(
        model_name=name,
        model={str(rank): act for rank, act in (acts or {}).items()},
        strategy=StrategySpec(name="ddp"),
        world=World(ranks_per_node=world) if isinstance(world, int) else world,
        collect=(),
        limits=limits,
        env=dict(env or {}),
        train=Train(compile=compiled),
    )


def make_run(path: Path, cases: list[Case], repeats: int = 1) -> RunDir:
    """The run directory of a plan that launches every case `repeats` times, interleaved."""
    plan = Plan(
        suite_name="acts",
        question="what does the launcher make of it?",
        cases={case.case_id: case for case in cases},
        repeats=tuple(
            PlannedRepeat(case_id=case.case_id, repeat=repeat)
            for repeat in range(repeats)
            for case in cases
        ),
    )
    return RunDir.create(path, plan, "question: acts\n", {"code": "test"})


@contextmanager
def tagged() -> Iterator[tuple[dict[str, str], Callable[[], list[psutil.Process]]]]:
    """(environment, survivors): `survivors()` are the live processes started with it.

    Found by a variable that every descendant inherits, whoever its parent is by now. Those still
    there at the end are killed.
    """
    tag = uuid.uuid4().hex
    path = f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "PYTHONPATH": path, "LAUNCH_TEST_TAG": tag}

    def survivors() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get("LAUNCH_TEST_TAG") == tag
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    try:
        yield environment, survivors
    finally:
        for process in survivors():
            process.kill()


def start_driver(
    run_dir: RunDir, environment: Mapping[str, str], *options: str
) -> subprocess.Popen[bytes]:
    """A driver in a process of its own."""
    program = [sys.executable, str(HERE / "launch_support.py"), str(run_dir.path), *options]
    return subprocess.Popen(program, env=dict(environment), stderr=subprocess.DEVNULL)


def wait_until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> float:
    """Seconds until it held. Fails after `patience_s`."""
    start_s = time.monotonic()
    while not condition():
        if time.monotonic() - start_s > patience_s:
            raise AssertionError(f"in vain waited for: {what}")
        time.sleep(0.01)
    return time.monotonic() - start_s


def ended(run_dir: RunDir) -> dict[tuple[str, int], str]:
    """(case id, repeat) -> status of what has ended."""
    return {(i.case_id, i.repeat): s for i, s in run_dir.statuses() if s != "pending"}


if __name__ == "__main__":
    from andromeda_scale.launch import driver

    opened = RunDir.open(sys.argv[1])
    worker = os.environ.get("LAUNCH_TEST_WORKER", WORKER)
    outcome = driver.run(opened, quiet=True, worker=worker, only_failed="--only-failed" in sys.argv)
    if outcome.error:
        print(outcome.error, file=sys.stdout)
    sys.exit(outcome.exit_code)
