"""Lines over the world size with bands of their intervals: what two figures share. No torch."""

from __future__ import annotations

from typing import Any

from andromeda_scale.report.html.figure import Trace, axis
from andromeda_scale.report.html.source import Source, num, nums
from andromeda_scale.report.rows import Row, has

MAX_SHOWN = 8  # series; the others are a click away


Series = dict[str, list[dict[str, Any]]]


def curves(source: Source, series: Series, name: str, factor: float = 1.0) -> list[Trace]:
    """A line a series, the highest at its largest world first, and its band behind it."""
    ranked = sorted(
        series.items(), key=lambda item: (-int(item[1][-1]["world_size"]), -_last(item[1], name))
    )
    traces: list[Trace] = []
    for index, (label, rows) in enumerate(ranked):
        rows = [row for row in rows if has(row, name)]
        if rows:
            traces += _line(source, label, rows, name, factor, hidden=index >= MAX_SHOWN)
    return traces


def worlds(source: Source, reach: int = 0) -> dict[str, Any]:
    """The axis of ranks: powers of two side by side, every measured world marked, and `reach`."""
    sizes = sorted({int(row["world_size"]) for row in source.measured} | ({reach} - {0}))
    return axis("ranks", type="log", tickvals=sizes, ticktext=[str(size) for size in sizes])


def hidden(series: Series) -> str:
    """What a caption says when not all series fit."""
    number = len(series)
    if number <= MAX_SHOWN:
        return ""
    return f" {MAX_SHOWN} of {number} series are shown; press a name for another."


def _line(
    source: Source,
    label: str,
    rows: list[dict[str, Any]],
    name: str,
    factor: float,
    *,
    hidden: bool,
) -> list[Trace]:
    colour, marker = source.style(rows[0])
    x = [int(row["world_size"]) for row in rows]
    low = [_bound(row, name, "low") for row in rows]
    high = [_bound(row, name, "high") for row in rows]
    common: Trace = {"type": "scatter", "legendgroup": label}
    if hidden:
        common["visible"] = "legendonly"
    line: Trace = {
        **common,
        "name": label,
        "x": x,
        "y": nums((row[name] for row in rows), factor),
        "text": [_interval(row, name, factor) for row in rows],
        "hovertemplate": "%{x} ranks: %{y}%{text}",
        "mode": "lines+markers",
        "line": {"color": colour},
        "marker": {"color": colour, "symbol": marker, "size": 8},
    }
    if len(rows) == 1:
        return [line | _bar(rows[0], name, factor)]
    band: Trace = {
        **common,
        "x": x + x[::-1],
        "y": nums(low, factor) + nums(high[::-1], factor),
        "fill": "toself",
        "fillcolor": colour,
        "opacity": 0.18,
        "mode": "none",
        "hoverinfo": "skip",
    }
    return [band, line]


def _bound(row: Row, name: str, side: str) -> float:
    """An end of the interval; the number itself where there is none, as at a base."""
    return float(row[f"{name}_{side}"] if has(row, f"{name}_{side}") else row[name])


def _bar(row: Row, name: str, factor: float) -> Trace:
    if not has(row, f"{name}_low"):
        return {}
    high, low = (_bound(row, name, side) for side in ("high", "low"))
    return {
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [num(high - row[name], factor)],
            "arrayminus": [num(row[name] - low, factor)],
        }
    }


def _interval(row: Row, name: str, factor: float) -> str:
    if not has(row, f"{name}_low"):
        return ""
    return f" [{num(row[f'{name}_low'], factor):,}, {num(row[f'{name}_high'], factor):,}]"


def _last(rows: list[dict[str, Any]], name: str) -> float:
    return float(rows[-1][name]) if has(rows[-1], name) else 0.0
