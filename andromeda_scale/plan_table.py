"""Prints a plan: one line a case, and what it all amounts to. No torch."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from andromeda_scale.config import Case, Plan, PlannedRepeat
from andromeda_scale.metrics import binary

_COLUMNS = ("case", "world", "device", "threads", "global batch", "repeats", "memory/rank", "")


def print_plan(plan: Plan) -> None:
    """The dry run, on stdout: what is launched, what is skipped and why, how many launches."""
    # On a pipe nobody wants lines folded at 80 columns.
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=240)
    console.print(Text(f"{plan.suite_name}: {plan.question}"))
    table = Table(box=None, pad_edge=False)
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name in ("case", "") else "right")
    for case_id, items in _by_case(plan).items():
        table.add_row(*_cells(plan.cases[case_id], items))
    console.print(table)
    for line in summary(plan):
        console.print(Text(line))


def summary(plan: Plan) -> list[str]:
    """Launches, an upper bound of the time, and the planner's notes."""
    launched = [item for item in plan.repeats if item.skip is None]
    references = sum(item.role == "reference" for item in launched)
    skipped = {item.case_id for item in plan.repeats if item.skip and item.role == "measure"}
    most_s = sum(plan.cases[item.case_id].limits.timeout_s for item in launched)
    return [
        f"{len(launched)} launches: {len(launched) - references} of cases, {references} parity "
        f"references; {len(skipped)} cases skipped",
        f"time: not estimated, nothing was measured here; at most {duration(most_s)} "
        "(launches x limits.timeout_s)",
        *(f"note: {note}" for note in plan.notes),
    ]


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
        items[item.case_id].append(item)
    return items


def _cells(case: Case, items: list[PlannedRepeat]) -> list[str]:
    first = items[0]
    memory = first.estimated_memory_bytes
    return [
        case.case_id,
        str(case.world),
        first.device,
        str(first.threads_per_rank),
        str(case.global_batch_size),
        "-" if first.skip else str(len(items)),
        "-" if memory is None else binary(memory),
        f"skipped: {first.skip}" if first.skip else "reference" * (first.role == "reference"),
    ]
