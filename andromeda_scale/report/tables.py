"""The scaling table: one definition of its columns for terminal, Markdown and CSV. No torch."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table as RichTable
from rich.text import Text
from tabulate import tabulate

from andromeda_scale.analysis.results import Results
from andromeda_scale.metrics import METRICS, NOT_MEASURED, significant
from andromeda_scale.report.fairness import Fairness
from andromeda_scale.report.notes import footnotes
from andromeda_scale.report.rows import Row, arrange, clean, has, has_base, is_base, label

PLAIN_WIDTH = 120  # columns of text where there is no terminal to ask


@dataclass(frozen=True)
class Column:
    """One column: what a reader sees, and the result columns behind it."""

    header: str
    names: tuple[str, ...]  # in CSV, with full precision
    text: Callable[[Row], str]
    left: bool = False
    folds: bool = False  # over several lines of a terminal, where it must


def metric(name: str) -> Callable[[Row], str]:
    """Prints one metric as the registry says."""
    return lambda row: METRICS[name].text(row[name]) if has(row, name) else NOT_MEASURED


def _world(row: Row) -> str:
    nodes = row["nodes"]
    return f"{nodes}x{row['ranks_per_node']}" if nodes > 1 else str(row["world_size"])


def _step(row: Row) -> str:
    if not has(row, "step_time_s"):
        return NOT_MEASURED
    return (
        f"{significant(row['step_time_s'] * 1e3)} +-{significant(row['step_time_mad_s'] * 1e3, 2)}"
    )


def _speedup(row: Row) -> str:
    return "base" if is_base(row) else metric("speedup")(row)


def _efficiency(row: Row) -> str:
    if is_base(row):
        return "base"
    if not has(row, "efficiency"):
        return NOT_MEASURED
    centre = f"{row['efficiency'] * 100:.1f}"
    if not has(row, "efficiency_low"):
        return centre
    return f"{centre} [{row['efficiency_low'] * 100:.1f}, {row['efficiency_high'] * 100:.1f}]"


def _exposed(row: Row) -> str:
    if not has(row, "comm_exposed_s"):
        return NOT_MEASURED
    return f"{significant(row['comm_exposed_s'] * 1e3, 3)} ({row['comm_exposed_share']:.0%})"


def _imbalance(row: Row) -> str:
    rank = f" r{row['slow_rank']}" if has(row, "slow_rank") else ""
    return metric("imbalance")(row) + rank


def _memory(row: Row) -> str:
    rank = f" r{row['peak_memory_rank']}" if has(row, "peak_memory_rank") else ""
    return metric("peak_memory_bytes")(row) + rank


def _status(row: Row) -> str:
    mark = f" [{row['mark']}]" if row.get("mark") else ""
    if row["status"] == "ok" and row["num_launches"] < row["num_repeats_planned"]:
        return f"ok {row['num_launches']}/{row['num_repeats_planned']}{mark}"
    return f"{row['status']}{mark}"


_INTERVAL = ("{0}", "{0}_low", "{0}_high")


def _with_interval(name: str) -> tuple[str, ...]:
    return tuple(part.format(name) for part in _INTERVAL)


TOKENS = Column("tokens/s", _with_interval("tokens_per_s"), metric("tokens_per_s"))
# Which lines of the fairness table a row stands out in.
UNFAIR = Column("unfair", ("unfair",), lambda row: str(row["unfair"]), left=True)
# Left out where no row has another of its strategy and settings at a smaller world.
AGAINST_BASE = (
    Column("speedup", _with_interval("speedup"), _speedup),
    Column(
        "efficiency %",
        (*_with_interval("efficiency"), "base_case_id", "base_world_size", "efficiency_common"),
        _efficiency,
        folds=True,
    ),
)
MEMORY = (
    "peak_memory_bytes",
    "peak_memory_rank",
    "peak_memory_host",
    "peak_allocated_bytes",
    "estimated_memory_bytes",
    "estimate_error",
)
COLUMNS = (
    Column("world", ("world_size", "nodes", "ranks_per_node"), _world),
    Column(
        "status",
        ("status", "statuses", "num_launches", "num_repeats_planned", "cause"),
        _status,
        left=True,
    ),
    TOKENS,
    Column("per rank", _with_interval("tokens_per_s_per_gpu"), metric("tokens_per_s_per_gpu")),
    Column("step ms +-MAD", ("step_time_s", "step_time_mad_s", "step_time_p95_s"), _step),
    *AGAINST_BASE,
    Column(
        "exposed ms",
        ("comm_exposed_s", "comm_exposed_share", "comm_total_s", "exposed_wait_s"),
        _exposed,
    ),
    Column("imbalance", ("imbalance", "slow_rank", "slow_rank_host"), _imbalance),
    Column("peak memory", MEMORY, _memory),
)
# Columns a narrow terminal does without, the first of them first.
DISPENSABLE = (
    "per rank",
    "imbalance",
    "exposed ms",
    "MFU",
    "speedup",
    "peak memory",
    "step ms +-MAD",
)
MIN_FOLDED = 13  # characters of a folded cell on one line: "100.0 [100.0,"
MAX_WORD = 30  # characters of a folded cell that stay together: "gradient_as_bucket_view=false"
MFU = Column("MFU", ("mfu", "flop_convention"), metric("mfu"))


@dataclass(frozen=True)
class Table:
    """What is shown, ready for any medium: rows of columns, a title, fairness, footnotes."""

    title: str
    columns: tuple[Column, ...]
    rows: list[dict[str, Any]]
    notes: list[str]
    fairness: Fairness

    def cells(self) -> list[list[str]]:
        """Every cell's text, without control characters."""
        return [[clean(column.text(row)) for column in self.columns] for row in self.rows]

    def to_rich(self) -> RenderableType:
        """What a rich console prints, at the width it has."""
        return self

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """For a terminal of any width; text from records is never read as markup."""
        table, left_out = self._fitting(options.max_width)
        notes = list(self.notes)
        if left_out:
            notes.insert(0, f"too narrow for: {', '.join(left_out)}; all are in Markdown and CSV")
        yield Text(clean(self.title), style="bold")
        yield table
        if self.fairness:
            yield self.fairness.to_rich()
            yield Text()
        yield from (Text(clean(note), style="dim") for note in notes)

    def _fitting(self, width: int) -> tuple[RichTable, list[str]]:
        """The columns that `width` has room for without breaking a number, and the others' names.

        Some columns may be folded, down to MIN_FOLDED characters.
        """
        cells = self.cells()
        kept = list(range(len(self.columns)))
        needed = [self._width(index, cells) + 1 for index in kept]
        left_out = []
        for header in DISPENSABLE:
            if sum(needed[index] for index in kept) + 1 <= width:
                break
            found = [index for index in kept if self.columns[index].header == header]
            kept = [index for index in kept if index not in found]
            left_out += [header] * len(found)
        table = RichTable(box=SIMPLE_HEAD, padding=0)
        for index in kept:
            column = self.columns[index]
            table.add_column(
                Text(_head(column)),
                justify="left" if column.left else "right",
                overflow="fold",
                no_wrap=not column.folds,
                min_width=self._width(index, cells) if column.folds else None,
            )
        for row in cells:
            table.add_row(*(Text(row[index]) for index in kept))
        return table, left_out

    def _width(self, index: int, cells: list[list[str]]) -> int:
        column = self.columns[index]
        texts = [*_head(column).splitlines(), *(row[index] for row in cells)]
        widest = max(cell_len(text) for text in texts)
        if not column.folds:
            return widest
        longest_word = max(cell_len(word) for text in texts for word in text.split() or [""])
        return max(min(widest, MIN_FOLDED), min(longest_word, MAX_WORD))

    def to_text(self, width: int = PLAIN_WIDTH) -> str:
        """What a terminal of that width shows."""
        return as_text(self, width)

    def to_markdown(self) -> str:
        """A pipe table under a heading, footnotes as a list, every difference in a second table."""
        grid = tabulate(
            [[cell.replace("|", "\\|") for cell in cells] for cells in self.cells()],
            headers=[column.header for column in self.columns],
            tablefmt="pipe",
            colalign=["left" if column.left else "right" for column in self.columns],
            disable_numparse=True,
        )
        said = self.fairness.notes() if self.fairness else []
        notes = "".join(f"- {clean(note)}\n" for note in (*said, *self.notes))
        parts = [f"## {clean(self.title)}\n", f"{grid}\n", notes, self.fairness.to_markdown()]
        return "\n".join(part for part in parts if part)

    def to_html(self) -> str:
        """What a notebook shows: the rows under a heading, the notes as a list; all escaped."""
        grid = tabulate(
            self.cells(),
            headers=[column.header for column in self.columns],
            tablefmt="html",
            colalign=["left" if column.left else "right" for column in self.columns],
            disable_numparse=True,
        )
        said = self.fairness.notes() if self.fairness else []
        notes = "".join(f"<li>{escape(clean(note))}</li>" for note in (*said, *self.notes))
        return f"<p><b>{escape(clean(self.title))}</b></p>\n{grid}\n<ul>{notes}</ul>"

    def to_frame(self) -> pd.DataFrame:
        """Values with full precision of every column, shown or not."""
        shown = dict.fromkeys((*self.columns, *COLUMNS))
        names = dict.fromkeys(name for column in shown for name in column.names)
        return pd.DataFrame(self.rows, columns=["case_id", *names])

    def to_csv(self) -> str:
        return self.to_frame().to_csv(index=False)


