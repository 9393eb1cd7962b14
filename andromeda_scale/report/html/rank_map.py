"""Compute and wait of every rank as a heat map: a slow rank is a spot. No torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from andromeda_scale.metrics.formats import milliseconds
from andromeda_scale.report.html.figure import Choice, Figure, Trace, axis
from andromeda_scale.report.html.source import Source, nums, words
from andromeda_scale.report.rows import Row, has

_MIN_SPAN = 5.0  # percent: less apart than this, ranks look alike


def rank_map(source: Source) -> Figure | str:
    """A view a case of two ranks or more."""
    ranks = source.results.ranks
    if ranks.empty or not ranks["compute_s"].notna().any():
        return "no rank has profiled steps (measure.profile_steps)"
    pooled = source.results.repeats.loc[source.results.repeats["pooled"], ["case_id", "repeat"]]
    ranks = ranks.merge(pooled, on=["case_id", "repeat"])
    of = {str(case_id): frame for case_id, frame in ranks.groupby("case_id", sort=False)}
    rows = [
        row
        for row in source.measured
        if row["world_size"] > 1
        and row["case_id"] in of
        and of[row["case_id"]]["compute_s"].notna().all()
    ]
    if not rows:
        return "no case of two ranks or more has profiled steps"
    suspect = max(range(len(rows)), key=lambda i: _suspicion(rows[i]))
    return Figure(
        "Compute and wait of every rank",
        "Compute against the median rank of the same launch, in percent: red is slower. Below, the "
        "share of its step that a rank waits for others in communication: a late rank waits least. "
        "A column is a node, its cells are ranks, means over launches; on one node a column is a "
        "rank and a row a launch.",
        [_choice(source, row, of[row["case_id"]]) for row in rows],
        {
            "height": 440,
            "grid": {"rows": 2, "columns": 1, "pattern": "independent", "ygap": 0.35},
        },
        chosen=suspect,
    )


def _suspicion(row: Row) -> tuple[bool, float]:
    """By which the case shown first is chosen: a blamed rank, then imbalance."""
    return has(row, "blamed_rank"), float(row["imbalance"]) if has(row, "imbalance") else 0.0


def _choice(source: Source, row: Row, frame: pd.DataFrame) -> Choice:
    frame = frame.assign(compute=_compute(frame), wait=_wait(frame))
    if row["nodes"] > 1:
        means = frame.groupby("rank")[["compute", "wait"]].mean()
        shape = (int(row["nodes"]), int(row["ranks_per_node"]))
        compute, wait = (means[name].to_numpy().reshape(shape).T for name in means)
        hosts = frame.drop_duplicates("rank").sort_values("rank")["host"].iloc[:: shape[1]]
        columns = [words(f"{index} {host}", 20) for index, host in enumerate(hosts)]
        lines, x, y = [str(i) for i in range(shape[1])], "node", "local rank"
    else:
        compute, wait = (
            frame.pivot(index="repeat", columns="rank", values=name).to_numpy()
            for name in ("compute", "wait")
        )
        columns = [f"r{rank}" for rank in range(compute.shape[1])]
        lines, x, y = [str(n) for n in sorted(frame["repeat"].unique())], "rank", "launch"
    span = max(_MIN_SPAN, float(np.abs(compute).max()))
    layout = {
        "xaxis": axis("", type="category", showgrid=False, nticks=12),
        "xaxis2": axis(x, type="category", showgrid=False, nticks=12),
        "yaxis": axis(y, type="category", showgrid=False, nticks=8),
        "yaxis2": axis(y, type="category", showgrid=False, nticks=8),
    }
    data = [
        _map(compute, columns, lines, "compute", "", span),
        _map(wait, columns, lines, "wait", "2", None),
    ]
    return Choice(source.case(row), data, layout, _said(row, frame))


def _compute(frame: pd.DataFrame) -> Any:
    """Percent above the median rank of the same launch."""
    median = frame.groupby("repeat")["compute_s"].transform("median")
    return (frame["compute_s"] / median.where(median > 0) - 1).fillna(0) * 100


def _wait(frame: pd.DataFrame) -> Any:
    """Percent of a rank's profiled step."""
    step = frame["profile_step_s"]
    return (frame["exposed_wait_s"] / step.where(step > 0)).fillna(0) * 100


def _map(
    values: np.ndarray, x: list[str], y: list[str], name: str, number: str, span: float | None
) -> Trace:
    """Cells in percent, around 0 with a span, from 0 without."""
    return {
        "type": "heatmap",
        "x": x,
        "y": y,
        "z": [nums(line) for line in np.round(values, 2)],
        "xaxis": f"x{number}",
        "yaxis": f"y{number}",
        "colorscale": "Cividis" if span is None else "RdBu",
        "zmin": 0 if span is None else -span,
        "zmax": max(1.0, float(values.max())) if span is None else span,
        "colorbar": {
            "title": {"text": f"{name} %", "side": "right"},
            "len": 0.45,
            "y": 0.22 if number else 0.78,
            "thickness": 12,
        },
        "xgap": 1 if len(x) < 200 else 0,
        "ygap": 1,
        "name": name,
        "hovertemplate": "%{x}, %{y}: %{z} %",
    }


def _said(row: Row, frame: pd.DataFrame) -> str:
    means = frame.groupby("rank")["compute_s"].mean()
    return (
        f"compute from {milliseconds(means.min())} ms on rank {means.idxmin()} to "
        f"{milliseconds(means.max())} ms on rank {means.idxmax()}, means over launches; "
        f"imbalance {row['imbalance']:.1%}"
    )
