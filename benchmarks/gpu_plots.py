"""Draws tables of `gpu_results.py`: a picture beside each, from the same records.

    python benchmarks/gpu_plots.py docs/results/h200    # each TABLE/plot.svg; needs chromium

PLOTS says which tables have one, and how it is drawn. A number is the one of the table's column, a
series has the colour that the report would give it, and what failed is named where it would stand.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
from gpu_results import rows_of
from gpu_shapes import (
    AXES,
    INK,
    Rows,
    bars,
    failure,
    figure_of,
    grouped,
    mark,
    panels,
    speeds,
    value,
)
from gpu_svg import write_svg
from gpu_tables import PUBLISHED_MS, SIZES, TABLES, Row
from plotly import graph_objects as go

from andromeda_scale.registry import load
from andromeda_scale.report.html.source import COLOURS, GREY, MARKERS
from andromeda_scale.suite import settings


def launches(rows: Rows) -> go.Figure:
    """A dot a launch: ours, then each peer, and what ours shall reach."""
    column, ours = "tokens/s/GPU", [row for row in rows if row["run"].startswith("ours")]
    peers = [row for row in rows if row not in ours]
    figure = figure_of(240)
    named = grouped([*ours, *peers], lambda row: "ours" if row in ours else _strategy(row))
    for index, (name, of) in enumerate(named.items()):
        x = [value(row, column) for row in of if value(row, column) is not None]
        marker = {"color": COLOURS[index], "symbol": MARKERS[index], "size": 12, "opacity": 0.8}
        figure.add_scatter(
            x=x, y=[name] * len(x), name=name, mode="markers", marker=marker, showlegend=False
        )
        failed = [row for row in of if value(row, column) is None]
        for line, row in enumerate(failed):
            text = f"{row['run']}: {failure(row)}"
            mark(figure, text, x=0, xref="x domain", xanchor="left", y=name, yshift=-12 * line)
    if (bound := _reach("llama", rows)) is not None:
        said = {"annotation_text": f"reach {bound:,.0f}", "annotation_position": "top"}
        figure.add_vline(bound, line={"color": GREY, "dash": "dash"}, **said)
    figure.update_xaxes(title_text=AXES[column], tickformat=",")
    figure.update_yaxes(type="category", categoryarray=list(named), range=[len(named) - 0.5, -0.5])
    figure.update_layout(margin={"l": 90})
    return figure


def worlds(rows: Rows) -> go.Figure:
    """A pair of bars a strategy: one GPU, paler, and two; below them what of communication is
    exposed, the peak of memory, and the efficiency."""
    pairs = grouped(rows, _strategy)
    shown = {"tokens/s/GPU": ",.0f", "exposed ms": ".1f", "GiB": ".1f"}
    heights = {"rows": 3, "shared_xaxes": True, "vertical_spacing": 0.07}
    figure = figure_of(640, **heights, row_heights=[0.5, 0.25, 0.25])
    for line, (column, form) in enumerate(shown.items(), start=1):
        one = bars(rows, _strategy, _gpus, column, form)
        figure.add_traces(one.data, rows=line, cols=1)
        figure.update_yaxes(title_text=AXES[column], rangemode="tozero", tickformat=",", row=line)
    figure.update_xaxes(type="category", categoryarray=list(pairs))
    figure.update_layout(barmode="group", uniformtext={"minsize": 10, "mode": "show"})
    colours = dict(zip(pairs, COLOURS, strict=False))
    for trace in figure.data:
        trace.marker.color = [colours[name] for name in trace.x]
        trace.marker.opacity = 0.5 if trace.name == "1 GPU" else 1
        trace.text = [f"{trace.name}<br>{said.replace(' ', '<br>')}" for said in trace.text]
        trace.textfont.size = 11
        if trace.error_y.array is not None:  # its end takes the place of the number
            trace.textposition, trace.insidetextanchor = "inside", "start"
            trace.textfont.color = INK
    figure.update_layout(showlegend=False, bargap=0.1)
    said = [f"{name}<br>{_efficiency(of)}" for name, of in pairs.items()]
    figure.update_xaxes(tickvals=list(pairs), ticktext=said)
    return figure


def sizes(rows: Rows) -> go.Figure:
    """A line a way to compute over the sizes of a model, and what was published."""
    figure = figure_of(400)
    names = [name for name in SIZES if any(_size(row) == name for row in rows)]
    figure.add_scatter(
        x=names,
        y=[PUBLISHED_MS[name] for name in names],
        name="published, fp32, another GPU",
        line={"color": GREY, "dash": "dash"},
        marker={"symbol": "circle-open", "size": 9},
    )
    failed = 0
    ways = grouped(rows, lambda row: f"{row['precision']}, {compiled(row)}")
    for index, (name, of) in enumerate(ways.items()):
        of = sorted(of, key=lambda row: SIZES.index(_size(row)))
        figure.add_scatter(
            x=[_size(row) for row in of],
            y=[value(row, "step ms") for row in of],
            name=name,
            mode="lines+markers",
            line={"color": COLOURS[index]},
            marker={"symbol": MARKERS[index], "size": 9},
        )
        for row in (row for row in of if value(row, "step ms") is None):
            where = {"x": _size(row), "yref": "y domain", "y": 0}
            mark(figure, f"{name}: {failure(row)}", **where, yshift=8 + 13 * failed)
            failed += 1
    ticks = [part * 10**power for power in range(5) for part in (1, 2, 5)]
    figure.update_xaxes(type="category", title_text="model size")
    figure.update_yaxes(type="log", title_text=f"{AXES['step ms']} (log)", tickvals=ticks)
    return figure


def levers(rows: Rows) -> go.Figure:
    """A dot a launch: what its step takes more than one of the first settings of its time; one of
    the same settings again shows what chance does."""
    ((share, _),) = TABLES["levers"].columns.values()
    times = grouped(rows, lambda row: str(row["run"]).partition("-")[0])
    placed = [(row, _undone(row, _first(of))) for of in times.values() for row in of]
    marked = [(row, words) for row, words in placed if row["status"] == "ok"]
    labels = dict.fromkeys(words for _, words in placed)
    figure = figure_of(110 + 26 * len(labels))
    for index, (gpus, of) in enumerate(grouped([row for row, _ in marked], _gpus).items()):
        figure.add_scatter(
            x=[100 * (share(row, rows) - 1) for row in of],
            y=[words for row, words in marked if _gpus(row) == gpus],
            name=f"{gpus}, {of[0]['model']}",
            mode="markers",
            marker={"color": COLOURS[index], "symbol": MARKERS[index], "size": 10},
        )
    for row, words in placed:
        if row["status"] != "ok":
            mark(figure, failure(row), x=0, y=words, xanchor="left")
    figure.add_vline(0, line={"color": GREY, "dash": "dash"})
    figure.update_xaxes(
        title_text="% that a step takes longer than with the first settings on its host"
    )
    figure.update_yaxes(
        type="category",
        categoryarray=list(labels),
        range=[len(labels) - 0.5, -0.5],
        automargin=True,
    )
    return figure


def _first(rows: Rows) -> Row:
    """The first that was measured: what others are held against."""
    return next((row for row in rows if row["status"] == "ok"), rows[0])


def _undone(row: Row, first: Row) -> str:
    """The keys in which a row's settings differ from the first ones, as the row has them."""
    keys = [_keys(one) for one in (row, first)]
    of_strategy = load("strategy", row["strategy"]).Options().model_dump(mode="json")
    defaults = {key: settings.text(of) for key, of in of_strategy.items()}
    unlike = dict.fromkeys(key for key in keys[0] | keys[1] if keys[0].get(key) != keys[1].get(key))
    said = (
        f"{key.rpartition('.')[2]}={keys[0].get(key) or defaults.get(key) or settings.default(key)}"
        for key in unlike
    )
    return ", ".join(said) or "the first again"


