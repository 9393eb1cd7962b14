"""What a metric is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower", "none"]
Launches = Literal["geometric mean", "mean", "max"]
Text = Callable[[float], str]


@dataclass(frozen=True)
class Metric:
    """One number of a result, and how it comes about."""

    unit: str  # SI; "1" for a ratio or a share
    better: Better
    ranks: str  # rule across ranks
    why: str  # the reason for that rule, in one line
    launches: Launches  # rule across the ok repeats of a case
    phase: str  # where it is measured
    text: Text  # how a table prints it
    meaning: str  # one sentence with the formula
