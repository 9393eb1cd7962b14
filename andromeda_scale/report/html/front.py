"""Throughput against memory, with the front that nothing dominates. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from andromeda_scale.metrics.formats import binary, rate
from andromeda_scale.report.html.figure import Choice, Figure, axis
from andromeda_scale.report.html.source import GREY, Source, by_world, num, nums
from andromeda_scale.report.rows import Row, has

GIB = 2.0**30


def front(source: Source) -> Figure | str:
    """A point a case, a view a world."""
    rows = [row for row in source.measured if has(row, "peak_memory_bytes")]
    if not rows:
        return "no case has both a speed and a peak of memory"
    choices = [_choice(source, name, of) for name, of in by_world(rows).items()]
    return Figure(
        "Throughput against memory",
        "Up and to the left is better. The line joins the cases that no other beats in both; "
        "memory is the peak of the fullest rank.",
        choices,
        {
            # Around one point alone there would be room for less than nothing.
            "xaxis": axis("peak memory of a rank, GiB", rangemode="nonnegative"),
            "yaxis": axis("tokens/s per rank", rangemode="nonnegative"),
            "height": 440,
        },
        choose="world",
    )


def undominated(rows: Sequence[Row]) -> list[Row]:
    """Rows that no other beats in throughput without more memory, the least memory first."""
    kept: list[Row] = []
    order = sorted(rows, key=lambda row: (row["peak_memory_bytes"], -row["tokens_per_s_per_gpu"]))
    for row in order:
        if not kept or row["tokens_per_s_per_gpu"] > kept[-1]["tokens_per_s_per_gpu"]:
            kept.append(row)
    return kept


def _choice(source: Source, label: str, rows: list[dict[str, Any]]) -> Choice:
    best = undominated(rows)
    ids = {row["case_id"] for row in best}
    line = {
        "type": "scatter",
        "mode": "lines",
        "x": nums((row["peak_memory_bytes"] for row in best), 1 / GIB),
        "y": nums(row["tokens_per_s_per_gpu"] for row in best),
        "line": {"color": GREY, "dash": "dot"},
        "hoverinfo": "skip",
    }
    points = []
    for row in rows:
        colour, marker = source.style(row)
        name = source.name(row)
        points.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": name,
                "legendgroup": name,
                "x": [num(row["peak_memory_bytes"], 1 / GIB)],
                "y": [num(row["tokens_per_s_per_gpu"])],
                "text": [name if row["case_id"] in ids and len(best) <= 8 else ""],
                "textposition": "top center",
                "cliponaxis": False,
                "hovertemplate": "%{x} GiB: %{y} tokens/s",
                "marker": {"color": colour, "symbol": marker, "size": 11},
            }
        )
    said = "; ".join(
        f"{source.name(row)}: {rate(row['tokens_per_s_per_gpu'])} tokens/s per rank with "
        f"{binary(row['peak_memory_bytes'])}"
        for row in best
    )
    return Choice(label, [line, *points], said=f"not beaten: {said}")
