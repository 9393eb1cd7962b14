"""Records -> results, from a run's files alone. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from andromeda_scale.analysis.breakdown import add_reasons
from andromeda_scale.analysis.fabric import Ceilings
from andromeda_scale.analysis.resampling import Series
from andromeda_scale.analysis.results import FILES, Results, read, typed_rows, write
from andromeda_scale.analysis.scaling import add_scaling
from andromeda_scale.contracts.planned import Plan, PlannedRepeat, read_plan
from andromeda_scale.contracts.records import read_status
from andromeda_scale.contracts.references import reference_of
from andromeda_scale.hardware import calibration
from andromeda_scale.merge import cases, communication, cross, ranks, repeats, searched, steps
from andromeda_scale.merge.repeats import MergedRepeat
from andromeda_scale.suite import paths

__all__ = ["Results", "has_records", "load_results", "merge_run", "write"]


def load_results(run_dir: Path) -> Results:
    """The results of a run, merged again from its records, or read from its Parquet files where
    the records were not copied along. Raises UserError where there is neither."""
    return merge_run(run_dir) if has_records(run_dir) else read(Path(run_dir))


def has_records(run_dir: Path) -> bool:
    """Whether a run is known from its records, and not from its Parquet files alone."""
    run_dir = Path(run_dir)
    if paths.exists(run_dir / "plan.json") and (run_dir / "cases").is_dir():
        return True
    return not (run_dir / FILES["cases"]).exists()


def merge_run(run_dir: Path) -> Results:
    """Read plan.json and every repeat's files; a row for every planned case, whatever became of it.

    Raises UserError only if `run_dir` holds no readable plan.
    """
    plan = read_plan(Path(run_dir))
    items: dict[str, list[PlannedRepeat]] = {case_id: [] for case_id in plan.cases}
    for item in plan.repeats:
        if item.role == "measure":
            items[item.case_id].append(item)
    known = calibration.read(Path(run_dir) / calibration.FILE)
    problems = [*plan.problems, *([known["problem"]] if "problem" in known else [])]
    ceilings = Ceilings(known.get("ceilings", {}))
    problems += ceilings.problems
    repeat_rows, case_rows, launches, collectives, series = [], [], {}, [], []
    pooled_rows: dict[str, list[dict[str, Any]]] = {}
    merged = {
        case_id: [repeats.merge_repeat(run_dir, item, plan.cases[case_id]) for item in planned]
        for case_id, planned in items.items()  # in the order of the suite, not of the launches
        if planned
    }
    helpers = {case_id: _helper(run_dir, plan, items[case_id][0]) for case_id in merged}
    _compare(plan, items, merged, helpers)
    problems += _distorted([one for of_case in merged.values() for one in of_case])
    launched = [one.ranks for of_case in merged.values() for one in of_case if one.ranks]
    for case_id, of_case in merged.items():
        rows = [one.row for one in of_case]
        problems += [problem for one in of_case for problem in one.problems]
        row, launches[case_id] = cases.case_row(
            plan.cases[case_id], items[case_id], rows, helpers[case_id], problems, _timed(of_case)
        )
        row |= searched.of_case(run_dir, plan, items[case_id][0], problems)
        pooled = [one.collectives for one in of_case if one.row["pooled"]]
        pooled_rows[case_id] = [one for one in rows if one["pooled"]]
        kinds = communication.case_kinds(plan.cases[case_id], row, pooled, ceilings)
        case_rows.append(row | communication.against_ceilings(row, kinds, ceilings))
        collectives += kinds
        repeat_rows += rows
        series += [steps_of_phase for one in of_case for steps_of_phase in one.steps]
    scaled = add_scaling(typed_rows(case_rows, cases.COLUMNS), launches)
    reasoned, unexplained = add_reasons(scaled, pooled_rows)
    return Results(
        cases=reasoned,
        repeats=typed_rows(repeat_rows, repeats.COLUMNS),
        ranks=ranks.frame_of(launched),
        communication=typed_rows(collectives, communication.COLUMNS),
        steps=steps.frame_of(series),
        problems=problems + unexplained,
        suite_name=plan.suite_name,
        question=plan.question,
    )


def _timed(of_case: Sequence[MergedRepeat]) -> dict[int, Series]:
    """The job's timed steps of each launch, seconds by repeat."""
    return {
        one.row["repeat"]: phase["step_time_s"]
        for one in of_case
        for phase in one.steps
        if phase["phase"] == "measure"
    }


def _distorted(launches: Sequence[MergedRepeat]) -> list[str]:
    """One line a variable that distorted launches, and how many where it was not all."""
    ended = [one for one in launches if one.ranks is not None]
    counts = Counter(line for one in ended for line in one.distortions)
    return [
        line if number == len(ended) else f"in {number} of {len(ended)} launches {line}"
        for line, number in counts.items()
    ]


def _helper(run_dir: Path, plan: Plan, item: PlannedRepeat) -> dict[str, Any]:
    """How a case's parity launch ended and what it compared, or how its reference ended."""
    if item.parity_id in plan.cases:
        launch = PlannedRepeat(case_id=item.parity_id, repeat=0, role="parity")
        size = plan.cases[item.parity_id].world.size
        return repeats.merge_parity_launch(run_dir, launch, size)
    if item.reference_id is None:
        return {}
    reference = PlannedRepeat(case_id=item.reference_id, repeat=0, role="reference")
    return read_status(run_dir / reference.folder / "status.json")[0]


def _compare(
    plan: Plan,
    items: Mapping[str, Sequence[PlannedRepeat]],
    merged: Mapping[str, Sequence[MergedRepeat]],
    helpers: Mapping[str, Mapping[str, Any]],
) -> None:
    """Condemn launches by what launches of other cases show: `parity: shallow` and `cross`."""
    groups: dict[str, dict[str, Sequence[MergedRepeat]]] = {}
    for case_id, of_case in merged.items():
        case, item, helper = plan.cases[case_id], items[case_id][0], helpers[case_id]
        if item.parity_id is not None and helper.get("status") == "diverged":
            for one in of_case:
                if one.row["status"] == "ok":  # measured before the parity launch was repeated
                    one.condemn(f"on the shallow model: {helper['cause']}")
        if case.parity == "cross":
            group = reference_of(case, item.device).case_id
            groups.setdefault(group, {})[case_id] = of_case
    for members in groups.values():
        cross.compare(members, plan.cases)
