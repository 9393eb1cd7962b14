"""`micro_batch_size: auto` on two real ranks: what is found, and what a kill in it costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launch_support import start_driver, tagged, wait_until

from andromeda_scale.contracts.planned import Plan, PlannedRepeat
from andromeda_scale.hardware.machine import Machine
from andromeda_scale.launch import driver
from andromeda_scale.launch.run_dir import RunDir
from andromeda_scale.merge import merge_run
from andromeda_scale.planning.plan import make_plan
from andromeda_scale.suite import micro_batch
from andromeda_scale.suite.config import Suite
from andromeda_scale.suite.validation import validate

MODEL = {
    "family": "llama",
    "vocab_size": 4096,
    "d_model": 32,
    "d_ff": 64,
    "num_layers": 1,
    "num_heads": 2,
}
LARGEST = 4  # of the scan
# A sequence takes some 100 MiB, logits above all: a rank's start may differ by 50 MiB.
LONG = {"seq_len": 2048, "micro_batch_size": "auto"}


def make(**keys: Any) -> Plan:
    """A suite of ddp on two ranks."""
    suite: dict[str, Any] = {
        "question": "what fits?",
        "model": MODEL,
        "data": {"source": "random"},
        "train": {"seq_len": 1024, "micro_batch_size": "auto"},
        "world": [2],
        "measure": {
            "warmup": {"min_steps": 5, "max_steps": 5},
            "steps": 1,
            "repeats": 2,
            "profile_steps": 0,
        },
        "collect": [],
        "device": "cpu",
    }
    machine = Machine(cpu_cores=2, memory_bytes=1 << 34)
    return make_plan(validate(Suite, suite | keys, "x"), "x", machine)


def create(path: Path, plan: Plan) -> RunDir:
    return RunDir.create(path, plan, "", {"code": "test"})


def used(run: RunDir, item: PlannedRepeat) -> int:
    """The most that a rank of a trial used."""
    lines = map(json.loads, (run.case_dir(item) / "node-0.jsonl").read_text().splitlines())
    return max(x["values"]["room"]["used_bytes"] for x in lines if x.get("phase") == "warmup"
               and x["kind"] == "phase")  # fmt: skip


def scanned(path: Path) -> dict[int, int]:
    """Every size up to LARGEST tried without a limit: what it used."""
    plan = make(train=LONG)
    (search,) = (item for item in plan.repeats if item.role == "search")
    trials = [search.model_copy(update={"role": "trial", "repeat": n + 1}) for n in range(LARGEST)]
    cases = {}
    for trial in trials:
        case = micro_batch.at_size(plan.cases[trial.case_id], trial.repeat)
        cases[case.case_id] = case
    items = [t.model_copy(update={"case_id": c}) for t, c in zip(trials, cases, strict=True)]
    run = create(path, plan.model_copy(update={"cases": cases, "repeats": tuple(items)}))
    assert driver.run(run, quiet=True).error is None
    return {item.repeat: used(run, item) for item in items}


def test_the_search_finds_what_a_scan_of_all_sizes_finds(tmp_path: Path) -> None:
    need = scanned(tmp_path / "scan")
    assert need[LARGEST] - need[1] > (LARGEST - 1) * 64 * 2**20
    room = (need[2] + need[3]) / 2  # in which 2 fit, and 3 do not
    limits = {"memory_gib": room / (1 - micro_batch.MARGIN) / 2**30, "timeout_s": 120}
    run = create(tmp_path / "run", make(limits=limits, train=LONG))
    assert driver.run(run, quiet=True).error is None
    (row,) = merge_run(run.path).cases.to_dict("records")
    assert (row["status"], row["micro_batch_size"]) == ("ok", 2)
    assert {"2 ok", "3 oom"} <= set(row["micro_batch_tried"].split(", "))
    assert (row["parity"], row["num_launches"]) == ("ok", 2)  # with one size
    assert row["global_batch_size"] == 4


def test_stacks_of_many_threads_are_no_memory_that_a_rank_uses() -> None:
    code = """
import psutil, torch
from andromeda_scale.rank import fitting
torch.set_num_threads(64)
fitting._limit_to(psutil.Process().memory_info().rss + 400 * 2**20)
torch.ones(1024, 1024) @ torch.ones(1024, 1024)  # starts the threads
torch.ones(300, 2**18)  # 300 MiB
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


@pytest.fixture
def searching(tmp_path: Path) -> RunDir:
    limits = {"memory_gib": 0.9, "timeout_s": 120, "heartbeat_s": 100}
    plan = make(limits=limits, parity="off")
    (search,) = (item for item in plan.repeats if item.role == "search")
    case = plan.cases[search.case_id]
    guess = case.model_copy(update={"train": case.train.model_copy(update={"micro_batch_size": 4})})
    cases = {guess.case_id: guess}  # of the same name: the trials are 4, 5, 7, 6
    return create(tmp_path / "run", plan.model_copy(update={"cases": cases}))


@pytest.mark.thorough
def test_a_killed_search_goes_on_and_one_rank_decides_for_all(
    searching: RunDir, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    (item,) = searching.todo()
    trials = searching.case_dir(item).parent
    with tagged() as (environment, survivors):
        environment |= {"SEARCH_WAITS": "6", "SEARCH_GO": str(go)}
        environment |= {"LAUNCH_TEST_WORKER": "search_worker:main"}
        process = start_driver(searching, environment)
        wait_until(
            lambda: len(list(searching.path.glob("running/*-6-*/rank-*.jsonl"))) == 2, "the trial"
        )
        process.kill()
        process.wait()
        wait_until(lambda: not survivors(), "the death of everything")
        before = {f: f.stat().st_mtime_ns for f in trials.glob("*/status.json")}
        assert sorted(f.parent.name for f in before) == ["4", "5", "7"]
        seven = json.loads((trials / "7" / "status.json").read_text())
        assert (seven["status"], seven["rank"], seven["cause"]) == ("oom", 1, "planted")
        go.touch()
        assert start_driver(searching, environment).wait(60) == 0
        assert survivors() == []
    assert {f: f.stat().st_mtime_ns for f in before} == before  # none was made again
    run = RunDir.open(searching.path)
    assert json.loads((trials / "0" / "status.json").read_text())["found"] == 5
    measured = [(i, word) for i, word in run.statuses() if i.role == "measure"]
    assert [word for _, word in measured] == ["ok", "ok"]
    assert {run.plan.cases[i.case_id].train.micro_batch_size for i, _ in measured} == {5}


@pytest.mark.parametrize(("again", "found"), [(False, 5), (True, 4)])
def test_a_rank_killed_in_a_trial_says_of_its_size_only_if_it_is_again(
    searching: RunDir, tmp_path: Path, again: bool, found: int
) -> None:
    (item,) = searching.todo()
    with tagged() as (environment, survivors):
        environment |= {"SEARCH_DIES": "5", "SEARCH_GO": str(tmp_path / "go")}
        environment |= {"LAUNCH_TEST_WORKER": "search_worker:main"}
        environment |= {"SEARCH_DIES_AGAIN": "1"} if again else {}
        assert start_driver(searching, environment).wait(100) == 0
        assert survivors() == []
    said = json.loads((searching.case_dir(item) / "status.json").read_text())
    words = {one["size"]: one["status"] for one in said["tried"]}
    assert (said["found"], words[5]) == (found, "crashed" if again else "ok")
