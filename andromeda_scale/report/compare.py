"""Run B against run A, for a terminal, a pull request, or a program. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from andromeda_scale.analysis.changes import Change, Changes, Matched
from andromeda_scale.analysis.comparison import FALSE_ALARMS
from andromeda_scale.analysis.results import Results
from andromeda_scale.metrics import METRICS
from andromeda_scale.metrics.formats import NOT_MEASURED
from andromeda_scale.report.columns import WORLD, Column, metric
from andromeda_scale.report.rows import arrange, case_name, has
from andromeda_scale.report.sentence import Sentence, case_ids
from andromeda_scale.report.tables import Table, identity

MAX_NAMED = 3  # cases that a change is said to be of

_COLUMNS = (
    WORLD,
    Column("status A", ("status_before",), lambda row: str(row["ended_before"]), left=True),
    Column("status B", ("status",), lambda row: str(row["ended"]), left=True),
    Column("tokens/s A", ("tokens_per_s_before",), lambda row: _rate(row, "tokens_per_s_before")),
    Column("tokens/s B", ("tokens_per_s",), metric("tokens_per_s")),
    Column("B takes", ("time_ratio", "time_ratio_low", "time_ratio_high"), lambda row: _time(row)),
    Column("launches", ("launches",), lambda row: str(row["launches"])),
    Column("verdict", ("verdict",), lambda row: str(row["verdict"]), left=True),
    Column("memory", ("memory_ratio",), lambda row: _memory(row)),
)
_NOTES = (
    "B takes: the time of B over that of A for the same tokens, with its interval over launches, "
    "{sure:.0%} of each case alone; paired by number of launch where both saw the same batches "
    "(launches: N pairs)",
    "slower, faster: beyond chance, {alarms:.0%} for all cases together (Holm){beyond}; same: the "
    "whole interval within {margin:.0%}; not resolved: this noise hides either, more launches "
    "would tell; failing: not slower, but launches of B failed and none of A did",
)


def compare_table(
    before: Results, after: Results, found: Changes, tolerance: float, margin: float
) -> Table:
    """A row a case of both runs; what changed around them first of all that is said."""
    of = {one.after["case_id"]: one for one in found.matched}
    rows, axes = arrange(after.cases[after.cases["case_id"].isin(list(of))])
    shown = [{**row, **_compared(of[row["case_id"]])} for row in rows]
    beyond = f" and by more than {tolerance:.1%}" if tolerance else ""
    words = {"beyond": beyond, "margin": margin, "sure": 1 - FALSE_ALARMS, "alarms": FALSE_ALARMS}
    notes = [note.format(**words) for note in _NOTES] if shown else []
    notes += [
        f"only in {run}: {case_name(row, ())} ({row['case_id']})"
        for run, only in (("A", found.only_before), ("B", found.only_after))
        for row in only
    ]
    title = f"B against A: {after.question}"
    if before.question != after.question:
        title = f"B ({after.question}) against A ({before.question})"
    said = (*_said(found), _summary(found))
    columns = (*identity(axes), *_COLUMNS)
    return Table(title, columns, shown, notes, verdict=said, verdict_first=True)


def _said(found: Changes) -> Iterator[Sentence]:
    """Changes of software and hardware, then of what ranks read back."""
    if found.silent:
        who = " and ".join(found.silent)
        text = (
            f"No launch of {who} says what it ran on: changes of software and hardware are unknown."
        )
        yield Sentence("changed", text)
    elif not found.system and not found.facts:
        yield Sentence("changed", "A and B: the same software, hardware and facts.")
    for change in found.system:
        text = f"Changed: {change.what}: {change.before} -> {change.after}."
        yield Sentence("changed", text, change.case_ids)
    for change in found.facts:
        text = f"Changed{_where(change, found.matched)}: {_what(change)}."
        yield Sentence("changed", text, change.case_ids)


def _where(change: Change, matched: Sequence[Matched]) -> str:
    if len(change.case_ids) == len(matched):
        return ""
    rows = [one.after for one in matched if one.after["case_id"] in change.case_ids]
    names = [case_name(row, ()) for row in rows[:MAX_NAMED]]
    more = f" and {len(rows) - MAX_NAMED} more" if len(rows) > MAX_NAMED else ""
    return f" in {', '.join(names)}{more}"


def _what(change: Change) -> str:
    effect = f" ({change.effect})" if change.effect else ""
    return f"{change.what}: {change.before} -> {change.after}{effect}"


def _summary(found: Changes) -> Sentence:
    counts = Counter(one.word for one in found.matched)
    words = ", ".join(f"{number} {word}" for word, number in counts.items())
    cases = "1 case" if len(found.matched) == 1 else f"{len(found.matched)} cases"
    ids = case_ids(one.after for one in found.matched)
    return Sentence("summary", f"{cases} of both: {words}.", ids)


def _compared(one: Matched) -> dict[str, Any]:
    ratio = one.ratio
    row: dict[str, Any] = {
        "status_before": one.before["status"],
        "ended_before": _ended(one.before),
        "ended": _ended(one.after),
        "tokens_per_s_before": one.before["tokens_per_s"],
        "verdict": one.word,
        "launches": f"{one.before['num_launches']} / {one.after['num_launches']}",
    }
    if has(one.before, "peak_memory_bytes") and one.before["peak_memory_bytes"] > 0:
        row["memory_ratio"] = one.after["peak_memory_bytes"] / one.before["peak_memory_bytes"]
    if ratio is not None:
        names = ("time_ratio", "time_ratio_low", "time_ratio_high")
        row |= dict(zip(names, ratio.interval, strict=True))
        if ratio.num_pairs:
            row["launches"] = f"{ratio.num_pairs} pairs"
    return row


def _ended(row: Any) -> str:
    """A status, with how many launches are ok where some are not."""
    planned, ok = row["num_repeats_planned"], row["num_repeats_ok"]
    return str(row["status"]) + (f" {ok}/{planned}" if 0 < ok < planned else "")


def _rate(row: Any, name: str) -> str:
    return METRICS["tokens_per_s"].text(row[name]) if has(row, name) else NOT_MEASURED


def _time(row: Any) -> str:
    if not has(row, "time_ratio"):
        return NOT_MEASURED
    if not has(row, "time_ratio_low"):
        return f"{row['time_ratio']:.3f}x"
    return f"{row['time_ratio']:.3f}x [{row['time_ratio_low']:.3f}, {row['time_ratio_high']:.3f}]"


def _memory(row: Any) -> str:
    return f"{row['memory_ratio']:.3f}x" if has(row, "memory_ratio") else NOT_MEASURED
