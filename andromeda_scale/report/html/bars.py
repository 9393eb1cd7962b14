"""Horizontal stacked bars, a case a bar: what two figures share. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from andromeda_scale.report.html.figure import Choice, Trace, height_of
from andromeda_scale.report.html.source import Source, by_world, num

MAX_BARS = 24  # in one view; more are split by their world

Rows = list[dict[str, Any]]
Part = tuple[str, str, Callable[[dict[str, Any]], Any]]  # name, colour, value
Hover = Callable[[str, dict[str, Any]], str]  # more about a part of a row


def views(rows: Rows) -> list[tuple[str, Rows]]:
    """All rows, where they can be read at once; otherwise a view a world."""
    if len(rows) <= MAX_BARS:
        return [("all", rows)]
    return list(by_world(rows).items())


def named(source: Source, rows: Rows) -> list[str]:
    """What stands beside each bar; the world is left out where all have the same."""
    if len({row["world_size"] for row in rows}) == 1:
        return [source.name(row) for row in rows]
    return [source.case(row) for row in rows]


def stacked(
    source: Source,
    rows: Rows,
    parts: Sequence[Part],
    unit: str,
    scale: float,
    hover: Hover = lambda name, row: "",
) -> Choice:
    """A bar a row, of its parts in their order; the first row on top."""
    parts = [part for part in parts if any(num(part[2](row)) is not None for row in rows)]
    names = named(source, rows)
    data: list[Trace] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "legendgroup": name,
            "y": names,
            "x": [num(value(row), scale) for row in rows],
            "marker": {"color": colour},
            "customdata": [hover(name, row) for row in rows],
            "hovertemplate": f"%{{x}} {unit}%{{customdata}}",
        }
        for name, colour, value in parts
    ]
    said = "; ".join(
        f"{case}: "
        + ", ".join(
            f"{name} {x:g} {unit}"
            for (name, _, value) in parts
            if (x := num(value(row), scale)) is not None
        )
        for case, row in zip(names[:MAX_BARS], rows, strict=False)
    )
    layout = {
        "barmode": "stack",
        "height": height_of(len(rows)),
        "yaxis": {"autorange": "reversed", "automargin": True, "type": "category"},
    }
    return Choice("", data, layout, said)