def _keys(row: Row) -> dict[str, str]:
    """Every key that a row's suite set, its strategy's options among them."""
    return settings.others(row) | dict(part.split("=") for part in row["options"].split())


def _andromeda(rows: Rows) -> go.Figure:
    figure = _by_attention(rows, lambda row: f"{row['model']}<br>{_length(row)}", "MFU", ".1f")
    if (bound := _reach("andromeda", rows)) is not None:
        line = {"color": GREY, "dash": "dash"}
        figure.add_hline(100 * bound, line=line, name=f"reach {bound:.0%}", showlegend=True)
    return figure


def _by_attention(rows: Rows, group: Callable[[Row], str], column: str, form: str) -> go.Figure:
    return bars(rows, group, lambda row: _setting(row, "train.attention"), column, form)


def _reach(name: str, rows: Rows) -> float | None:
    """The bound that every judged row of a table has in common."""
    of_rows = (TABLES[name].reach(row, rows) for row in rows if row["status"] == "ok")
    bounds = {reach.bound for reach in of_rows if reach is not None}
    return bounds.pop() if len(bounds) == 1 else None


def _efficiency(rows: Rows) -> str:
    of_two = [row for row in rows if row["world_size"] > 1]
    found = [row.get("efficiency") if row["status"] == "ok" else None for row in of_two]
    return ", ".join("no efficiency" if pd.isna(e) else f"efficiency {e:.3f}" for e in found)


