"""What pictures of results are made of: numbers and failures of rows, bars, panels, lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from gpu_results import MEASURED
from gpu_tables import Row
from plotly import graph_objects as go
from plotly.subplots import make_subplots

from andromeda_scale.report.html.source import COLOURS, MARKERS

Rows = Sequence[Row]
WIDTH = 700  # pixels, as all sizes
INK, BAD = "#1b1b19", "#b3261e"  # text, and what failed: as on the report's page
AXES = {"tokens/s/GPU": "tokens/s per GPU", "GiB": "peak GiB", "step ms": "ms per step"}
AXES |= {"MFU": "MFU, % of peak", "mJ/token": "mJ per token", "exposed ms": "exposed ms"}
SAID = {"oom": "OOM", "pending": "not started", "interrupted": "cut short"}  # for a status


def value(row: Row, column: str) -> float | None:
    """The number of a row in a column of the table; None where it was not measured."""
    if row["status"] != "ok":
        return None
    try:
        found = MEASURED[column][0](row)
    except (KeyError, TypeError):  # not collected
        return None
    return None if pd.isna(found) else float(found) * (100 if column == "MFU" else 1)


def failure(row: Row) -> str:
    """What a picture says in the place of a number."""
    status = str(row["status"])
    return "not measured" if status == "ok" else SAID.get(status, status)


def grouped(rows: Rows, series: Callable[[Row], str]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(series(row), []).append(row)
    return found


def _error(rows: Rows, column: str) -> dict[str, Any] | None:
    """Plotly's error bars: 95 % intervals over launches; of one launch there is none."""
    if column != "tokens/s/GPU":
        return None
    ends = [[row.get(f"tokens_per_s_per_gpu_{end}") for row in rows] for end in ("low", "high")]
    if all(pd.isna(end) for end in ends[0]):
        return None
    low, high = (
        [
            None if pd.isna(end) else abs(float(end) - row["tokens_per_s_per_gpu"])
            for row, end in zip(rows, of, strict=True)
        ]
        for of in ends
    )
    return {"type": "data", "symmetric": False, "array": high, "arrayminus": low, "thickness": 1.5}


def figure_of(height: int, **layout: Any) -> go.Figure:
    """An empty one in the report's manner; its legend lies above it."""
    figure = make_subplots(**layout) if layout else go.Figure()
    figure.update_layout(
        template="plotly_white", width=WIDTH, height=height,
        font={"family": "Arial, Helvetica, sans-serif", "size": 12, "color": INK},
        margin={"l": 70, "r": 25, "t": 34, "b": 50},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
    )  # fmt: skip
    return figure


def mark(figure: go.Figure, text: str, **where: Any) -> None:
    """A failure in words, at its place."""
    figure.add_annotation(text=text, showarrow=False, font={"color": BAD, "size": 11}, **where)


def bars(
    rows: Rows,
    group: Callable[[Row], str],
    series: Callable[[Row], str],
    column: str,
    form: str,
) -> go.Figure:
    """A bar a row, those of a group side by side, their numbers above them."""
    figure = figure_of(380)
    for index, (name, of) in enumerate(grouped(rows, series).items()):
        measured = [row for row in of if value(row, column) is not None]
        failed = [row for row in of if value(row, column) is None]
        common = {"name": name, "offsetgroup": name, "textposition": "outside", "textangle": 0}
        common |= {"cliponaxis": False, "marker_color": COLOURS[index]}
        figure.add_bar(
            x=[group(row) for row in measured],
            y=[value(row, column) for row in measured],
            text=[format(value(row, column), form) for row in measured],
            error_y=_error(measured, column),
            **common,
        )
        if failed:
            figure.add_bar(
                x=[group(row) for row in failed],
                y=[0.0] * len(failed),
                text=[failure(row) for row in failed],
                textfont_color=BAD,
                showlegend=not measured,
                **common,
            )
    figure.update_layout(barmode="group", uniformtext={"minsize": 10, "mode": "show"})
    figure.update_xaxes(type="category", categoryarray=list(grouped(rows, group)))
    figure.update_yaxes(title_text=AXES[column], tickformat=",", rangemode="tozero")
    return figure


