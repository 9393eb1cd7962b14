"""More launches of the cases that are not known as well as `measure.precision` asks. No torch."""

from __future__ import annotations

import random
from itertools import chain

from andromeda_scale.analysis.precision import half_width, needed
from andromeda_scale.analysis.rivals import samples_of
from andromeda_scale.analysis.stats import MIN_LAUNCHES, Sample, log_interval
from andromeda_scale.contracts.planned import PlannedRepeat
from andromeda_scale.launch.run_dir import RunDir
from andromeda_scale.merge import merge_run
from andromeda_scale.suite.config import Case

GROWTH = 2.0  # of a case's launches between two looks: few looks, for each may stop by luck


def extend(run: RunDir) -> RunDir | None:
    """The run with more launches planned; None where nothing is left to refine.

    A case gets what its present noise asks for, at most GROWTH times its launches and
    measure.max_repeats, in shuffled blocks as the plan has them. One with a launch that failed, or
    without an interval, gets none.
    """
    wanted = {key: case for key, case in run.plan.cases.items() if case.measure.precision}
    if not wanted:
        return None
    samples = samples_of(merge_run(run.path))
    by_case: dict[str, list[PlannedRepeat]] = {}
    for item in run.plan.repeats:
        if item.role == "measure" and item.case_id in wanted:
            by_case.setdefault(item.case_id, []).append(item)
    added: list[PlannedRepeat] = []
    for case_id, items in by_case.items():
        more = _more(wanted[case_id], samples.get(case_id, Sample({})), len(items))
        first = max(item.repeat for item in items) + 1
        added += [items[0].model_copy(update={"repeat": first + index}) for index in range(more)]
    if not added:
        return None
    repeats = (*run.plan.repeats, *_blocks(added))
    return run.replanned(run.plan.model_copy(update={"repeats": repeats}))


def _more(case: Case, sample: Sample, planned: int) -> int:
    """How many launches more a case shall have."""
    precision = case.measure.precision
    if precision is None or len(sample) < max(MIN_LAUNCHES, planned):
        return 0
    if half_width(log_interval(sample)) <= precision:
        return 0
    most = min(case.measure.max_repeats, int(GROWTH * planned))
    asked = needed(sample, precision).launches or most
    return max(0, min(most, max(planned + 1, asked)) - planned)


def _blocks(items: list[PlannedRepeat]) -> list[PlannedRepeat]:
    """By number of repeat, each block in an order of its own."""
    blocks: dict[int, list[PlannedRepeat]] = {}
    for item in sorted(items, key=lambda item: item.repeat):
        blocks.setdefault(item.repeat, []).append(item)
    for repeat, block in blocks.items():
        random.Random(f"refine/{repeat}").shuffle(block)
    return list(chain.from_iterable(blocks.values()))
