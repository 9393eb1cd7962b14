"""What a probe found: tables in every form, and a plot. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text
from tabulate import tabulate

from andromeda_scale.analysis.fabric import DTYPES
from andromeda_scale.cost.hardware import peak_flops
from andromeda_scale.metrics.formats import NOT_MEASURED, clean, percent, significant
from andromeda_scale.report.media import latex, markdown, markdown_cell, records, to_json

MAX_NOTES = 12


@dataclass(frozen=True)
class Grid:
    """One table of a probe."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class ProbeTable:
    """All tables of a probe and what was left out of them."""

    title: str
    grids: list[Grid]
    notes: list[str]
    points: pd.DataFrame

    def to_rich(self) -> RenderableType:
        parts: list[RenderableType] = [Text(clean(self.title), style="bold")]
        for grid in self.grids:
            table = RichTable(title=clean(grid.title), title_justify="left", box=SIMPLE_HEAD,
                              padding=0)  # fmt: skip
            for index, name in enumerate(grid.head):
                table.add_column(Text(name), justify="left" if index == 0 else "right")
            for row in grid.rows:
                table.add_row(*(Text(clean(cell)) for cell in row))
            parts.append(table)
        return Group(*parts, *(Text(clean(note), style="dim") for note in self.notes))

    def to_markdown(self) -> str:
        parts = [f"## {markdown(self.title)}\n"]
        for grid in self.grids:
            cells = [[markdown_cell(cell) for cell in row] for row in grid.rows]
            align = ["left", *["right"] * (len(grid.head) - 1)]
            pipe = tabulate(
                cells, headers=grid.head, tablefmt="pipe", colalign=align, disable_numparse=True
            )
            parts.append(f"### {markdown(grid.title)}\n\n{pipe}\n")
        return "\n".join([*parts, "".join(f"- {markdown(note)}\n" for note in self.notes)])

    def to_latex(self) -> str:
        """A float a grid; the notes under the last."""
        floats = [
            latex(
                grid.title, grid.head, grid.rows, ["left", *["right"] * (len(grid.head) - 1)],
                self.notes if grid is self.grids[-1] else (),
            )
            for grid in self.grids
        ]  # fmt: skip
        return "\n".join(floats)

    def to_csv(self) -> str:
        """A row a point, with full precision."""
        return self.points.to_csv(index=False)

    def to_json(self) -> str:
        """A row a point, and the notes."""
        notes = [clean(note) for note in self.notes]
        return to_json({"title": self.title, "rows": records(self.points), "notes": notes})


def probe_table(points: pd.DataFrame, problems: Sequence[str]) -> ProbeTable:
    """The points of a probe as tables: device, memory, and the fabric of every world."""
    rows: list[dict[Any, Any]] = points.to_dict("records")
    ok = [row for row in rows if row["status"] == "ok"]
    names = ", ".join(dict.fromkeys(row["device_name"] for row in ok)) or "nothing measured"
    quick = " (quick)" if any(row["quick"] for row in ok) else ""
    grids = [grid for grid in (_matmul(ok), _memory(ok), *_fabric(ok)) if grid.rows]
    return ProbeTable(f"Ceilings of {names}{quick}", grids, _notes(rows, problems), points)


def _matmul(rows: list[dict[Any, Any]]) -> Grid:
    best: dict[tuple[str, int | None], dict[Any, Any]] = {}
    for row in _of(rows, "matmul"):
        key = (row["dtype"], _threads(row))
        if key not in best or row["flops_per_s"] > best[key]["flops_per_s"]:
            best[key] = row
    found = []
    for row in best.values():
        precision = {dtype: name for name, dtype in DTYPES.items()}.get(row["dtype"], row["dtype"])
        peak = peak_flops(row["device_name"], precision)
        share = percent(row["flops_per_s"] / peak.flops_per_s) if peak else NOT_MEASURED
        rate = significant(row["flops_per_s"] / 1e12)
        found.append((row["dtype"], _text(_threads(row)), rate, row["shape"], share))
    head = ("dtype", "threads", "TFLOP/s", "m x n x k", "of the published peak")
    return Grid("Matrix products: the fastest shape", head, found)


def _memory(rows: list[dict[Any, Any]]) -> Grid:
    found = [
        (row["op"], _text(_threads(row)), _bytes(row["size_bytes"]),
         significant(row["bytes_per_s"] / 1e9))
        for row in (*_of(rows, "memory"), *_of(rows, "transfer"))
    ]  # fmt: skip
    return Grid("Memory", ("operation", "threads", "bytes moved", "GB/s"), found)