def _setting(row: Row, key: str) -> str:
    return str(settings.others(row).get(key, settings.default(key)))


def _strategy(row: Row) -> str:
    return str(row["strategy"])


def _size(row: Row) -> str:
    return str(row["model"]).removeprefix("cs336-")


def _gpus(row: Row) -> str:
    return "1 GPU" if row["world_size"] == 1 else f"{row['world_size']} GPUs"


def _length(row: Row) -> str:
    return f"T {row['seq_len']:,}"


def _model(row: Row) -> str:
    """With checkpoints it is another line."""
    checkpoints = _setting(row, "train.activation_checkpointing")
    return str(row["model"]) + ("" if checkpoints == "none" else f", {checkpoints} checkpointed")


def _alibi(row: Row) -> str:
    config = json.loads(row["model_config"])
    return f"{_length(row)}<br>{'ALiBi' if config['alibi_num_heads'] else 'no ALiBi'}"


def _of_strategy(row: Row, name: str) -> str:
    """A name of two batches or of two strategies would be one bar."""
    strategy = "" if row["strategy"] == "single" else f"{row['strategy']}, "
    return f"{strategy}{name}, B {row['micro_batch_size']}"


def compiled(row: Row) -> str:
    """How a row's model was compiled, in words."""
    how = json.loads(row["other"]).get("train.compile")
    if isinstance(how, Mapping):
        return "CUDA graphs" if how.get("mode") == "reduce-overhead" else "one graph"
    return "compiled blocks" if how else "uncompiled"


def _and_compiled(row: Row, name: str) -> str:
    return f"{name}, compiled" if json.loads(row["other"]).get("train.compile") else name


PLOTS: dict[str, Callable[[Rows], go.Figure]] = {
    "llama": launches,
    "levers": levers,
    "weak": worlds,
    "cs336": sizes,
    "andromeda": _andromeda,
    "context": lambda rows: panels(
        rows, "seq_len", "sequence length T, tokens (log)", ("tokens/s/GPU", "GiB"), _model
    ),
    "batch": lambda rows: panels(
        rows,
        "micro_batch_size",
        "micro batch size B, sequences (log)",
        ("tokens/s/GPU", "mJ/token"),
        lambda row: "training" if row["mode"] == "train_step" else "inference",
    ),
    "attention": lambda rows: _by_attention(rows, _alibi, "step ms", ",.1f"),
    "precision": lambda rows: speeds(
        rows, lambda row: _of_strategy(row, _and_compiled(row, str(row["precision"])))
    ),
    "compile": lambda rows: speeds(rows, lambda row: _of_strategy(row, compiled(row))),
    "checkpointing": lambda rows: speeds(
        rows, lambda row: _and_compiled(row, _setting(row, "train.activation_checkpointing"))
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="the folder of the tables' folders")
    out = parser.parse_args().out
    for name, plot in PLOTS.items():
        if (out / name).is_dir():
            write_svg(plot(rows_of(out / name)), out / name / "plot.svg")
            print(out / name / "plot.svg")


if __name__ == "__main__":
    main()
