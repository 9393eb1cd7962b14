"""Every step of every launch, the warm-up told apart. No torch."""

from __future__ import annotations

import numpy as np
import pandas as pd

from andromeda_scale.metrics.formats import milliseconds
from andromeda_scale.report.html.figure import Choice, Figure, Trace, axis
from andromeda_scale.report.html.source import COLOURS, Source, nums

MAX_POINTS = 300  # of a launch's phase; longer ones show the longest step of each stretch


def traces(source: Source) -> Figure | str:
    """A view a case; a line a launch, dotted where it warms up."""
    steps = source.results.steps
    if steps.empty:
        return "no launch wrote its steps, or an earlier version merged this run"
    of = {str(case_id): frame for case_id, frame in steps.groupby("case_id", sort=False)}
    rows = [row for row in source.rows if row["case_id"] in of]
    choices = []
    for row in rows:
        launches = of[row["case_id"]].groupby("repeat")
        data = [line for repeat, frame in launches for line in _launch(int(str(repeat)), frame)]
        measured = of[row["case_id"]].query("phase == 'measure'")["step_time_s"]
        said = "1 launch" if len(launches) == 1 else f"{len(launches)} launches"
        if len(measured):
            said += (
                f"; steps of the window from {milliseconds(measured.min())} to "
                f"{milliseconds(measured.max())} ms, median {milliseconds(measured.median())} ms"
            )
        choices.append(Choice(source.case(row), data, said=said))
    largest = max(range(len(rows)), key=lambda i: int(rows[i]["world_size"]))
    return Figure(
        "Step times",
        "Each step of each launch, as long as on its slowest rank. Dotted: warm-up, in no number; "
        f"solid: the timed window. Over {MAX_POINTS} steps, a point is the longest of a stretch.",
        choices,
        {
            "xaxis": axis("step"),
            "yaxis": axis("ms", rangemode="tozero"),
            "height": 400,
        },
        chosen=largest,
    )


def _launch(repeat: int, frame: pd.DataFrame) -> list[Trace]:
    name, colour = f"launch {repeat}", COLOURS[repeat % len(COLOURS)]
    lines = []
    for phase, dash in (("warmup", "dot"), ("measure", "solid")):
        of_phase = frame[frame["phase"] == phase]
        if of_phase.empty:
            continue
        step, step_s = _thinned(of_phase["step"].to_numpy(), of_phase["step_time_s"].to_numpy())
        lines.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if len(step) < 80 else "lines",
                "name": name,
                "legendgroup": name,
                "x": step.tolist(),
                "y": nums(step_s, 1e3),
                "line": {"color": colour, "dash": dash, "width": 1.5},
                "marker": {"size": 4},
                "hovertemplate": f"step %{{x}} ({phase}): %{{y}} ms",
            }
        )
    return lines


def _thinned(step: np.ndarray, step_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most MAX_POINTS: of each stretch its longest step."""
    if len(step) <= MAX_POINTS:
        return step, step_s
    edges = np.linspace(0, len(step), MAX_POINTS + 1).astype(int)[:-1]
    return step[edges], np.maximum.reduceat(step_s, edges)
