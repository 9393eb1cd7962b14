"""What a page is made from, and how its figures name and colour things. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from andromeda_scale.analysis.results import Results
from andromeda_scale.metrics.formats import clean
from andromeda_scale.report.rows import Row, arrange, has, label, world

MAX_LABEL = 44  # characters of a name in a figure; the table has all of it
COLOURS = ("#3987e5", "#d95926", "#199e70", "#c98500", "#9085e9", "#d55181", "#008300", "#e66767")
MARKERS = ("circle", "square", "diamond", "cross", "triangle-up", "star", "x", "pentagon")
GREY = "#888888"


@dataclass(frozen=True)
class Source:
    """A run's results with its rows in reading order, and the files that stand beside them."""

    results: Results
    rows: list[dict[str, Any]]
    axes: list[str]
    suite: str | None = None  # text of suite.yaml
    ceilings: Mapping[str, Any] = field(default_factory=dict)  # of calibration.json

    @classmethod
    def of(
        cls,
        results: Results,
        suite: str | None = None,
        ceilings: Mapping[str, Any] | None = None,
    ) -> Self:
        rows, axes = arrange(results.cases)
        return cls(results, rows, axes, suite, ceilings or {})

    @property
    def measured(self) -> list[dict[str, Any]]:
        """The rows with a speed."""
        return [row for row in self.rows if has(row, "tokens_per_s")]

    def series(self) -> dict[str, list[dict[str, Any]]]:
        """Measured rows that differ in their world alone, under what they have in common."""
        groups: dict[int, list[dict[str, Any]]] = {}
        for row in self.measured:
            groups.setdefault(row["group"], []).append(row)
        return {self.name(rows[0]): rows for rows in groups.values()}

    def name(self, row: Row) -> str:
        """Strategy and settings of a row, as a figure writes it."""
        settings = "".join(f", {axis.rpartition('.')[2]} {row[axis]}" for axis in self.axes)
        return words(label(row) + settings)

    def case(self, row: Row) -> str:
        """`name`, and the world."""
        return f"{self.name(row)}, {ranks(row)}"

    def style(self, row: Row) -> tuple[str, str]:
        """Colour and marker of a row's series, the same in every figure."""
        index = int(row["group"])
        return COLOURS[index % len(COLOURS)], MARKERS[index // len(COLOURS) % len(MARKERS)]


def words(text: str, longest: int = MAX_LABEL) -> str:
    """Text from records for a figure: printable, on one line, not too long."""
    text = clean(text)
    return text if len(text) <= longest else f"{text[: longest - 1]}\u2026"


def ranks(row: Row) -> str:
    """`world` in words."""
    return "1 rank" if row["world_size"] == 1 else f"{world(row)} ranks"


def num(value: Any, factor: float = 1.0) -> float | None:
    """A number for JSON with five significant digits; None for what is not measured."""
    if value is None or not math.isfinite(float(value)):
        return None
    return float(f"{float(value) * factor:.5g}")


def nums(values: Iterable[Any], factor: float = 1.0) -> list[float | None]:
    """`num` of each."""
    return [num(value, factor) for value in values]


def by_world(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows under the ranks of their world, the largest first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: -int(row["world_size"])):
        found.setdefault(ranks(row), []).append(row)
    return found
