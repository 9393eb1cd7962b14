"""What fills the memory of a rank, against what there is. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from andromeda_scale.metrics.formats import binary
from andromeda_scale.report.html.bars import Part, named, stacked, views
from andromeda_scale.report.html.figure import Choice, Figure, Trace, axis
from andromeda_scale.report.html.source import COLOURS, GREY, Source, num
from andromeda_scale.report.rows import has

_DRAWN = 10  # times the largest bar
_UNITS = (("GiB", 2.0**30), ("MiB", 2.0**20))
_PARTS: tuple[Part, ...] = (
    ("states", COLOURS[0], lambda row: row["state_bytes"]),
    ("communication buffers", COLOURS[1], lambda row: row["communication_buffers_bytes"]),
    ("activations", COLOURS[2], lambda row: row["activation_bytes"]),
    ("outside the allocator", GREY, lambda row: row["outside_allocator_bytes"]),
)


def memory(source: Source) -> Figure | str:
    """A bar a case, also of those that only the plan has numbers of, such as one out of memory."""
    rows = [
        row for row in source.rows if has(row, "state_bytes") or has(row, "estimated_memory_bytes")
    ]
    if not rows:
        return "no case has read back its memory, and the plan has no estimate"
    capacity = _capacities(source)
    unit, size = _UNITS[0] if _largest(rows) >= _UNITS[0][1] else _UNITS[1]
    # Far beyond the bars, as a host's is, capacity is said: drawn, it would leave them no width.
    drawn = bool(capacity) and max(capacity.values()) < _DRAWN * _largest(rows)
    choices = [
        _with_marks(source, replace(stacked(source, of, _PARTS, unit, 1 / size), label=label), of,
                    capacity if drawn else {}, unit, size)
        for label, of in views(rows)
    ]  # fmt: skip
    return Figure(
        "Memory of a rank",
        "Each part is the largest of any rank. Diamond: what the plan estimated. "
        f"{_of_capacity(capacity, drawn=drawn)} A case without a bar was not measured: the table "
        "says why.",
        choices,
        {"xaxis": axis(unit, rangemode="tozero")},
        choose="world",
    )


def _of_capacity(capacity: Mapping[str, float], *, drawn: bool) -> str:
    if not capacity:
        return "No device said its capacity."
    if drawn:
        return "Bar: capacity of the device."
    least, most = binary(min(capacity.values())), binary(max(capacity.values()))
    return f"A rank has room for {least if least == most else f'{least} to {most}'}."


def _capacities(source: Source) -> dict[str, float]:
    """Bytes that the rank of each case has that has least, of those that said it."""
    ranks = source.results.ranks
    if ranks.empty:
        return {}
    found = ranks.dropna(subset=["capacity_bytes"]).groupby("case_id")["capacity_bytes"].min()
    return {str(case_id): float(value) for case_id, value in found.items()}


def _largest(rows: list[dict[str, Any]]) -> float:
    names = ("peak_allocated_bytes", "estimated_memory_bytes")
    return max((float(row[name]) for row in rows for name in names if has(row, name)), default=0.0)


def _with_marks(
    source: Source,
    choice: Choice,
    rows: list[dict[str, Any]],
    capacity: dict[str, float],
    unit: str,
    size: float,
) -> Choice:
    names = named(source, rows)

    def marks(name: str, symbol: str, values: list[float | None], pixels: int) -> Trace:
        return {
            "type": "scatter", "mode": "markers", "name": name, "legendgroup": name, "y": names,
            "x": values, "hovertemplate": f"%{{x}} {unit}",
            "marker": {"symbol": symbol, "size": pixels, "color": GREY,
                       "line": {"width": 2, "color": GREY}},
        }  # fmt: skip

    estimates = [
        num(row["estimated_memory_bytes"], 1 / size) if has(row, "estimated_memory_bytes") else None
        for row in rows
    ]
    limits = [num(capacity.get(row["case_id"]), 1 / size) for row in rows]
    data = [*choice.data, marks("estimate", "diamond-open", estimates, 9)]
    if any(limit is not None for limit in limits):
        data.append(marks("capacity", "line-ns", limits, 16))
    return replace(choice, data=data)
