"""Intervals over launches: the launch is the unit of replication, not the step. No torch.

Rates and times vary by factors, so intervals are t intervals on logarithms of the launches'
values, and the centre is their geometric mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

MIN_LAUNCHES = 3  # with fewer, there is no interval between launches
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A centre with its 95 % interval; low and high are NaN where there is none."""

    centre: float
    low: float
    high: float


NOTHING = Interval(math.nan, math.nan, math.nan)


class Ratio(NamedTuple):
    """One case over another: the ratio, the chance of such a one if they are equal, how found."""

    interval: Interval
    chance: float  # two-sided p; NaN where there is no interval
    num_pairs: int  # launches compared one by one; 0: two independent samples

    @property
    def decided(self) -> bool:
        """Whether the interval leaves 1 out."""
        return self.interval.low > 1 or self.interval.high < 1


def mean_interval(values: Sequence[float]) -> Interval:
    """Arithmetic mean of launches with a t interval."""
    if not len(values):
        return NOTHING
    mean, squared_error, df = _mean(np.asarray(values, dtype=float))
    return _interval(mean, squared_error, df, enough=len(values) >= MIN_LAUNCHES)


def log_interval(values: Sequence[float]) -> Interval:
    """Geometric mean of launches with a t interval on their logs. Values must be positive."""
    if not len(values):
        return NOTHING
    mean, squared_error, df = _mean(np.log(np.asarray(values, dtype=float)))
    enough = len(values) >= MIN_LAUNCHES
    return _exp(_interval(mean, squared_error, df, enough=enough))


def log_ratio_interval(values: Sequence[float], base: Sequence[float]) -> Interval:
    """Geometric mean of `values` over that of `base`, with Welch's t interval on the logs.

    Degrees of freedom after Welch (1947) and Satterthwaite (1946).
    """
    return _welch(values, base)[0]


def _welch(values: Sequence[float], base: Sequence[float]) -> tuple[Interval, float]:
    if not len(values) or not len(base):
        return NOTHING, math.nan
    mean_a, error_a, df_a = _mean(np.log(np.asarray(values, dtype=float)))
    mean_b, error_b, df_b = _mean(np.log(np.asarray(base, dtype=float)))
    enough = min(len(values), len(base)) >= MIN_LAUNCHES
    squared_error = error_a + error_b
    df = math.nan
    if enough and squared_error > 0:
        df = squared_error**2 / (error_a**2 / df_a + error_b**2 / df_b)
    mean = mean_a - mean_b
    chance = _chance(mean, squared_error, df) if enough else math.nan
    return _exp(_interval(mean, squared_error, df, enough=enough)), chance


def _chance(mean: float, squared_error: float, df: float) -> float:
    """P(|t| as large as this | the mean is 0), two-sided."""
    if squared_error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stdtr(df, -abs(mean) / math.sqrt(squared_error)))


def compare_launches(values: Mapping[int, float], base: Mapping[int, float]) -> Ratio:
    """`values` over `base`, both by number of launch, in pairs where there are enough of them.

    Launches of one number ran in one block of the plan, so what drifts from block to block cancels
    in d = ln(value / base): a t interval on the mean of d. Otherwise Welch's.
    """
    shared = sorted(values.keys() & base.keys())
    if len(shared) < MIN_LAUNCHES:
        interval, chance = _welch(list(values.values()), list(base.values()))
        return Ratio(interval, chance, 0)
    a, b = (np.array([of[key] for key in shared], dtype=float) for of in (values, base))
    mean, squared_error, df = _mean(np.log(a / b))
    interval = _exp(_interval(mean, squared_error, df, enough=True))
    return Ratio(interval, _chance(mean, squared_error, df), len(shared))


def sign_test(num_positive: int, num: int) -> float:
    """P(at least `num_positive` of `num` signs are positive | either is as likely), one-sided."""
    return float(sum(math.comb(num, k) for k in range(num_positive, num + 1)) / 2**num)


def holm(chances: Sequence[float], alpha: float) -> list[bool]:
    """Which of several tests pass together at level `alpha` (Holm 1979): the smallest of m chances
    below alpha / m, the next below alpha / (m - 1), and so on to the first that is not."""
    passed = [False] * len(chances)
    for rank, index in enumerate(sorted(range(len(chances)), key=lambda i: chances[i])):
        if chances[index] > alpha / (len(chances) - rank):
            break
        passed[index] = True
    return passed


def _mean(values: np.ndarray) -> tuple[float, float, int]:
    """Mean, its squared standard error (0 for one value) and degrees of freedom."""
    num = len(values)
    variance = float(values.var(ddof=1)) if num > 1 else 0.0
    return float(values.mean()), variance / num, num - 1


def _interval(centre: float, squared_error: float, df: float, *, enough: bool) -> Interval:
    if not enough:
        return Interval(centre, math.nan, math.nan)
    if squared_error == 0:
        return Interval(centre, centre, centre)
    half = float(stdtrit(df, (1 + CONFIDENCE) / 2)) * math.sqrt(squared_error)
    return Interval(centre, centre - half, centre + half)


def _exp(interval: Interval) -> Interval:
    """exp of each; inf where a float cannot hold it."""
    with np.errstate(over="ignore"):
        return Interval(*(float(np.exp(value)) for value in interval))