def panels(
    rows: Rows, x: str, name: str, columns: Sequence[str], series: Callable[[Row], str]
) -> go.Figure:
    """A panel a column, one above the other, over an axis of doublings; a line a series."""
    rows = sorted(rows, key=lambda row: int(row[x]))
    lines = grouped(rows, series)
    figure = figure_of(
        60 + 210 * len(columns), rows=len(columns), shared_xaxes=True, vertical_spacing=0.07
    )
    for line, column in enumerate(columns, start=1):
        place = {"row": line, "col": 1}
        for index, (title, of) in enumerate(lines.items()):
            measured = [row for row in of if value(row, column) is not None]
            if not measured:
                continue
            figure.add_scatter(
                x=[int(row[x]) for row in measured],
                y=[value(row, column) for row in measured],
                name=f"{AXES[column]}, {title}" if line > 1 else title,
                mode="lines+markers",
                line={"color": COLOURS[index]},
                marker={"size": 8, "symbol": MARKERS[index]},
                error_y=_error(measured, column),
                showlegend=line == 1 and len(lines) > 1,
                **place,
            )
        if failed := [row for row in rows if value(row, column) is None]:
            figure.add_scatter(
                x=[int(row[x]) for row in failed],
                y=[0.0] * len(failed),
                text=[
                    failure(row) if int(row[x]) in _apart([int(one[x]) for one in failed]) else ""
                    for row in failed
                ],
                name=f"{AXES[column]}, failed",
                mode="text",
                textposition="top center",
                textfont={"color": BAD, "size": 11},
                cliponaxis=False,
                showlegend=False,
                **place,
            )
        form = {"rangemode": "tozero", "tickformat": ",~r"}
        figure.update_yaxes(title_text=AXES[column], **form, row=line, col=1)
    ticks = sorted({int(row[x]) for row in rows})
    written = [f"{tick:,}" if tick in _apart(ticks) else "" for tick in ticks]
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=written)
    figure.update_xaxes(title_text=name, row=len(columns), col=1)
    return figure


def _apart(places: Sequence[int]) -> list[int]:
    """Those of increasing places whose words do not run into one another."""
    found: list[int] = []
    for place in places:
        if not found or place >= 1.4 * found[-1]:
            found.append(place)
    return found


def speeds(rows: Rows, name: Callable[[Row], str]) -> go.Figure:
    """A bar a row, at its end its number and its peak memory."""
    column = "tokens/s/GPU"
    measured = [row for row in rows if value(row, column) is not None]
    found = [value(row, column) or 0.0 for row in measured]
    error = _error(measured, column)
    figure = figure_of(110 + 46 * len(rows))
    figure.add_bar(
        x=found,
        y=[name(row) for row in measured],
        name=AXES[column],
        orientation="h",
        marker_color=COLOURS[0],
        error_x=error,
    )
    above = error["array"] if error else [0.0] * len(found)
    ends = [x + (more or 0.0) for x, more in zip(found, above, strict=True)]
    longest = 1.35 * max(ends, default=1.0)
    ordered = [*measured, *(row for row in rows if row not in measured)]
    figure.add_scatter(
        x=[x + 0.01 * longest for x in (*ends, *[0.0] * (len(rows) - len(ends)))],
        y=[name(row) for row in ordered],
        name="with peak memory",
        mode="text",
        text=[_with_memory(row) for row in ordered],
        textposition="middle right",
        textfont={"color": [INK if row in measured else BAD for row in ordered]},
    )
    title = f"{AXES[column]}; beside it, peak memory"
    figure.update_layout(showlegend=False)
    figure.update_xaxes(title_text=title, tickformat=",", range=[0, longest])
    names = [name(row) for row in rows]
    figure.update_yaxes(type="category", categoryarray=names, autorange="reversed", automargin=True)
    return figure


def _with_memory(row: Row) -> str:
    number, gib = value(row, "tokens/s/GPU"), value(row, "GiB")
    if number is None:
        return failure(row)
    return f"{number:,.0f}" if gib is None else f"{number:,.0f}, {gib:.1f} GiB"
