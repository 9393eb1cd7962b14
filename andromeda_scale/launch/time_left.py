"""How long the launches that are left will take, from those of their kind alone. No torch.

A parity reference is over in a moment where a case takes minutes: of launches of another role or
world nothing is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from andromeda_scale.contracts.planned import PlannedRepeat
from andromeda_scale.suite.config import Case

UNKNOWN = "not estimated yet"


class Left(NamedTuple):
    """Seconds of so many (`told`) of all (`total`) launches that are left."""

    seconds: float
    told: int
    total: int

    @property
    def of_all(self) -> str:
        """What is to be said beside the seconds where they are not those of all."""
        if self.told == self.total:
            return ""
        return f" for {self.told} of {self.total} launches, the others are {UNKNOWN}"


def kind(item: PlannedRepeat, case: Case) -> str:
    """Launches of one kind are taken to last alike."""
    return f"{item.role} w{case.world.size}"


def estimate(left: Counter[str], took: Mapping[str, Sequence[float]]) -> Left:
    """`left`: how many of each kind; `took`: seconds of those of each that ended ok.

    Where fewer than half of them are of a known kind none is told: it would read as the end.
    """
    known = {of_kind: number for of_kind, number in left.items() if took.get(of_kind)}
    told, total = sum(known.values()), left.total()
    if 2 * told < total:
        return Left(0.0, 0, total)
    return Left(sum(n * median(took[of_kind]) for of_kind, n in known.items()), told, total)
