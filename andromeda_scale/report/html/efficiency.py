"""Efficiency over ranks. No torch."""

from __future__ import annotations

from andromeda_scale.report.html.curves import curves, hidden, worlds
from andromeda_scale.report.html.figure import Choice, Figure, axis
from andromeda_scale.report.html.source import GREY, Source
from andromeda_scale.report.rows import has, is_base


def efficiency(source: Source) -> Figure | str:
    """A line a strategy against its own smallest world."""
    rows = [row for row in source.measured if has(row, "efficiency") and not is_base(row)]
    if not rows:
        return "no strategy was measured at two worlds that may be compared"
    series = {name: of for name, of in source.series().items() if not all(map(is_base, of))}
    said = "; ".join(f"{source.case(row)}: {row['efficiency']:.1%}" for row in rows)
    sizes = [int(row["world_size"]) for row in source.measured]
    ideal = {
        "type": "scatter",
        "name": "ideal",
        "legendgroup": "ideal",
        "x": [min(sizes), max(sizes)],
        "y": [100, 100],
        "mode": "lines",
        "line": {"color": GREY, "dash": "dash"},
        "hoverinfo": "skip",
    }
    return Figure(
        "Scaling efficiency",
        "Each strategy against itself at its smallest measured world, which is 100 %. Bands: 95 % "
        f"intervals over launches.{hidden(series)}",
        [Choice("all", [ideal, *curves(source, series, "efficiency", 100)], said=said)],
        {"xaxis": worlds(source), "yaxis": axis("%", rangemode="tozero"), "height": 420},
    )