def as_text(shown: RenderableType, width: int = PLAIN_WIDTH) -> str:
    """For a pipe or a log: what a terminal of that width shows, without colours."""
    file = io.StringIO()
    Console(file=file, width=width, color_system=None).print(shown)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _head(column: Column) -> str:
    """A header over two lines where it has two words."""
    return "\n".join(column.header.rsplit(" ", 1))


def _setting(name: str) -> Callable[[Row], str]:
    return lambda row: str(row[name])


def scaling_table(results: Results) -> Table:
    """The table of a run: a row a case, grouped by what was varied, smaller worlds first."""
    rows, axes = arrange(results.cases)
    columns = [Column("strategy", ("strategy", "options"), label, left=True, folds=True)]
    columns += [
        Column(axis.rpartition(".")[2], (axis,), _setting(axis), folds=True) for axis in axes
    ]
    compared = any(has_base(row) for row in rows)
    columns += [column for column in COLUMNS if compared or column not in AGAINST_BASE]
    fairness = Fairness.of(results)
    if marks := fairness.marks():
        for row in rows:
            row["unfair"] = marks.get(row["case_id"], "")
        columns.insert(columns.index(TOKENS), UNFAIR)
    if any(has(row, "mfu") for row in rows):
        columns.append(MFU)
    notes = footnotes(rows, axes, results.problems)
    return Table(results.question, tuple(columns), rows, notes, fairness)
