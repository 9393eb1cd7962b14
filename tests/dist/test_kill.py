"""Kill the driver, and look at what survives and what a resume makes of it; real processes."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import psutil
import pytest
from launch_support import ended, make_case, make_run, start_driver, tagged, wait_until

from andromeda_scale.errors import UserError
from andromeda_scale.launch.run_dir import RunDir
from andromeda_scale.suite.config import Limits

REPEATS = 4
KILLS = 3  # a sweep is killed this often, each time at another moment


def planned(run_dir: RunDir) -> set[tuple[str, int]]:
    return {(item.case_id, item.repeat) for item in run_dir.plan.repeats}


def assert_finished_exactly(run_dir: RunDir) -> None:
    """Every planned repeat lies once on the disk, whole, and nothing else."""
    found = {(p.parent.parent.name, int(p.parent.name)) for p in run_dir.path.glob("cases/*/*/*")}
    assert found == planned(run_dir)
    assert not list(run_dir.path.glob("running/*"))
    for item in run_dir.plan.repeats:
        text = (run_dir.case_dir(item) / "node-0.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        ranks = run_dir.plan.cases[item.case_id].world.size
        assert sorted(x["rank"] for x in lines if x["kind"] == "end") == list(range(ranks))


def test_a_killed_driver_leaves_nothing_and_the_resume_finishes_exactly_the_plan(
    tmp_path: Path,
) -> None:
    moments = random.Random(20)
    run_dir = make_run(tmp_path / "run", [make_case("one", 1), make_case("two", 2)], REPEATS)
    with tagged() as (environment, survivors):
        for count in range(KILLS):
            done = len(ended(run_dir))
            driver = start_driver(run_dir, environment)
            if count:  # the first is killed while it still imports
                wait_until(lambda done=done: len(ended(run_dir)) > done, "one more repeat")
            time.sleep(moments.uniform(0, 0.15))
            driver.kill()
            driver.wait()
            wait_until(lambda: not survivors(), "the death of everything")
        before = {
            item: (run_dir.case_dir(item) / "status.json").stat().st_mtime_ns
            for item, word in run_dir.statuses()
            if word == "ok"
        }
        assert start_driver(run_dir, environment).wait(60) == 0
        assert set(ended(run_dir).values()) == {"ok"}
        assert_finished_exactly(run_dir)
        for item, written in before.items():  # what was finished was kept
            assert (run_dir.case_dir(item) / "status.json").stat().st_mtime_ns == written
        assert survivors() == []


@pytest.fixture
def waiting(tmp_path: Path) -> RunDir:
    """A plan whose second case waits forever, in rank 1 before rank 0."""
    forever = Limits(timeout_s=600, heartbeat_s=600)
    cases = [make_case("first", 1), make_case("waits", 2, {1: "wait"}, limits=forever)]
    return make_run(tmp_path / "run", [*cases, make_case("last", 1)])


def wait_for_ranks(run_dir: RunDir) -> None:
    wait_until(
        lambda: bool(list(run_dir.path.glob("running/waits*/rank-1.jsonl"))), "the waiting ranks"
    )


def test_an_interrupt_closes_the_repeat_and_a_second_driver_is_refused(waiting: RunDir) -> None:
    with tagged() as (environment, survivors):
        driver = start_driver(waiting, environment)
        wait_for_ranks(waiting)
        with (
            pytest.raises(UserError, match=f"in use by process {driver.pid} on"),
            waiting.lock(),
        ):
            pass
        driver.send_signal(signal.SIGINT)
        assert driver.wait(30) == 130
        assert survivors() == []
        first, waits, last = (i.case_id for i in waiting.plan.repeats)
        assert ended(waiting) == {(first, 0): "ok", (waits, 0): "interrupted"}
        assert ("pending", last) in [(word, i.case_id) for i, word in waiting.statuses()]
        lines = (waiting.case_dir(waiting.plan.repeats[1]) / "node-0.jsonl").read_text()
        assert [json.loads(x)["kind"] for x in lines.splitlines()] == ["node", "start", "start"]


def test_a_second_interrupt_ends_an_agent_that_does_not_obey_the_first(waiting: RunDir) -> None:
    with tagged() as (environment, survivors):
        driver = start_driver(waiting, environment)
        agent: list[psutil.Process] = []

        def found() -> bool:
            agent.extend(p for p in survivors() if "andromeda_scale.agent" in p.cmdline())
            return bool(agent)

        wait_until(found, "the agent")
        agent[0].suspend()

        def interrupted_again() -> bool:
            driver.send_signal(signal.SIGINT)  # two that come at once count as one
            return driver.poll() is not None

        wait_until(interrupted_again, "the driver's end")
        wait_until(lambda: not survivors(), "the death of everything")


def test_the_kernel_ends_even_stopped_processes_with_their_driver(waiting: RunDir) -> None:
    with tagged() as (environment, survivors):
        driver = start_driver(waiting, environment)
        wait_for_ranks(waiting)
        started = [process for process in survivors() if process.pid != driver.pid]
        assert len(started) == 4  # the agent, its forkserver, two ranks
        for process in started:
            process.suspend()  # none of them can notice anything now
        driver.kill()
        driver.wait()
        wait_until(lambda: not survivors(), "the death of everything")


def test_a_killed_agent_costs_the_repeat_it_was_in_and_another_goes_on(waiting: RunDir) -> None:
    with tagged() as (environment, survivors):
        driver = start_driver(waiting, environment)
        wait_for_ranks(waiting)
        agents = [p for p in survivors() if "andromeda_scale.agent" in p.cmdline()]
        agents[0].kill()
        assert driver.wait(60) == 0
        wait_until(lambda: not survivors(), "the death of everything")
    waits = waiting.plan.repeats[1]
    assert [word for _, word in waiting.statuses()] == ["ok", "node_failed", "ok"]
    status = waiting.status(waits) or {}
    assert status["cause"] == "the agent was killed by SIGKILL"
    lines = (waiting.case_dir(waits) / "node-0.jsonl").read_text().splitlines()
    assert [json.loads(line)["rank"] for line in lines] == [0, 1]
    assert not list(waiting.path.glob("running/*"))


@pytest.mark.thorough
def test_agents_that_are_killed_again_and_again_end_the_sweep_with_an_error(
    tmp_path: Path,
) -> None:
    run_dir = make_run(tmp_path / "run", [make_case("kills", 1, {0: "kill_agent"})], REPEATS + 2)
    with tagged() as (environment, survivors):
        assert start_driver(run_dir, environment).wait(90) == 1
        wait_until(lambda: not survivors(), "the death of everything")
    words = [word for _, word in run_dir.statuses()]
    assert words == ["node_failed"] * 4 + ["pending"] * 2
