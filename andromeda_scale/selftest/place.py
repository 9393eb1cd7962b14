"""Where a selftest plants, what is there without a plant, and what a row of it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from andromeda_scale.selftest.evidence import (
    UNAVAILABLE,
    Finding,
    Launch,
    deviation,
    milliseconds,
)
from andromeda_scale.suite.schema import Device

MIN_DELAY_S, MAX_DELAY_S = 0.05, 0.2
NULLS = 3.0  # a delay is so many times what is blamed where nothing is planted
NULL = "nothing"


@dataclass(frozen=True)
class Place:
    """Where truths are planted: ranks on one node, each with a core or a GPU of its own."""

    device: Device
    world: int

    @property
    def late(self) -> int:
        """The rank on which things are planted."""
        return self.world - 1

    def lacks(self, ranks: int) -> str:
        """Why something that needs so many ranks is not planted; empty if it can be."""
        unit = "core" if self.device == "cpu" else "GPU"
        if self.world >= ranks:
            return ""
        return f"{UNAVAILABLE}: needs {ranks} ranks with a {unit} each, {self.world} here"


def next_at_most(values: Sequence[float]) -> float:
    """The largest of these, or what one more of their kind exceeds in 1 of 100, if that is more.

    mean + t(0.99, n - 1) s sqrt(1 + 1/n), the prediction bound of normal numbers: the largest of n
    alone would be exceeded in 1 of n + 1.
    """
    if len(values) < 2:
        return max(values)
    spread = float(np.std(values, ddof=1)) * np.sqrt(1 + 1 / len(values))
    bound = float(np.mean(values) + stdtrit(len(values) - 1, 0.99) * spread)
    return max(*values, bound)


@dataclass(frozen=True)
class Null:
    """What launches showed in which nothing was planted."""

    late_s: float  # by how much a rank of one more launch may be late: the floor of blame
    noise_s: float  # by how much waiting differs between launches
    step_s: float  # profiled
    wire_bytes: float  # of a rank and step

    @classmethod
    def of(cls, found: Sequence[Launch], waits: Sequence[float]) -> Null:
        """From unplanted launches, and the waiting in each: 0 where one rank is alone."""
        late = [one.of("late_s") for one in found if one.has("late_s")]
        return cls(
            late_s=next_at_most(late) if late else 0.0,
            noise_s=deviation(waits),
            step_s=float(np.median([one.of("profile_step_s") for one in found])),
            wire_bytes=max(one.of("comm_wire_bytes") for one in found),
        )

    @property
    def delay_s(self) -> float:
        """A delay that can be found, in whole milliseconds."""
        needed = max(MIN_DELAY_S, NULLS * self.late_s, 10 * self.noise_s)
        return float(np.ceil(needed * 1e3) / 1e3)

    @property
    def too_noisy(self) -> str:
        """Why no delay can be; empty if one can."""
        if self.delay_s <= MAX_DELAY_S:
            return ""
        late, noise = milliseconds(self.late_s), milliseconds(self.noise_s)
        return f"{UNAVAILABLE}: too noisy (null {late}, launches differ by {noise})"


Launches = Mapping[str, Sequence[Launch]]


@dataclass(frozen=True)
class Row:
    """One truth: cases by name, each some changes (dotted keys) of `base`, and what is found.

    The cases of other rows are there to compare with: NULL is the unplanted one.
    """

    planted: str
    cases: Mapping[str, Mapping[str, Any]]
    num_launches: int
    judge: Callable[[Launches], list[Finding]]
    unavailable: str = ""  # why it is not planted
