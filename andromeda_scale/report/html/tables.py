"""The tables of a page: cells with what they are sorted by. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from andromeda_scale.metrics.formats import clean
from andromeda_scale.report.columns import Column
from andromeda_scale.report.media import plain
from andromeda_scale.report.rows import Row
from andromeda_scale.report.tables import Table


@dataclass(frozen=True)
class Cell:
    """What is read, and the number that orders it; empty: its text does."""

    text: str
    order: str
    left: bool


@dataclass(frozen=True)
class Grid:
    """One table of a page; the template escapes all of it."""

    id: str
    title: str
    headers: list[tuple[str, bool]]  # text, whether it stands left
    rows: list[tuple[str, str, list[Cell]]]  # status, case_id, cells
    notes: list[str]

    @property
    def marked(self) -> list[str]:
        """Notes that a mark in a row points to."""
        return [note for note in self.notes if note.startswith("[")]

    @property
    def unmarked(self) -> list[str]:
        return [note for note in self.notes if not note.startswith("[")]

    @property
    def worlds(self) -> list[str]:
        """The different worlds of its rows, for a filter."""
        names = [text for text, _ in self.headers]
        if "world" not in names:
            return []
        index = names.index("world")
        found = {cells[index].text: float(cells[index].order or 0) for *_, cells in self.rows}
        return sorted(found, key=lambda text: found[text])


def grid(name: str, table: Table) -> Grid:
    """A table as a page shows it."""
    texts = table.cells()
    rows = [
        (
            clean(str(row.get("status", ""))),
            clean(str(row.get("case_id", ""))),
            [
                Cell(text, _order(column, row), column.left)
                for column, text in zip(table.columns, cells, strict=True)
            ],
        )
        for row, cells in zip(table.rows, texts, strict=True)
    ]
    headers = [(column.header, column.left) for column in table.columns]
    return Grid(name, clean(table.title), headers, rows, [clean(note) for note in table.notes])


def _order(column: Column, row: Row) -> str:
    """The first number behind a column."""
    value = plain(row.get(column.names[0])) if column.names else None
    return repr(float(value)) if isinstance(value, int | float) else ""
