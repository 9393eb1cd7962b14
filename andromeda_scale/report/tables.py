"""Tables of a run: one definition of their columns for terminal, Markdown and CSV. No torch."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
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

from andromeda_scale.metrics.formats import clean
from andromeda_scale.report.columns import (
    COMPILED,
    MAMF,
    Column,
    setting,
)
from andromeda_scale.report.fairness import Fairness
from andromeda_scale.report.media import latex, markdown, markdown_cell, records, to_json
from andromeda_scale.report.rows import label
from andromeda_scale.report.sentence import Sentence

PLAIN_WIDTH = 120  # columns of text where there is no terminal to ask
# Columns a narrow terminal does without, the first of them first.
DISPENSABLE = (
    "per rank",
    "imbalance",
    "exposed ms",
    COMPILED.header,
    "MFU",
    "J/token",
    MAMF.header,
    "speedup",
    "peak memory",
    "step ms +-MAD",
)
# Columns that the narrowest terminal shows, and the first.
ESSENTIAL = ("world", "status", "tokens/s")
MIN_FOLDED = 13  # characters of a folded cell on one line: "100.0 [100.0,"
MAX_PROBLEMS = 8  # Markdown and JSON have all
MAX_SAID = 12  # sentences of a verdict under a terminal's table
MAX_WORD = 30  # characters of a folded cell that stay together: "gradient_as_bucket_view=false"


@dataclass(frozen=True)
class Table:
    """What is shown, ready for any medium: rows of columns, a title, fairness, footnotes.

    `verdict`: what the rows answer, in sentences; a terminal shows the first MAX_SAID of them.
    `beside`: columns that are not shown and stand in the frame and in CSV. `under`: a smaller
    table that explains this one, left out where a terminal is too narrow for it. `dispensable`:
    headers of those that a narrow terminal does without, the first of them first. `standing`: that
    the run has not ended, which stands on top.
    """

    title: str
    columns: tuple[Column, ...]
    rows: list[dict[str, Any]]
    notes: list[str]
    fairness: Fairness | None = None
    beside: tuple[Column, ...] = ()
    under: Table | None = None
    dispensable: tuple[str, ...] = DISPENSABLE
    verdict: tuple[Sentence, ...] = ()
    verdict_first: bool = False  # on a terminal, where what is read last is seen first
    problems: tuple[str, ...] = ()  # what of the records was not used
    standing: str = ""

    def footnotes(self, most: int | None = MAX_PROBLEMS) -> list[str]:
        """The notes, then the problems; of these the first `most` and where to read the others."""
        notes = [*self.notes, *(f"problem: {problem}" for problem in self.problems[:most])]
        if most is not None and len(self.problems) > most:
            more = f"and {len(self.problems) - most} more problems"
            notes.append(f"{more}: report --format md, or json, lists all")
        return [clean(note) for note in notes]

    def cells(self) -> list[list[str]]:
        """Every cell's text, without control characters."""
        return [[clean(column.text(row)) for column in self.columns] for row in self.rows]

    def to_rich(self) -> RenderableType:
        """What a rich console prints, at the width it has."""
        return self

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """For a terminal of any width; text from records is never read as markup."""
        table, left_out = self._fitting(options.max_width)
        notes = self.footnotes()
        if left_out:
            notes.insert(0, f"too narrow for: {', '.join(left_out)}; all are in Markdown and CSV")
        yield Text(clean(self.title), style="bold")
        if self.standing:
            yield Text(clean(self.standing), style="yellow")
        if self.verdict_first:
            yield from self._said()
        yield table
        if not self.verdict_first:
            yield from self._said()
        if self.fairness:
            yield self.fairness.to_rich()
            yield Text()
        if self.under is not None and self.under._needed() <= options.max_width:
            yield self.under
            yield Text()
        yield from (Text(clean(note), style="dim") for note in notes)

    def _said(self) -> Iterator[Text]:
        if not self.verdict:
            return
        yield from (Text(clean(said.text)) for said in self.verdict[:MAX_SAID])
        if len(self.verdict) > MAX_SAID:
            yield Text(f"and {len(self.verdict) - MAX_SAID} more, in Markdown")
        yield Text()

    def _fitting(self, width: int) -> tuple[RichTable, list[str]]:
        """The columns that `width` has room for without breaking a number, and the others' names.

        Some columns may be folded, down to MIN_FOLDED characters. What is left out is first what
        is dispensable, then settings, then all that is not essential, from the right.
        """
        cells = self.cells()
        kept = list(range(len(self.columns)))
        needed = [self._width(index, cells) + 1 for index in kept]
        left_out = []
        others = [c for c in reversed(self.columns[1:]) if c.header not in ESSENTIAL]
        others.sort(key=lambda column: not column.is_setting)
        for header in dict.fromkeys((*self.dispensable, *(column.header for column in others))):
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

    def _needed(self) -> int:
        """Columns of a terminal that show everything."""
        cells = self.cells()
        return sum(self._width(index, cells) + 1 for index in range(len(self.columns))) + 1

    def _width(self, index: int, cells: list[list[str]]) -> int:
        column = self.columns[index]
        texts = [*_head(column).splitlines(), *(row[index] for row in cells)]
        widest = max(cell_len(text) for text in texts)
        if not column.folds:
            return widest
        longest_word = max(cell_len(word) for text in texts for word in text.split() or [""])
        return max(min(widest, MIN_FOLDED), min(longest_word, MAX_WORD))

    def to_markdown(self) -> str:
        """A pipe table under a heading, footnotes as a list, `under`, every difference behind."""
        differences = self.fairness.to_markdown() if self.fairness is not None else ""
        under = self.under._section("###") if self.under is not None else ""
        return "\n".join(part for part in (self._section("##"), under, differences) if part)

    def _section(self, heading: str) -> str:
        said = self.fairness.notes() if self.fairness else []
        notes = "".join(f"- {markdown(note)}\n" for note in (*said, *self.footnotes(None)))
        grid = self._grid("pipe", markdown_cell)
        verdict = "".join(f"- {markdown(said.text)}\n" for said in self.verdict)
        title = f"{heading} {markdown(self.title)}\n"
        standing = f"**{markdown(self.standing)}**\n" if self.standing else ""
        parts = [title, standing, verdict, f"{grid}\n", notes]
        return "\n".join(part for part in parts if part)

    def to_latex(self) -> str:
        """A float with the rows, caption and notes, for a paper; `under` as a second one."""
        said = self.fairness.notes("{}") if self.fairness else []
        headers = [column.header for column in self.columns]
        align = ["left" if column.left else "right" for column in self.columns]
        notes = [*([self.standing] if self.standing else []), *said, *self.footnotes()]
        own = latex(self.title, headers, self.cells(), align, notes)
        return own if self.under is None else f"{own}\n{self.under.to_latex()}"

    def to_json(self) -> str:
        """The frame's rows with full precision, null for what is not measured, and all notes."""
        return to_json(self._plain())

    def _plain(self) -> dict[str, Any]:
        fairness = self.fairness
        return {
            "title": clean(self.title),
            "standing": clean(self.standing) or None,
            "verdict": [said.plain() for said in self.verdict],
            "rows": records(self.to_frame()),
            "notes": self.footnotes(None),
            "fairness": None if fairness is None else fairness.plain(),
            "under": None if self.under is None else self.under._plain(),
        }

    def to_html(self) -> str:
        """What a notebook shows: the rows under a heading, the notes as a list; all escaped."""
        said = self.fairness.notes("<b>{}</b>", escape) if self.fairness else []
        said += [escape(note) for note in self.footnotes()]
        notes = "".join(f"<li>{note}</li>" for note in said)
        under = self.under.to_html() if self.under is not None else ""
        title = f"<p><b>{escape(clean(self.title))}</b></p>"
        title += f"<p>{escape(clean(self.standing))}</p>" if self.standing else ""
        title += "".join(f"<p>{escape(clean(said.text))}</p>" for said in self.verdict)
        return f"{title}\n{self._grid('html')}\n{under}<ul>{notes}</ul>"

    def _grid(self, form: str, written: Callable[[str], str] = str) -> str:
        grid: str = tabulate(
            [[written(cell) for cell in cells] for cells in self.cells()],
            headers=[column.header for column in self.columns],
            tablefmt=form,
            colalign=["left" if column.left else "right" for column in self.columns],
            disable_numparse=True,
        )
        return grid

    def to_frame(self) -> pd.DataFrame:
        """Values with full precision of every column, shown or not."""
        shown = dict.fromkeys((*self.columns, *self.beside))
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


def identity(axes: Sequence[str]) -> list[Column]:
    """The columns that say which case a row is, its world left out."""
    strategy = Column("strategy", ("strategy", "options"), label, left=True, folds=True)
    return [
        strategy,
        *(
            Column(axis.rpartition(".")[2], (axis,), setting(axis), folds=True, is_setting=True)
            for axis in axes
        ),
    ]
