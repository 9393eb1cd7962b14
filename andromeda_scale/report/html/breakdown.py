"""Where the seconds of a step go, as stacked bars. No torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from andromeda_scale.metrics.formats import significant
from andromeda_scale.report.html.bars import Part, stacked, views
from andromeda_scale.report.html.figure import Figure, axis
from andromeda_scale.report.html.source import COLOURS, GREY, Source
from andromeda_scale.report.rows import has, interval_of
from andromeda_scale.report.sentence import percent as percent_of

_PARTS: tuple[Part, ...] = (
    ("compute", COLOURS[0], lambda row: row["compute_s"] - (_update(row) or 0)),
    ("update", COLOURS[4], lambda row: _update(row)),
    ("exposed transfer", COLOURS[1], lambda row: row["exposed_transfer_s"]),
    ("exposed wait", COLOURS[7], lambda row: row["exposed_wait_s"]),
    ("data", COLOURS[2], lambda row: row["data_s"]),
    ("host", COLOURS[3], lambda row: row["host_s"]),
    ("end skew", GREY, lambda row: row["end_skew_s"]),
)


_COLUMNS = {"update": "optimizer_compute", "end skew": "end_skew"}


def _interval(part: str, row: dict[str, Any]) -> str:
    """Its seconds' and its share's interval over launches; compute's holds the update."""
    name = _COLUMNS.get(part, part.replace(" ", "_"))
    said = ""
    if has(row, f"{name}_s_low"):
        low, high = (significant(row[f"{name}_s_{end}"] * 1e3, 3) for end in ("low", "high"))
        whole = f" of {significant(row[f'{name}_s'] * 1e3, 3)}" if part == "compute" else ""
        said = f"{whole} [{low}, {high}]"
    if has(row, f"{name}_share"):
        said += f", {percent_of(interval_of(row, f'{name}_share'))}"
    return said


def _update(row: dict[str, Any]) -> float | None:
    """The part of compute in the update; an older record does not tell it apart."""
    return float(row["optimizer_compute_s"]) if has(row, "optimizer_compute_s") else None


def breakdown(source: Source) -> Figure | str:
    """A bar a case of the additive table."""
    rows = [row for row in source.measured if has(row, "profile_step_s")]
    if not rows:
        return "no case has profiled steps (measure.profile_steps)"
    choices = [
        replace(stacked(source, of, _PARTS, "ms", 1e3, _interval), label=label)
        for label, of in views(rows)
    ]
    return Figure(
        "Where the time of a step goes",
        "Means over ranks and profiled steps; the parts add up to the step. Transfer and wait are "
        "communication that no compute hides, after and before the last rank has come. Profiled "
        "steps are longer than timed ones: the table below says by how much.",
        choices,
        {"xaxis": axis("ms of a profiled step")},
        choose="world",
    )
