"""A sentence of a verdict: what it says, the rows it was made from, how its numbers are written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from andromeda_scale.analysis.comparison import Ratio
from andromeda_scale.analysis.rivals import Row
from andromeda_scale.analysis.stats import Interval
from andromeda_scale.metrics.formats import clean, rate, significant
from andromeda_scale.report.rows import case_name, has, label, setting_words

Kind = Literal[
    "lever",
    "fastest",
    "cheapest",
    "front",
    "loss",
    "noise",
    "scaling",
    "odd",
    "refused",
    "nothing",
    "changed",
    "summary",
]
MAX_NAMED = 4  # rows that one sentence names; more are counted


@dataclass(frozen=True)
class Sentence:
    """One statement. `rows`: case_ids; `numbers`: what it says, by name, in data's units."""

    kind: Kind
    text: str
    rows: tuple[str, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """For a program; a number that is not finite is null."""
        numbers = {k: v if math.isfinite(v) else None for k, v in self.numbers.items()}
        rows = list(self.rows)
        return {"kind": self.kind, "text": clean(self.text), "case_ids": rows, "numbers": numbers}


class Names:
    """How the rows of one group are told apart: rows that share its settings need not repeat
    them."""

    def __init__(self, rows: Sequence[Row], axes: Sequence[str]) -> None:
        self._axes = axes
        self._inner = [axis for axis in axes if len({str(row[axis]) for row in rows}) > 1]
        self._outer = [axis for axis in axes if axis not in self._inner]
        self._shared = setting_words(rows[0], self._outer)

    def full(self, row: Row) -> str:
        """Strategy, every setting, world."""
        return case_name(row, self._axes)

    def short(self, row: Row) -> str:
        """What tells it from others of its group and world."""
        return label(row) + "".join(f", {one}" for one in setting_words(row, self._inner))

    @property
    def where(self) -> str:
        """The settings of the whole group, where there are others."""
        return f" with {', '.join(self._shared)}" if self._shared else ""

    def shares(self, row: Row) -> bool:
        """Whether a row has the settings of the group."""
        return setting_words(row, self._outer) == self._shared


def case_ids(rows: Iterable[Row]) -> tuple[str, ...]:
    """Their ids, each once."""
    return tuple(dict.fromkeys(str(row["case_id"]) for row in rows))


def world_of(row: Row) -> tuple[int, int]:
    """Ranks and nodes."""
    return row["world_size"], row["nodes"]


def listed(items: Sequence[str]) -> str:
    """The first MAX_NAMED, and how many more."""
    more = len(items) - MAX_NAMED
    return "; ".join(items[:MAX_NAMED]) + (f"; and {more} more" if more > 0 else "")


def known(interval: Interval) -> bool:
    """Whether it has ends."""
    return not math.isnan(interval.low)


def throughput(row: Row) -> str:
    text = f"{rate(row['tokens_per_s'])} tokens/s"
    if not has(row, "tokens_per_s_low"):
        return text
    return f"{text} [{rate(row['tokens_per_s_low'])}, {rate(row['tokens_per_s_high'])}]"


def bounded(interval: Interval) -> str:
    """A value with its interval, where there is one."""
    if not known(interval):
        return significant(interval.centre)
    centre, low, high = map(significant, interval)
    return f"{centre} [{low}, {high}]"


def times(interval: Interval) -> str:
    """A ratio."""
    if not known(interval):
        return f"{interval.centre:.3f}x"
    return f"{interval.centre:.3f}x [{interval.low:.3f}, {interval.high:.3f}]"


def doubt(ratio: Ratio) -> str:
    """What to say after a ratio that launches do not tell from 1."""
    if not ratio.known:
        return ", of too few launches to be sure"
    return "" if ratio.differs else ", which noise could explain"


def percent(interval: Interval) -> str:
    """A share."""
    if not known(interval):
        return f"{interval.centre:.1%}"
    return f"{interval.centre:.1%} [{interval.low:.1%}, {interval.high:.1%}]"
