"""`measure.precision`: launches are added where the interval is too wide, and only there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from noisy_runs import noisy_run
from pydantic import ValidationError
from run_files import make_case

from andromeda_scale.commands.refining import extend
from andromeda_scale.contracts.planned import Plan
from andromeda_scale.launch.run_dir import RunDir
from andromeda_scale.merge import merge_run
from andromeda_scale.report.scaling import scaling_table
from andromeda_scale.suite.config import Case, Measure


def _case(strategy: str, precision: float | None, **measure: Any) -> Case:
    case = make_case(strategy, 1)
    wanted = Measure(steps=4, repeats=3, profile_steps=8, precision=precision, **measure)
    return case.model_copy(update={"measure": wanted})


def _added(run: RunDir) -> list[tuple[str, int]]:
    more = extend(run)
    if more is None:
        return []
    kept = len(run.plan.repeats)
    assert more.plan.repeats[:kept] == run.plan.repeats
    assert RunDir.open(run.path).plan == more.plan
    return [
        (more.plan.cases[item.case_id].strategy.name, item.repeat)
        for item in more.plan.repeats[kept:]
    ]


def _run(directory: Path, *cases: tuple[Case, float], **more: Any) -> RunDir:
    return RunDir.open(noisy_run(directory, cases, **more))


def test_a_case_that_is_not_known_so_well_gets_up_to_twice_its_launches(tmp_path: Path) -> None:
    run = _run(tmp_path, (_case("ddp", 0.001), 0.1), (_case("zero1", 0.5), 0.1), repeats=3)
    assert sorted(_added(run)) == [("ddp", 3), ("ddp", 4), ("ddp", 5)]


def test_no_more_than_max_repeats_are_made(tmp_path: Path) -> None:
    case = _case("ddp", 0.001, max_repeats=4)
    assert _added(_run(tmp_path / "a", (case, 0.1), repeats=3)) == [("ddp", 3)]
    assert _added(_run(tmp_path / "b", (case, 0.1), repeats=4)) == []


def test_without_a_wanted_precision_or_with_failures_nothing_is_added(tmp_path: Path) -> None:
    assert _added(_run(tmp_path / "a", (_case("ddp", None), 0.1), repeats=3)) == []
    case = _case("ddp", 0.001)
    failed = {case.case_id: {"v": 1, "status": "oom", "cause": "x"}}
    assert _added(_run(tmp_path / "b", (case, 0.1), repeats=3, status=failed)) == []


def test_wanting_precision_renames_no_case() -> None:
    assert _case("ddp", 0.01, max_repeats=9).case_id == _case("ddp", None).case_id


def test_precision_is_a_share_and_needs_launches_to_be_judged_by() -> None:
    assert Measure.model_validate({"precision": "1%"}).precision == 0.01
    for wrong in (
        {"precision": "one"},
        {"precision": 2},
        {"precision": "1%", "repeats": 2},
        {"precision": "1%", "max_repeats": 4},
    ):
        with pytest.raises(ValidationError):
            Measure.model_validate(wrong)


def test_the_table_says_how_well_rows_are_known_and_what_would_do(tmp_path: Path) -> None:
    noisy_run(tmp_path, [(_case("ddp", 0.002), 0.1)])
    results = merge_run(tmp_path)
    row = results.cases.iloc[0]
    assert row["half_width"] > row["wanted_precision"] == 0.002
    assert row["launches_needed"] > 5
    (note,) = [note for note in scaling_table(results).notes if "widest interval" in note]
    assert f"{row['launches_needed']} launches of as many steps" in note
    assert "would give +-0.2%" in note
    assert -1 < row["step_autocorrelation"] < 1
    assert isinstance(Plan.model_validate_json((tmp_path / "plan.json").read_text()), Plan)
