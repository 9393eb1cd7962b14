"""What stands under a comparison: whether it is fair, and if not, why not. No torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table as RichTable
from rich.text import Text
from tabulate import tabulate

from andromeda_scale.analysis.comparable import comparable, kinds, num_compared
from andromeda_scale.analysis.fairness import differences
from andromeda_scale.analysis.results import Results
from andromeda_scale.metrics.formats import clean
from andromeda_scale.report.media import latex, markdown_cell, records, to_json

Tone = Literal["unfair", "axis", "fair", "plain"]
STYLES: dict[Tone, str] = {
    "unfair": "bold red",
    "axis": "yellow",
    "fair": "green",
    "plain": "",
}
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
HEADERS = ("mark", "flag", "fact", "values", "what it does", "where")


class Line(NamedTuple):
    """One line under a table, how loudly it is said, and its mark in the rows concerned."""

    tone: Tone
    text: str
    mark: str = ""


@dataclass(frozen=True)
class Fairness:
    """The differences between the rows of one table (columns of analysis.fairness)."""

    frame: pd.DataFrame
    num_rows: int  # that have another to be compared with
    parity: str  # how it was verified, where it was
    num_within: int = 0  # rows with another of the same values of the axes that make them unequal
    kinds: tuple[str, ...] = ()  # models and regimes, which are not compared with each other

    @classmethod
    def of(cls, results: Results) -> Fairness:
        verified = results.cases[results.cases["parity"].eq("ok")]
        words = ", ".join(dict.fromkeys(verified.get("parity_kind", ())))
        parity = "; parity ok" if words in ("", "full") else f"; parity ok ({words})"
        groups = comparable(results)
        frame = differences(groups)
        return cls(
            frame,
            num_compared(groups),
            parity,
            num_compared(groups, _explaining(frame)),
            tuple(kinds(groups)),
        )

    @property
    def unfair(self) -> pd.DataFrame:
        """Differences that no axis of the suite explains: they get a mark each."""
        return self.frame[self.frame["flag"].eq("unfair") & self.frame["axis"].eq("")]

    def __bool__(self) -> bool:
        """Whether there is anything to compare."""
        return self.num_rows > 0 or len(self.kinds) > 1

    def marks(self) -> dict[str, str]:
        """The marks of each row concerned, by case_id."""
        found: dict[str, list[str]] = {}
        for mark, case_ids in zip(self._letters(), self.unfair["case_ids"], strict=False):
            for case_id in case_ids.split():
                found.setdefault(case_id, []).append(mark)
        return {case_id: " ".join(letters) for case_id, letters in found.items()}

    def case_ids(self, but: Collection[str]) -> set[str]:
        """The rows concerned by what is unfair, beside facts of `but`."""
        lines = self.unfair[~self.unfair["fact"].isin(list(but))]
        return {case_id for case_ids in lines["case_ids"] for case_id in case_ids.split()}

    def lines(self) -> list[Line]:
        """All that is unfair, the rest counted; one line where there is nothing."""
        verdict = [self._verdict()] if self.num_rows else []
        return [*verdict, *self._unfair(), *self._axes(), *self._kept(), *self._kinds()]

    def _letters(self) -> Iterator[str]:
        yield from _LETTERS
        for first in _LETTERS:
            yield from (first + second for second in _LETTERS)

    def _verdict(self) -> Line:
        facts = list(dict.fromkeys(self.unfair["fact"]))
        parity = "" if "parity" in facts else self.parity
        if facts:
            rows = f"{self.num_rows} rows are compared that are not equal"
            return Line("unfair", f"UNFAIR: {rows} in {', '.join(facts)}{parity}")
        if self.frame.empty:
            text = f"fair: {self.num_rows} rows differ in nothing but the strategy"
            return Line("fair", text + parity)
        axes = _explaining(self.frame)
        within = f" within one value of {'; '.join(axes)}" if axes else ""
        if axes and not self.num_within:
            text = f"nothing to compare{within}: no two rows of a world share one"
            return Line("axis", text + parity)
        text = f"fair{within}: {self.num_within} rows, the same arithmetic and work"
        return Line("fair", text + parity)

    def _unfair(self) -> Iterator[Line]:
        for mark, (_, row) in zip(self._letters(), self.unfair.iterrows(), strict=False):
            text = f"{row['fact']}  {row['values']} ({self._where(row)}): {row['effect']}"
            yield Line("unfair", clean(text), mark)

    def _axes(self) -> Iterator[Line]:
        """What the suite's own axes change: a line an axis."""
        for axis, lines in _explained(self.frame).groupby("axis", sort=False):
            facts = dict.fromkeys(
                f"{fact} ({values.replace('; ', ', ')})"
                for fact, values in zip(lines["fact"], lines["values"], strict=True)
            )
            text = f"by axis {axis}, compare within one value: {'; '.join(facts)}"
            yield Line("axis", clean(text))

    def _kept(self) -> Iterator[Line]:
        kept = list(dict.fromkeys(self.frame[self.frame["flag"].eq("differs")]["fact"]))
        if kept:
            text = f"differs, with the same result: {', '.join(kept)} (report RUN --fairness)"
            yield Line("plain", text)

    def _kinds(self) -> Iterator[Line]:
        if len(self.kinds) > 1:
            text = f"not compared with each other: {'; '.join(self.kinds)}"
            yield Line("plain", clean(text))

    def _where(self, row: pd.Series) -> str:
        """World and settings, where not all that is shown."""
        parts = [f"world {row['worlds']}", row["at"]]
        if self.frame["model"].nunique() > 1:
            parts.insert(0, row["model"])
        if self.frame["regime"].nunique() > 1:
            parts.insert(0, row["regime"])
        return "; ".join(part for part in parts if part)

    def cells(self) -> list[list[str]]:
        """Every difference, under HEADERS."""
        letters = iter(self._letters())
        rows = []
        for _, row in self.frame.iterrows():
            marked = row["flag"] == "unfair" and not row["axis"]
            axis = f"by axis {row['axis']}: compare within one value" if row["axis"] else ""
            where = "; ".join(part for part in (axis, self._where(row)) if part)
            texts = (next(letters) if marked else "", row["flag"], row["fact"], row["values"])
            rows.append([clean(text) for text in (*texts, row["effect"], where)])
        return rows

    def to_rich(self) -> RenderableType:
        """The lines, for a terminal."""
        grid = RichTable.grid(padding=(0, 1, 0, 0))
        for tone, text, mark in self.lines():
            cells = (mark, text) if self.marks() else (text,)
            grid.add_row(*map(Text, cells), style=STYLES[tone])
        return grid

    def to_rich_in_full(self) -> RenderableType:
        """Every difference, for a terminal."""
        table = RichTable(box=SIMPLE_HEAD, padding=0, show_lines=False)
        for header in HEADERS:
            folds = header in ("values", "what it does", "where")
            table.add_column(header, overflow="fold", no_wrap=not folds)
        for flag, cells in zip(self.frame["flag"], self.cells(), strict=True):
            table.add_row(*map(Text, cells), style=STYLES["unfair"] if flag == "unfair" else "")
        return table

    def notes(self, loud: str = "**{}**", written: Callable[[str], str] = str) -> list[str]:
        """The lines for a page: in Markdown, or `loud` and `written` as another language has it."""
        texts = [(tone, f"{mark}  {text}" if mark else text) for tone, text, mark in self.lines()]
        return [
            (loud if tone == "unfair" else "{}").format(written(clean(text)))
            for tone, text in texts
        ]

    def to_markdown(self) -> str:
        """Every difference in a pipe table under a heading; empty without any."""
        if self.frame.empty:
            return ""
        grid = tabulate(
            [[markdown_cell(cell) for cell in cells] for cells in self.cells()],
            headers=HEADERS,
            tablefmt="pipe",
            disable_numparse=True,
        )
        return f"### Fairness\n\n{grid}\n"

    def to_csv(self) -> str:
        """Every difference; only the header where there is none."""
        return self.frame.to_csv(index=False)

    def to_latex(self) -> str:
        """Every difference as a float."""
        return latex("Fairness", HEADERS, self.cells(), ["left"] * len(HEADERS), self.notes("{}"))

    def to_json(self) -> str:
        """Every difference, and what is said of them all."""
        return to_json(self.plain())

    def plain(self) -> dict[str, Any]:
        """What `to_json` writes, as a mapping."""
        return {"said": self.notes("{}"), "differences": records(self.frame)}


def _explained(frame: pd.DataFrame) -> pd.DataFrame:
    """What axes of the suite make unequal."""
    return frame[frame["flag"].eq("unfair") & frame["axis"].ne("")]


def _explaining(frame: pd.DataFrame) -> list[str]:
    """The axes that do."""
    return list(
        dict.fromkeys(axis for one in _explained(frame)["axis"] for axis in one.split(", "))
    )
