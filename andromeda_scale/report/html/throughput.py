"""Tokens per second over ranks, with the ideal line. No torch."""

from __future__ import annotations

from andromeda_scale.analysis.laws import REACH
from andromeda_scale.metrics.formats import rate
from andromeda_scale.report.html.curves import curves, hidden, worlds
from andromeda_scale.report.html.figure import Choice, Figure, Trace, axis
from andromeda_scale.report.html.laws import laws_of
from andromeda_scale.report.html.source import GREY, Source, num


def throughput(source: Source) -> Figure | str:
    """A line a strategy; the ideal goes on from the best rank of the smallest world."""
    rows = source.measured
    if not rows:
        return "no case was measured"
    series = source.series()
    drawn = curves(source, series, "tokens_per_s")
    fitted, reach = laws_of(source, drawn)
    spoken = f" Dotted: laws of scaling, as far as they may speak, {REACH} times what was measured."
    spoken = spoken if fitted else ""
    said = "; ".join(
        f"{name}: " + ", ".join(f"{rate(row['tokens_per_s'])} at {row['world_size']}" for row in of)
        for name, of in series.items()
    )
    return Figure(
        "Throughput",
        "Tokens per second of all ranks. Bands: 95 % intervals over launches, where there are "
        "three or more. Dashed: what the best rank of the smallest world would give, were "
        f"nothing lost.{spoken}{hidden(series)}",
        [Choice("all", [_ideal(source), *drawn, *fitted], said=said)],
        {
            "xaxis": worlds(source, reach),
            "yaxis": axis("tokens/s", type="log", tickformat=",~r", dtick="D2"),
            "height": 460,
        },
    )


def _ideal(source: Source) -> Trace:
    sizes = sorted({int(row["world_size"]) for row in source.measured})
    best = max(
        float(row["tokens_per_s_per_gpu"])
        for row in source.measured
        if row["world_size"] == sizes[0]
    )
    return {
        "type": "scatter",
        "name": "ideal",
        "legendgroup": "ideal",
        "x": sizes,
        "y": [num(best * size) for size in sizes],
        "mode": "lines",
        "line": {"color": GREY, "dash": "dash"},
        "hovertemplate": "%{x} ranks: %{y}",
    }
