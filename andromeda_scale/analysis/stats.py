"""Intervals over launches: the launch is the unit of replication, not the step. No torch.

Rates and times vary by factors, so intervals are made on logarithms of the launches' values, and
the centre is their geometric mean. From 3 launches it is a t interval; from MIN_BOOTSTRAP, where
their steps are known, a nested bootstrap-t: launches are drawn with replacement, then moving blocks
of the steps of each, and the interval is made of the quantiles of (mean* - mean) / error*. Dividing
by the error of each draw is needed: plain percentiles of the nested bootstrap cover between 85 and
99 % (benchmarks/statistics.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from andromeda_scale.analysis.resampling import Series, block_means, block_steps

MIN_LAUNCHES = 3  # with fewer, there is no interval between launches
MIN_BOOTSTRAP = 6  # with fewer, too few different draws
CONFIDENCE = 0.95
DRAWS = 2000
STEP_DRAWS = 500  # means of resampled steps that the draws of a launch choose from
SEED = 0  # the same records give the same table


class Interval(NamedTuple):
    """A centre with its 95 % interval; low and high are NaN where there is none."""

    centre: float
    low: float
    high: float


NOTHING = Interval(math.nan, math.nan, math.nan)


class Ratio(NamedTuple):
    """One case over another: the ratio, the chance of such a one if they are equal, how found."""

    interval: Interval
    chance: float  # two-sided p of Student's t; NaN where there is no interval
    num_pairs: int  # launches compared one by one; 0: two independent samples

    @property
    def known(self) -> bool:
        """Whether there were launches enough to judge."""
        return not math.isnan(self.chance)


@dataclass(frozen=True)
class Sample:
    """The launches of a case by their number: a value of each, and the steps it was made of."""

    values: Mapping[int, float]
    steps: Mapping[int, Series] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)


class _Logs(NamedTuple):
    """ln of launches, (n,), and of each with its steps resampled, (n, STEP_DRAWS), if known."""

    values: NDArray[np.float64]
    resampled: NDArray[np.float64] | None


def mean_interval(values: Sequence[float]) -> Interval:
    """Arithmetic mean of launches with a t interval."""
    if not len(values):
        return NOTHING
    mean, squared_error, df = _mean(np.asarray(values, dtype=float))
    return _interval(mean, squared_error, df, enough=len(values) >= MIN_LAUNCHES)


def log_interval(values: Sequence[float] | Sample) -> Interval:
    """Geometric mean of launches with its interval. Values must be positive."""
    logs = _logs(_sample(values))
    if not len(logs.values):
        return NOTHING
    return _exp(_one(logs))


def log_ratio_interval(
    values: Sequence[float] | Sample, base: Sequence[float] | Sample
) -> Interval:
    """Geometric mean of `values` over that of `base`, two independent samples.

    Welch's t interval on the logs, degrees of freedom after Welch (1947) and Satterthwaite (1946);
    from MIN_BOOTSTRAP launches of both the bootstrap-t with Welch's error.
    """
    return compare_samples(_sample(values), _sample(base)).interval


def compare_launches(values: Sample, base: Sample) -> Ratio:
    """`values` over `base`, in pairs of one number where there are launches enough.

    Launches of one number ran in one block of the plan, so what drifts from block to block cancels
    in d = ln(value / base), whose mean has the interval. Where both have as many steps, which saw
    the same batches, blocks of steps are drawn in pairs too.
    """
    shared = sorted(values.values.keys() & base.values.keys())
    if len(shared) < MIN_LAUNCHES:
        return compare_samples(values, base)
    logs = _logs(
        Sample({key: values.values[key] for key in shared}, values.steps),
        Sample({key: base.values[key] for key in shared}, base.steps),
    )
    return Ratio(_exp(_one(logs)), _chance(*_mean(logs.values)), len(shared))


def compare_samples(values: Sample, base: Sample) -> Ratio:
    """`values` over `base`, two independent samples: as `log_ratio_interval`."""
    a, b = _logs(values), _logs(base)
    if not len(a.values) or not len(b.values):
        return Ratio(NOTHING, math.nan, 0)
    mean_a, error_a, df_a = _mean(a.values)
    mean_b, error_b, df_b = _mean(b.values)
    mean, squared_error = mean_a - mean_b, error_a + error_b
    if min(len(a.values), len(b.values)) < MIN_LAUNCHES:
        return Ratio(_exp(_interval(mean, squared_error, math.nan, enough=False)), math.nan, 0)
    df = math.nan
    if squared_error > 0:
        df = squared_error**2 / (error_a**2 / df_a + error_b**2 / df_b)
    chance = _chance(mean, squared_error, df)
    if a.resampled is None or b.resampled is None or squared_error == 0:
        return Ratio(_exp(_interval(mean, squared_error, df, enough=True)), chance, 0)
    (drawn_a, errors_a), (drawn_b, errors_b) = _draw(a), _draw(b, SEED + 1)
    interval = _studentised(mean, squared_error, drawn_a - drawn_b - mean, errors_a + errors_b)
    return Ratio(_exp(interval), chance, 0)


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


def _sample(values: Sequence[float] | Sample) -> Sample:
    return values if isinstance(values, Sample) else Sample(dict(enumerate(values)))


def _logs(sample: Sample, base: Sample | None = None) -> _Logs:
    """ln of each launch, or of its ratio to that of the same number in `base`."""
    keys = list(sample.values)
    logs = np.log(np.array([sample.values[key] for key in keys], dtype=float))
    if base is not None:
        logs = logs - np.log(np.array([base.values[key] for key in keys], dtype=float))
    known = all(
        len(one.steps.get(key, ())) > 1 for key in keys for one in (sample, base) if one is not None
    )
    if len(keys) < MIN_BOOTSTRAP or not known:
        return _Logs(logs, None)
    rng = np.random.default_rng(SEED)
    errors = [
        _step_errors(sample.steps[key], None if base is None else base.steps[key], rng)
        for key in keys
    ]
    return _Logs(logs, logs[:, None] + np.stack(errors))


def _step_errors(
    steps: Series, base: Series | None, rng: np.random.Generator
) -> NDArray[np.float64]:
    """(STEP_DRAWS,) ln of the mean of resampled steps over the mean of the steps, negative for a
    longer mean: values are rates. Less that of `base`, in the same blocks where lengths agree."""
    if base is None:
        return -_log_means(steps[None], rng)[:, 0]
    if len(base) != len(steps):
        return _step_errors(steps, None, rng) - _step_errors(base, None, rng)
    both = _log_means(np.stack([steps, base]), rng)
    difference: NDArray[np.float64] = both[:, 1] - both[:, 0]
    return difference


def _log_means(series: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    length = max(block_steps(one) for one in series)
    means: NDArray[np.float64] = np.log(
        block_means(series, length, STEP_DRAWS, rng) / series.mean(axis=1)
    )
    return means


def _one(logs: _Logs) -> Interval:
    """The mean of one sample of logs."""
    mean, squared_error, df = _mean(logs.values)
    if logs.resampled is None or squared_error == 0:
        return _interval(mean, squared_error, df, enough=len(logs.values) >= MIN_LAUNCHES)
    drawn, errors = _draw(logs)
    return _studentised(mean, squared_error, drawn - mean, errors)


def _draw(logs: _Logs, seed: int = SEED) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means and their squared standard errors, (DRAWS,) each, of launches drawn with replacement,
    each with steps drawn anew."""
    assert logs.resampled is not None
    rng = np.random.default_rng(seed)
    num = len(logs.values)
    shape = (DRAWS, num)
    drawn = logs.resampled[rng.integers(0, num, shape), rng.integers(0, STEP_DRAWS, shape)]
    return drawn.mean(axis=1), drawn.var(axis=1, ddof=1) / num


def _studentised(
    mean: float,
    squared_error: float,
    deviations: NDArray[np.float64],
    errors: NDArray[np.float64],
) -> Interval:
    """Symmetric bootstrap-t: mean +- error * quantile of |mean* - mean| / error* (Hall 1988).

    Its coverage errs by less than that of the two tails apart. Draws without a spread say nothing.
    """
    some = errors > 0
    ratio = float(np.quantile(np.abs(deviations[some]) / np.sqrt(errors[some]), CONFIDENCE))
    half = ratio * math.sqrt(squared_error)
    return Interval(mean, mean - half, mean + half)


def _mean(values: np.ndarray) -> tuple[float, float, int]:
    """Mean, its squared standard error (0 for one value) and degrees of freedom."""
    num = len(values)
    variance = float(values.var(ddof=1)) if num > 1 else 0.0
    return float(values.mean()), variance / num, num - 1


def _chance(mean: float, squared_error: float, df: float) -> float:
    """P(|t| as large as this | the mean is 0), two-sided."""
    if squared_error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stdtr(df, -abs(mean) / math.sqrt(squared_error)))


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
