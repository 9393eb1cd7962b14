"""Records -> results, from a run's files alone. No torch."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from pydantic import ValidationError

from andromeda_scale.analysis.results import FILES, Results, read, typed, write
from andromeda_scale.analysis.scaling import add_scaling
from andromeda_scale.errors import UserError
from andromeda_scale.merge import cases, ranks, repeats
from andromeda_scale.planned import Plan, PlannedRepeat

__all__ = ["Results", "load_results", "merge_run", "write"]


def load_results(run_dir: Path) -> Results:
    """The results of a run, merged again from its records, or read from its Parquet files where
    the records were not copied along. Raises UserError where there is neither."""
    if (Path(run_dir) / "plan.json").exists() and (Path(run_dir) / "cases").is_dir():
        return merge_run(run_dir)
    if (Path(run_dir) / FILES["cases"]).exists():
        return read(Path(run_dir))
    return merge_run(run_dir)


def merge_run(run_dir: Path) -> Results:
    """Read plan.json and every repeat's files; a row for every planned case, whatever became of it.

    Raises UserError only if `run_dir` holds no readable plan.
    """
    plan = read_plan(run_dir)
    items: dict[str, list[PlannedRepeat]] = {case_id: [] for case_id in plan.cases}
    for item in plan.repeats:
        if item.role == "measure":
            items[item.case_id].append(item)
    problems: list[str] = []
    repeat_rows, case_rows, rank_frames, launches = [], [], [], {}
    for case_id, planned in items.items():  # in the order of the suite, not of the launches
        if not planned:
            continue
        merged = [repeats.merge_repeat(run_dir, item, plan.cases[case_id]) for item in planned]
        rows = [one.row for one in merged]
        problems += [problem for one in merged for problem in one.problems]
        reference = _reference(run_dir, planned[0].reference_id)
        row, launches[case_id] = cases.case_row(
            plan.cases[case_id], planned, rows, reference, problems
        )
        case_rows.append(row)
        repeat_rows += rows
        rank_frames += [one.ranks for one in merged if one.ranks is not None]
    empty = typed(pd.DataFrame(), ranks.COLUMNS)
    return Results(
        cases=add_scaling(typed(pd.DataFrame(case_rows), cases.COLUMNS), launches),
        repeats=typed(pd.DataFrame(repeat_rows), repeats.COLUMNS),
        ranks=pd.concat(rank_frames, ignore_index=True) if rank_frames else empty,
        problems=problems,
        suite_name=plan.suite_name,
        question=plan.question,
    )


def read_plan(run_dir: Path) -> Plan:
    """The plan a run was made by. Raises UserError if there is none to be read."""
    path = Path(run_dir) / "plan.json"
    try:
        plan = Plan.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{error.error_count()} errors"
        raise UserError(
            f"{path}: is not a readable plan ({reason}); give the directory of a run, as "
            "`andromeda-scale run` printed it"
        ) from error
    unknown = {item.case_id for item in plan.repeats} - set(plan.cases)
    if unknown:
        raise UserError(
            f"{path}: repeats name cases it does not hold: {', '.join(sorted(unknown))}"
        )
    return plan


def _reference(run_dir: Path, reference_id: str | None) -> str:
    """How a case's parity reference ended, in words; empty if it has none."""
    if reference_id is None:
        return ""
    directory = run_dir / "references" / reference_id / "0"
    status = repeats.read_status(directory / "status.json", [])
    if not status:
        return "did not finish"
    cause = " ".join(str(status.get("cause") or "").split())
    return f"is {status['status']}{f': {cause}' if cause else ''}"