def _fabric(rows: list[dict[Any, Any]]) -> list[Grid]:
    """One table a world and group: latency of the smallest message, busbw over sizes."""
    groups: dict[tuple[int, int], list[dict[Any, Any]]] = {}
    for row in _of(rows, "collective"):
        groups.setdefault((row["world_size"], row["group_size"]), []).append(row)
    grids = []
    for (world, size), of_group in groups.items():
        asked = sorted({_magnitude(row) for row in of_group})
        shown = asked[-1:0:-2][::-1] or asked
        by_op: dict[str, dict[int, dict[Any, Any]]] = {}
        for row in of_group:
            by_op.setdefault(row["op"], {})[_magnitude(row)] = row
        found = []
        for op, points in by_op.items():
            latency = significant(points[min(points)]["time_s"] * 1e6)
            cells = [significant(points[s]["busbw_gbps"], 3) if s in points else "-" for s in shown]
            found.append((op, latency, *cells))
        where = f"first {size} of {world} ranks" if size < world else f"{size} ranks"
        head = ("", f"us at {_bytes(asked[0])}", *map(_bytes, shown))
        grids.append(Grid(f"Bus bandwidth in GB/s, {where}, by message size", head, found))
    return grids


def _notes(rows: list[dict[Any, Any]], problems: Iterable[str]) -> list[str]:
    """What was not measured, and why; what the numbers are."""
    notes = []
    if any(row["kind"] == "collective" for row in rows):
        notes.append(
            "a collective's time is the max over ranks of blocks of calls, each block after a "
            "barrier, then the median over blocks; of products and memory the fastest block; "
            "collectives in float32; busbw = size / time x the factor of "
            "its collective (nccl-tests)"
        )
    for row in rows:
        if not row["kind"] and row["status"] != "ok":
            notes.append(f"world {row['world_size']}: {row['status']}: {row['cause']}")
    left: dict[tuple[str, str], list[dict[Any, Any]]] = {}
    for row in rows:
        if row["kind"] and row["status"] != "ok":
            where = f"world {row['world_size']}, {row['group_size']} ranks, {row['op']}"
            where = where if row["kind"] == "collective" else f"{row['op']} {row['dtype']}"
            left.setdefault((where, row["status"]), []).append(row)
    for (where, status), of_op in list(left.items())[:MAX_NOTES]:
        sizes = [_magnitude(row) for row in of_op if not pd.isna(row["size_bytes"])]
        span = f" from {_bytes(min(sizes))}" if sizes else ""
        shapes = [row["shape"] for row in of_op if row["shape"]]
        span = f" {', '.join(shapes)}" if shapes else span
        notes.append(f"{where}{span}: {status}: {of_op[0]['cause']}")
    if len(left) > MAX_NOTES:
        notes.append(f"and {len(left) - MAX_NOTES} more, in probe.parquet")
    return notes + [f"problem: {problem}" for problem in list(problems)[:MAX_NOTES]]


def plot(points: pd.DataFrame) -> str:
    """Time and bus bandwidth over message size, a row of plots a group, as an HTML page that needs
    no network."""
    from plotly import graph_objects as go  # here: it takes a second to import
    from plotly.subplots import make_subplots

    ok = points[(points["status"] == "ok") & (points["kind"] == "collective")]
    groups = list(dict.fromkeys(zip(ok["world_size"], ok["group_size"], strict=True)))
    titles = [
        f"{what}, first {size} of {world} ranks"
        for world, size in groups
        for what in ("time", "bus bandwidth")
    ]
    figure: Any = make_subplots(rows=max(1, len(groups)), cols=2, subplot_titles=titles)
    ops = list(dict.fromkeys(ok["op"]))
    for line, (world, size) in enumerate(groups, start=1):
        of_group = ok[(ok["world_size"] == world) & (ok["group_size"] == size)]
        for op in ops:
            one = of_group[of_group["op"] == op]
            for column, values in enumerate((one["time_s"] * 1e6, one["busbw_gbps"]), start=1):
                trace = go.Scatter(
                    x=one["size_bytes"].tolist(), y=values.tolist(), name=op, legendgroup=op,
                    showlegend=(line, column) == (1, 1), mode="lines+markers",
                    line_color=_COLOURS[ops.index(op) % len(_COLOURS)],
                )  # fmt: skip
                figure.add_trace(trace, row=line, col=column)
    figure.update_xaxes(type="log", title_text="bytes", tickformat="~s")
    figure.update_yaxes(type="log", title_text="us", tickformat="~r", col=1)
    figure.update_yaxes(type="log", title_text="GB/s", tickformat="~r", col=2)
    names = ", ".join(dict.fromkeys(ok["device_name"])) or "nothing measured"
    figure.update_layout(title=f"Collectives on {names}", height=120 + 420 * max(1, len(groups)))
    page: str = figure.to_html(include_plotlyjs=True)
    return page


_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito


def _of(rows: list[dict[Any, Any]], kind: str) -> list[dict[Any, Any]]:
    return [row for row in rows if row["kind"] == kind]


def _magnitude(row: dict[Any, Any]) -> int:
    """The power of two next to a size: odd groups round sizes down to their share."""
    return int(2 ** round(math.log2(row["size_bytes"])))


def _threads(row: dict[Any, Any]) -> int | None:
    return None if pd.isna(row["threads"]) else int(row["threads"])


def _text(value: int | None) -> str:
    return NOT_MEASURED if value is None else str(value)


def _bytes(num_bytes: int) -> str:
    """1 KiB, 64 KiB, 768 MiB, 1 GiB."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if num_bytes >= 2**power:
            return f"{significant(num_bytes / 2**power, 3)} {unit}"
    return f"{num_bytes} B"
