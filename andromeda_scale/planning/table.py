"""Prints a plan: one line a case, and what it all amounts to. No torch."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rich.console import Console, JustifyMethod
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table

from andromeda_scale.contracts.planned import Plan, PlannedRepeat
from andromeda_scale.metrics.formats import binary, clean
from andromeda_scale.planning.fits import bytes_sent
from andromeda_scale.suite import settings
from andromeda_scale.suite.config import Case

_COLUMNS = (
    "case",
    "settings",
    "device",
    "threads",
    "global batch",
    "repeats",
    "memory/rank",
    "sent/rank/step",
    "",
)
_LEFT = ("case", "settings", "")
_FOLDED = 24  # characters of a line of what may be folded


def print_plan(plan: Plan, earlier: Mapping[str, Sequence[float]] | None = None) -> None:
    """The dry run, on stdout: what is launched, what is skipped and why, how many launches.

    `earlier`: seconds of each launch of these cases that ended ok on this hardware, by case id.
    """
    # On a pipe nobody wants lines folded at 80 columns.
    width = None if sys.stdout.isatty() else 240
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    console.print(clean(f"{plan.suite_name}: {plan.question}"))
    differences = differing(plan)
    rows = [
        _cells(plan.cases[case_id], differences.get(case_id, ""), items)
        for case_id, items in _by_case(plan).items()
    ]
    table = _table(rows)
    anywhere = console.options.update(max_width=sys.maxsize)
    if Measurement.get(console, anywhere, table).minimum <= console.width:
        console.print(table)
    else:  # no cell is cut: a case is a paragraph
        for case_id, *cells in rows:
            named = zip(_COLUMNS[1:], cells, strict=True)
            said = ", ".join(f"{name} {cell}".strip() for name, cell in named if cell)
            console.print(Padding(clean(f"{case_id}: {said}"), (0, 0, 0, 2)))
    for line in summary(plan, earlier or {}):
        console.print(clean(line))


def _table(rows: Sequence[Sequence[str]]) -> Table:
    """The columns in which some case has something."""
    table = Table(box=None, pad_edge=False)
    filled = {
        name: cells
        for name, cells in zip(_COLUMNS, zip(*rows, strict=True), strict=True)
        if any(cells)
    }
    for name, cells in filled.items():
        folds = name in ("settings", "")
        least = min(_FOLDED, max(map(len, cells))) if folds else None
        justify: JustifyMethod = "left" if name in _LEFT else "right"
        table.add_column(name, justify=justify, no_wrap=not folds, min_width=least)
    for row in zip(*filled.values(), strict=True):
        table.add_row(*map(clean, row))
    return table


def summary(plan: Plan, earlier: Mapping[str, Sequence[float]]) -> list[str]:
    """Launches, their time as far as it is known, an upper bound, and the planner's notes."""
    launched = [item for item in plan.repeats if item.skip is None]
    roles = Counter(item.role for item in launched)
    shallow = f", {roles['parity']} parity launches" if roles["parity"] else ""
    sizes = f"{roles['search']} micro batch{'es' * (roles['search'] > 1)} to be found first"
    searches = f"; {sizes}" if roles["search"] else ""
    trials = (
        ", and limits.timeout_s for every trial of a search and reference of what it finds"
        if roles["search"]
        else ""
    )
    launched = [item for item in launched if item.role != "search"]
    skipped = {item.case_id for item in plan.repeats if item.skip and item.role == "measure"}
    most_s = sum(plan.cases[item.case_id].limits.timeout_s for item in launched)
    if not launched:
        return [f"nothing to launch: all {len(skipped)} cases are skipped here"]
    return [
        f"{len(launched)} launches: {roles['measure']} of cases, {roles['reference']} parity "
        f"references{shallow}; {len(skipped)} cases skipped{searches}",
        f"time: {_time(launched, earlier)}; at most {duration(most_s)} "
        f"(launches x limits.timeout_s){trials}",
        *(f"note: {note}" for note in plan.notes),
        *(f"problem: {problem}" for problem in plan.problems),
    ]


def _time(launched: Sequence[PlannedRepeat], earlier: Mapping[str, Sequence[float]]) -> str:
    """What launches of the same cases took before; nothing is guessed from other cases."""
    known = [median(earlier[item.case_id]) for item in launched if earlier.get(item.case_id)]
    if not known:
        return "not estimated, no launch of these cases has ended on this hardware"
    about = f"about {duration(sum(known))}"
    if others := len(launched) - len(known):
        return f"{about} for {len(known)} launches, and {others} of cases that never ended here"
    return f"{about}, the medians of {sum(map(len, earlier.values()))} earlier launches"


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 12 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def _by_case(plan: Plan) -> dict[str, list[PlannedRepeat]]:
    """Items by case in the order the suite wrote the cases, references first."""
    items: dict[str, list[PlannedRepeat]] = {case_id: [] for case_id in plan.cases}
    for item in plan.repeats:
        if item.role != "search":  # of a case that has its line
            items[item.case_id].append(item)
    return items


def differing(plan: Plan) -> dict[str, str]:
    """By case, the settings in which the measured cases differ beyond what an id spells out."""
    measured = {item.case_id for item in plan.repeats if item.role == "measure"}
    given = {case_id: _set(plan.cases[case_id]) for case_id in plan.cases if case_id in measured}
    keys = dict.fromkeys(key for found in given.values() for key in found)
    values = {
        k: {case_id: found.get(k, settings.default(k)) for case_id, found in given.items()}
        for k in keys
    }
    varying = [key for key in keys if len(set(values[key].values())) > 1]
    texts = {case_id: [settings.options(plan.cases[case_id].strategy.options)] for case_id in given}
    for key in varying:
        for case_id, value in values[key].items():
            texts[case_id].append(f"{key.rpartition('.')[2]}={value}")
    return {case_id: " ".join(filter(None, parts)) for case_id, parts in texts.items()}


def _set(case: Case) -> dict[str, str]:
    """What the suite set, without what an id shows: model, strategy, world, precision."""
    shown: Any = {"model": True, "model_name": True, "world": True, "strategy": True}
    given = case.model_dump(mode="json", exclude_defaults=True, exclude=shown)
    found = {key: settings.text(value) for key, value in settings.by_key(given).items()}
    found.pop("train.precision", None)
    if (auto := found.pop("auto", None)) is not None:
        found["train.micro_batch_size"] = auto
        if case.regime == "strong":
            found["train.grad_accum"] = auto
    return found


def _cells(case: Case, differences: str, items: list[PlannedRepeat]) -> list[str]:
    first = items[0]
    memory = first.estimated_memory_bytes
    return [
        case.case_id,
        differences,
        first.device,
        str(first.threads_per_rank),
        # A share that does not divide was rounded, so its product is not what was asked.
        "-" if first.skip and case.regime == "strong" else str(case.global_batch_size),
        "-" if first.skip else str(len(items)),
        "no estimate" if memory is None else binary(memory),
        _sent(case, first),
        f"skipped: {first.skip}" if first.skip else _said(case, first),
    ]


def _sent(case: Case, item: PlannedRepeat) -> str:
    """Bytes a rank sends a step; nothing where it is alone, or its batch is a guess."""
    if case.world.size == 1 or item.skip or case.auto is not None:
        return ""
    sent = bytes_sent(case, item.device)
    return "no estimate" if sent is None else binary(sent)


def _said(case: Case, item: PlannedRepeat) -> str:
    """What a line adds of a case that runs: its role, or that its batch is a guess."""
    if case.auto is None:
        return item.role.replace("measure", "")
    return f"micro_batch_size {case.auto}, about {case.train.micro_batch_size}"
