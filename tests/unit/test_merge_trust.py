"""Launches that compared nothing, and records that contradict themselves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from merging import case_row, change_line, even_run, place_of
from run_files import make_case, rank_lines, write_plan, write_repeat


def _with_reference(run: Path) -> Path:
    """Plan a reference for every repeat; returns its directory, yet without a status."""
    plan = json.loads((run / "plan.json").read_text())
    reference = make_case("single", 1, parity="off")
    plan["cases"][reference.case_id] = json.loads(reference.model_dump_json())
    for item in plan["repeats"]:
        item["reference_id"] = reference.case_id
    plan["repeats"].append({"case_id": reference.case_id, "repeat": 0, "role": "reference"})
    (run / "plan.json").write_text(json.dumps(plan))
    place = run / "references" / reference.case_id / "0"
    place.mkdir(parents=True)
    return place


def _compared(run: Path, case: Any, repeat: int, values: Any) -> None:
    """Let rank 0 of a repeat say how its losses compared."""

    def change(line: dict[str, Any]) -> dict[str, Any]:
        line["values"]["parity"] = values
        return line

    change_line(place_of(run, case, repeat), 0, "warmup", change)


def test_parity_is_ok_only_if_every_pooled_launch_compared_losses(tmp_path: Path) -> None:
    run, case = even_run(tmp_path)
    place = _with_reference(run)
    (place / "status.json").write_text('{"status": "ok"}')
    for repeat, difference in enumerate((1e-7, 3e-7, 2e-7)):
        row = case_row(run)
        assert row["parity"] == "unavailable"
        assert row["parity_cause"].endswith("2 compared no losses: the reference is ok")
        values = {"steps_compared": 5, "norms_compared": 5, "loss_difference": difference}
        _compared(run, case, repeat, values)
    row = case_row(run)
    assert (row["parity"], row["parity_cause"]) == ("ok", "")
    assert row["parity_loss_difference"] == 3e-7


@pytest.mark.parametrize(
    "values",
    [
        None,
        {},
        {"steps_compared": 0, "loss_difference": None},
        {"steps_compared": "5"},
        {"steps_compared": -5},
    ],
)
def test_a_launch_that_compared_nothing_is_unverified_and_says_why(
    tmp_path: Path, values: Any
) -> None:
    run, case = even_run(tmp_path, repeats=1)
    place = _with_reference(run)
    _compared(run, case, 0, values)
    assert "the reference did not finish" in case_row(run)["parity_cause"]
    (place / "status.json").write_text('{"status": "crashed", "cause": "killed\\nby SIGKILL"}')
    row = case_row(run)
    assert row["parity"] == "unavailable"
    assert row["parity_cause"].endswith("the reference is crashed: killed by SIGKILL")
    assert math.isnan(row["parity_loss_difference"])


def _measured(**values: Any) -> Any:
    def change(line: dict[str, Any]) -> dict[str, Any]:
        line["values"]["step_time"] |= values
        return line

    return change


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"window_ns": 1e308}, "rank 1: window_s 1e+299 is absurd"),
        ({"step_ns": [2.5e307] * 4, "window_ns": 1e308}, "rank 1: "),
        ({"window_ns": math.inf}, "missing on rank 1"),
        ({"window_ns": math.nan}, "missing on rank 1"),
        ({"tokens": 1e300}, "rank 1: tokens 1e+300 is absurd"),
        ({"window_ns": 500_000_000}, "rank 1: its steps sum to 0.4 s, its window is 0.5 s"),
        (
            {"step_ns": [300_000_000] * 4, "window_ns": 1_200_000_000},
            "the window of rank 1 is 1.2 s, that of rank 0 0.4 s",
        ),
        ({"tokens": 127}, "tokens of the window are 255, not 256: 128 on rank 0; 127 on rank 1"),
    ],
)
def test_records_that_contradict_themselves_are_invalid(
    tmp_path: Path, values: dict[str, Any], cause: str
) -> None:
    run, case = even_run(tmp_path)
    change_line(place_of(run, case, 1), 1, "measure", _measured(**values))
    row = case_row(run)
    assert row["statuses"] == "ok x2, invalid x1"
    assert cause in row["cause"]
    assert row["tokens_per_s"] == pytest.approx(640)


@pytest.mark.parametrize(
    ("step", "what"),
    [
        (-5, "-5 at index 2 is no finite number from 0 on"),
        (math.nan, "NaN at index 2 is no finite number from 0 on"),
        (10**400, "100000000000000000000000 at index 2 is no finite number from 0 on"),
        ("\x1b[31m", '"\\u001b[31m" at index 2 is no finite number from 0 on'),
    ],
)
def test_a_step_time_that_is_no_time_is_named_with_its_file(
    tmp_path: Path, step: Any, what: str
) -> None:
    run, case = even_run(tmp_path)
    steps = [100_000_000, 100_000_000, step, 100_000_000]
    change_line(place_of(run, case, 1), 1, "measure", _measured(step_ns=steps))
    where = f"cases/{case.case_id}/1/node-0.jsonl: rank 1: measure step_time.step_ns"
    assert case_row(run)["cause"] == f"{where}: {what}"


def test_an_absurd_step_is_named_with_its_file(tmp_path: Path) -> None:
    run, case = even_run(tmp_path)
    steps = [100_000_000, 100_000_000, 10**20, 100_000_000]
    change_line(place_of(run, case, 1), 1, "measure", _measured(step_ns=steps))
    where = f"cases/{case.case_id}/1/node-0.jsonl: rank 1"
    assert case_row(run)["cause"] == f"{where}: a step of 1e+11 s is absurd"


def test_windows_within_the_slack_of_clocks_are_no_contradiction(tmp_path: Path) -> None:
    run, case = even_run(tmp_path, repeats=1)
    change_line(place_of(run, case, 0), 1, "measure", _measured(window_ns=404_000_000 + 900_000))
    assert case_row(run)["status"] == "ok"


def test_one_step_in_which_a_late_rank_was_waited_for_is_no_contradiction(tmp_path: Path) -> None:
    run, case = even_run(tmp_path, repeats=1)
    late = _measured(step_ns=[900_000_000, *[100_000_000] * 3], window_ns=1_200_000_000)
    change_line(place_of(run, case, 0), 1, "measure", late)
    assert case_row(run)["status"] == "ok"


def test_ranks_that_do_not_wait_for_each_other_may_differ(tmp_path: Path) -> None:
    case = make_case("ddp", 2, train={"mode": "forward"})
    write_plan(tmp_path, [case], repeats=1)
    write_repeat(tmp_path, case, 0, [*rank_lines(0, [0.1] * 4), *rank_lines(1, [0.5] * 4)])
    assert case_row(tmp_path)["status"] == "ok"


def test_a_rank_that_started_in_another_world_is_invalid(tmp_path: Path) -> None:
    run, case = even_run(tmp_path, repeats=1)
    change_line(place_of(run, case, 0), 1, "start", lambda line: line | {"world_size": 4})
    row = case_row(run)
    assert row["status"] == "invalid"
    assert row["cause"] == "rank 1: it started in a world of 4, planned are 2"
