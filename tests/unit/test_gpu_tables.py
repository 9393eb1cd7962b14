"""The tables of GPU results: what each would run on two GPUs, and how a row is judged."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from planning import GIB

from andromeda_scale.hardware.machine import Machine
from andromeda_scale.planning.plan import make_plan
from andromeda_scale.planning.suite_file import mapping_suite

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import gpu_results
from gpu_tables import TABLES, Reach, Table

TWO_H200 = Machine(cpu_cores=32, gpus=[int(139.8 * GIB)] * 2, memory_bytes=256 * GIB)
CASES = {
    "llama": 1,
    "levers": 16,
    "weak": 30,
    "cs336": 15,
    "andromeda": 8,
    "zero3": 3,
    "update": 4,
    "auto": 17,
    "weak-levers": 48,
}
CASES |= {
    "context": 13,
    "batch": 8,
    "precision": 20,
    "compile": 13,
    "checkpointing": 8,
    "attention": 16,
}


@pytest.mark.parametrize("name", TABLES)
def test_every_row_of_a_table_fits_two_h200s_and_none_is_refused(name: str) -> None:
    found = 0
    for suite in TABLES[name].suites:
        loaded = mapping_suite(gpu_results.complete(TABLES[name], suite, rehearse=False), [], [])
        plan = make_plan(loaded.suite, name, TWO_H200, loaded.where)
        items = [item for item in plan.repeats if item.role == "measure"]
        if suite.get("strategy") == "auto":
            assert sum(item.skip is None for item in items) == (5 if suite["world"] == [2] else 7)
        else:
            assert [item.skip for item in items] == [None] * len(items)
        found += len(items)
    assert found == CASES[name]


def test_a_rehearsal_has_the_axes_of_a_table_with_small_values() -> None:
    def axes(name: str) -> Any:
        suite = TABLES[name].suites[0]
        return gpu_results.complete(TABLES[name], suite, rehearse=True)["axes"]

    assert axes("context") == {"train.seq_len": [16, 32, 64]}
    precisions = {"train.precision": ["fp32", "tf32", "bf16", "fp16"]}
    assert axes("precision") == {"train.compile": [False, True], **precisions}
    assert axes("cs336") == {}


def _row(**changes: Any) -> dict[str, Any]:
    row = {"run": "ours-0", "model": "m", "strategy": "ddp", "options": "", "world_size": 2}
    row |= {"precision": "bf16", "seq_len": 8, "micro_batch_size": 1, "status": "ok", "cause": ""}
    row |= {"other": json.dumps({"train.compile": True}), "window_step_s": 0.25}
    row |= {"tokens_per_s_per_gpu": 2000.0, "flops_per_token": 1e9, "mfu": 0.5}
    return row | {"peak_allocated_bytes": 3 * GIB} | changes


def _cells(row: dict[str, Any], reach: Reach | None = None) -> dict[str, str]:
    return gpu_results.cells(Table("", [], lambda row, rows: reach), row, [row])


def test_a_row_shows_its_numbers_and_by_how_much_it_misses_its_reach() -> None:
    found = _cells(_row())
    assert found["other"] == "compiled"
    assert found["step ms"] == "250.00"
    assert (found["TFLOP/s"], found["MFU"], found["GiB"]) == ("2.0", "50.0%", "3.0")
    assert (found["exposed ms"], found["mJ/token"], found["reach"]) == ("-", "-", "")
    low = _cells(_row(), Reach("MFU", 0.36, 0.45))
    assert (low["reach"], low[""]) == ("MFU 0.36 >= 0.45", "missed by 20.0%")
    assert _cells(_row(), Reach("step ms", 9, 10, at_most=True))[""] == "reached"
    died = _cells(_row(status="oom", cause="out of memory", window_step_s=None))
    assert (died["step ms"], died["reach"], died[""]) == ("-", "oom: out of memory", "missed")


def test_weak_efficiency_is_judged_by_strategy_and_a_first_gpu_is_not() -> None:
    rule = TABLES["weak"].reach
    assert rule(_row(world_size=1), []) is None
    found = rule(_row(strategy="zero3", efficiency=0.9), [])
    assert found == Reach("weak efficiency", 0.9, 0.85)
    beside = [_row(strategy="fsdp2", tokens_per_s=10.0)]
    judged = TABLES["zero3"].reach(_row(strategy="zero3", tokens_per_s=8.0), beside)
    assert judged == Reach("speed / fsdp2's", 0.8, 0.85)
    assert not judged.met


def test_zero3_is_judged_by_the_fsdp2_of_its_run_or_it_says_of_which() -> None:
    rule, row = TABLES["zero3"].reach, _row(strategy="zero3", tokens_per_s=8.0)
    failed = _row(strategy="fsdp2", status="oom", tokens_per_s=float("nan"))
    other = _row(strategy="fsdp2", run="ours-1", tokens_per_s=16.0)
    own = _row(strategy="fsdp2", tokens_per_s=10.0)
    assert rule(row, [failed]) is None
    assert rule(row, [failed, other]) == Reach("speed / fsdp2's in ours-1", 0.5, 0.85)
    assert rule(row, [failed, other, own]) == Reach("speed / fsdp2's", 0.8, 0.85)


def test_the_step_that_is_judged_is_the_one_in_the_column() -> None:
    row = _row(model="cs336-small", window_step_s=0.0101, step_time_s=0.0099)
    found = TABLES["cs336"].reach(row, [])
    assert found is not None
    assert not found.met
    assert f"{found.found:.2f}" == _cells(row, found)["step ms"]


def test_an_efficiency_beside_a_slow_gpu_of_its_own_stands_beside_that_of_the_best() -> None:
    two = {"efficiency": 1.26, "efficiency_low": None, "efficiency_high": None}
    two |= {"efficiency_common": 0.79, "base_world_size": 1, "base_case_id": "zero1"}
    found = _cells(_row(**two, common_base_case_id="ddp"))
    assert (found["efficiency"], found["of the best"]) == ("1.260", "0.790")
    assert _cells(_row(**two, common_base_case_id="zero1"))["of the best"] == "-"
    first = _row(**two | {"base_world_size": 2}, common_base_case_id="ddp")
    assert _cells(first)["of the best"] == "-"


def _turn(name: str, seconds: float) -> dict[str, Any]:
    peer = name.partition("-")[0]
    return _row(run=name, window_step_s=seconds) | ({} if peer == "ours" else {"peer": peer})


def test_ours_is_compared_with_each_peer_by_the_turns_they_took() -> None:
    times = {"titan-0": 2.0, "bare-0": 1.0, "ours-0": 1.1, "ours-1": 1.0, "bare-1": 1.1}
    rows = [_turn(name, seconds) for name, seconds in times.items()]
    said = gpu_results._against_peers(rows)
    assert "lasts 1.0000 of one of bare (bare-0, ours-0, ours-1, bare-1)" in said
    assert "titan" not in said  # it had one turn
    assert gpu_results._against_peers(rows[:3]) == ""
    second = {"bare-2": 1.0, "ours-2": 1.0, "ours-3": 1.21, "bare-3": 1.0}
    again = [_turn(name, seconds) for name, seconds in second.items()]
    assert "1.1000 of one of bare (bare-2, ours-2, ours-3, bare-3)" in (
        gpu_results._against_peers(rows + again)
    )


def test_a_peer_failed_of_what_its_rank_said_and_not_of_what_torchrun_says() -> None:
    ranks = [
        "Traceback (most recent call last):",
        "[rank0]: torch.OutOfMemoryError: CUDA out of memory",
    ]
    after = [
        "E1 failed (exitcode: 1)",
        "torch.distributed.elastic.errors.ChildFailedError: ",
        "===",
    ]
    assert gpu_results._cause("\n".join([*ranks, *after])) == (
        "torch.OutOfMemoryError: CUDA out of memory"
    )
    assert gpu_results._cause("") == "it printed nothing"


def test_a_peer_that_does_not_end_is_a_row_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_results, "PEER_TIMEOUT_S", 0.2)
    said, errors = gpu_results._ended([sys.executable, "-c", "import time; time.sleep(60)"], {})
    assert said == ""
    assert gpu_results._cause(errors) == "TimeoutError: not done in 0.2 s"


def test_another_time_is_numbered_beside_a_time_that_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ours-2").mkdir()
    made: list[str] = []
    monkeypatch.setattr(gpu_results, "_run_ours", lambda suite, run, sets: made.append(run.name))
    monkeypatch.setattr(gpu_results, "_run_peer", lambda *_, **__: None)
    gpu_results.run_table(TABLES["llama"], tmp_path, rehearse=True, sets={})
    assert made == ["ours-4", "ours-5"]
    assert (tmp_path / "torchtitan-4").is_dir()


def test_a_step_is_beside_the_first_settings_of_its_time() -> None:
    times = {"ours-0": ("a", 1.0), "ours-1": ("b", 2.2), "ours-2": ("a", 1.21), "other": ("c", 3.0)}
    rows = [_row(run=r, case_id=case, window_step_s=t) for r, (case, t) in times.items()]
    value, _ = TABLES["levers"].columns["of the first"]
    assert [value(row, rows) for row in rows] == pytest.approx([1 / 1.1, 2.0, 1.1, 1.0])
