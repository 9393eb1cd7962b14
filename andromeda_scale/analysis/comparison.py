"""Which of two cases is faster, and which of many differ beyond chance. No torch.

A comparison judges at FALSE_ALARMS, not at 5 %: a t test errs as often as its level says, so one
at 5 % exceeds 5 % of A/A comparisons as soon as the noise is not quite normal
(benchmarks/simulation.py). The interval of a comparison is that of its level: it contains 1 exactly
where the two are not told apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from andromeda_scale.analysis.stats import (
    MIN_LAUNCHES,
    Estimate,
    Interval,
    Sample,
    difference,
    exp,
    paired_difference,
)

FALSE_ALARMS = 0.04  # wanted: at most 5 %


class Ratio(NamedTuple):
    """One case over another: how far apart, and how sure."""

    estimate: Estimate  # of ln of the ratio
    num_pairs: int  # launches compared one by one; 0: two independent samples
    level: float = FALSE_ALARMS  # what its chance is held against

    @property
    def interval(self) -> Interval:
        """The ratio and its 1 - level interval; no ends where there were too few launches."""
        return exp(self.estimate.interval(1 - self.level))

    @property
    def chance(self) -> float:
        """Of such a ratio if the two are equal, two-sided."""
        return self.estimate.chance

    @property
    def known(self) -> bool:
        """Whether there were launches enough to judge."""
        return not math.isnan(self.chance)

    @property
    def differs(self) -> bool:
        """Beyond chance; false where that is not known."""
        return self.chance <= self.level


def compare_launches(values: Sample, base: Sample) -> Ratio:
    """`values` over `base`, in pairs of one number where there are launches enough.

    Launches of one number ran in one block of the plan, so what drifts from block to block cancels
    in d = ln(value / base), whose mean has the interval.
    """
    num = len(values.values.keys() & base.values.keys())
    if num < MIN_LAUNCHES:
        return compare_samples(values, base)
    return Ratio(paired_difference(values, base), num)


def compare_samples(values: Sample, base: Sample) -> Ratio:
    """`values` over `base`, two independent samples."""
    return Ratio(difference(values, base), 0)


def jointly(ratios: Sequence[Ratio], *, of_the_best: bool = False) -> list[Ratio]:
    """Each judged so that all together err in FALSE_ALARMS (Holm 1979), with the interval of the
    level it was judged at.

    `of_the_best`: of k cases the one that looks best against the k - 1 others. It was chosen by the
    same launches, so that of equal ones it often lies apart by chance: they count as more
    comparisons, half way to all k (k - 1) / 2 pairs (benchmarks/simulation.py).
    """
    known = [index for index, ratio in enumerate(ratios) if ratio.known]
    family = len(known) * (len(known) + 3) / 4 if of_the_best else len(known)
    levels = holm_levels([ratios[index].chance for index in known], FALSE_ALARMS, family)
    found = dict(zip(known, levels, strict=True))
    return [ratio._replace(level=found.get(i, FALSE_ALARMS)) for i, ratio in enumerate(ratios)]


def holm(chances: Sequence[float], alpha: float) -> list[bool]:
    """Which of several tests pass together at level `alpha`."""
    levels = holm_levels(chances, alpha)
    return [chance <= level for chance, level in zip(chances, levels, strict=True)]


def holm_levels(chances: Sequence[float], alpha: float, family: float | None = None) -> list[float]:
    """What each of m chances is held against: the smallest alpha / m, the next alpha / (m - 1), and
    so on to the first that is larger, whose level all that follow have. m: `family`, if larger."""
    family = len(chances) if family is None else family
    levels = [0.0] * len(chances)
    stopped: float | None = None
    for rank, index in enumerate(sorted(range(len(chances)), key=lambda i: chances[i])):
        levels[index] = stopped or alpha / (family - rank)
        if chances[index] > levels[index]:
            stopped = levels[index]
    return levels
