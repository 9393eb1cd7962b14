"""Intervals over launches: the launch is the unit of replication, not the step. No torch.

Rates and times vary by factors, so intervals are made on logarithms of the launches' values, and
the centre is their geometric mean. From 3 launches it is a t interval; from MIN_BOOTSTRAP, where
their steps are known, a nested bootstrap-t: launches are drawn with replacement, then moving blocks
of the steps of each, and the interval is made of the quantile of |mean* - mean| / error*. Dividing
by the error of each draw is needed: plain percentiles of the nested bootstrap cover between 85 and
99 % (benchmarks/simulation.py). Which of two cases is faster is `comparison.py`'s.
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
WIDEST = 1.5  # times Student's interval, of a bootstrap's
STEP_DRAWS = 500  # means of resampled steps that the draws of a launch choose from
SEED = 0  # the same records give the same table


class Interval(NamedTuple):
    """A centre with its 95 % interval; low and high are NaN where there is none."""

    centre: float
    low: float
    high: float


NOTHING = Interval(math.nan, math.nan, math.nan)


class Estimate(NamedTuple):
    """A mean whose error is Student's, `df` degrees; error NaN: too few launches, 0: all agree."""

    mean: float
    error: float  # standard
    df: float

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """mean +- t * error."""
        half = 0.0
        if self.error != 0:
            half = float(stdtrit(self.df, (1 + confidence) / 2)) * self.error
        return Interval(self.mean, self.mean - half, self.mean + half)

    @property
    def chance(self) -> float:
        """P(|t| as large as this | the mean is 0), two-sided; NaN: too few launches."""
        if self.error == 0:
            return 1.0 if self.mean == 0 else 0.0
        return float(2 * stdtr(self.df, -abs(self.mean) / self.error))


UNKNOWN = Estimate(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Sample:
    """The launches of a case by their number: a value of each, and the steps it was made of."""

    values: Mapping[int, float]
    steps: Mapping[int, Series] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)


class _Launches(NamedTuple):
    """Launches or their ln, (n,), and each with its steps resampled, (n, STEP_DRAWS), if known."""

    values: NDArray[np.float64]
    resampled: NDArray[np.float64] | None


def mean_interval(values: Sequence[float] | Sample) -> Interval:
    """Arithmetic mean of launches with its interval."""
    return _one(_plain(_sample(values))).interval()


def log_interval(values: Sequence[float] | Sample) -> Interval:
    """Geometric mean of launches with its interval. Values must be positive."""
    return exp(_one(_logs(_sample(values))).interval())


def log_ratio_interval(
    values: Sequence[float] | Sample, base: Sequence[float] | Sample
) -> Interval:
    """Geometric mean of `values` over that of `base`, two independent samples."""
    return exp(difference(_sample(values), _sample(base)).interval())


def difference(values: Sample, base: Sample) -> Estimate:
    """Mean of ln `values` less that of ln `base`, two independent samples.

    Their errors differ, so degrees of freedom are estimated, as by `_joint_df`; from MIN_BOOTSTRAP
    launches of both the bootstrap-t with Welch's error.
    """
    a, b = _logs(values), _logs(base)
    if not len(a.values) or not len(b.values):
        return UNKNOWN
    (mean_a, error_a, df_a), (mean_b, error_b, df_b) = _mean(a.values), _mean(b.values)
    mean, squared_error = mean_a - mean_b, error_a + error_b
    if min(len(a.values), len(b.values)) < MIN_LAUNCHES:
        return Estimate(mean, math.nan, math.nan)
    if squared_error == 0:
        return Estimate(mean, 0.0, math.nan)
    df = _joint_df(error_a, df_a, error_b, df_b)
    if a.resampled is None or b.resampled is None:
        return Estimate(mean, math.sqrt(squared_error), df)
    (drawn_a, errors_a), (drawn_b, errors_b) = _draw(a), _draw(b, SEED + 1)
    deviations, errors = drawn_a - drawn_b - mean, errors_a + errors_b
    return _studentised(mean, squared_error, df, deviations, errors)


def paired_difference(values: Sample, base: Sample) -> Estimate:
    """Mean of ln(value / base) over launches of one number.

    Where both have as many steps, which saw the same batches, blocks of steps are drawn in pairs.
    """
    shared = sorted(values.values.keys() & base.values.keys())
    of_values, of_base = ({key: one.values[key] for key in shared} for one in (values, base))
    return _one(_logs(Sample(of_values, values.steps), Sample(of_base, base.steps)))


def exp(interval: Interval) -> Interval:
    """exp of each; inf where a float cannot hold it."""
    with np.errstate(over="ignore"):
        return Interval(*(float(np.exp(value)) for value in interval))


def sign_test(num_positive: int, num: int) -> float:
    """P(at least `num_positive` of `num` signs are positive | either is as likely), one-sided."""
    return float(sum(math.comb(num, k) for k in range(num_positive, num + 1)) / 2**num)


def _sample(values: Sequence[float] | Sample) -> Sample:
    return values if isinstance(values, Sample) else Sample(dict(enumerate(values)))


def _logs(sample: Sample, base: Sample | None = None) -> _Launches:
    """ln of each launch, or of its ratio to that of the same number in `base`."""
    keys = list(sample.values)
    logs = np.log(np.array([sample.values[key] for key in keys], dtype=float))
    if base is not None:
        logs = logs - np.log(np.array([base.values[key] for key in keys], dtype=float))
    if not all(_many_steps(one) for one in (sample, base) if one is not None):
        return _Launches(logs, None)
    rng = np.random.default_rng(SEED)
    errors = [
        _step_errors(sample.steps[key], None if base is None else base.steps[key], rng)
        for key in keys
    ]
    return _Launches(logs, logs[:, None] + np.stack(errors))


def _plain(sample: Sample) -> _Launches:
    """Each launch as it is; of a draw of its steps, moved by as much as their mean is."""
    values = np.array([*sample.values.values()], dtype=float)
    if not _many_steps(sample):
        return _Launches(values, None)
    rng = np.random.default_rng(SEED)
    moved = []
    for steps in (sample.steps[key] for key in sample.values):
        means = block_means(steps[None], block_steps(steps), STEP_DRAWS, rng)[:, 0]
        moved.append(means - steps.mean())
    return _Launches(values, values[:, None] + np.stack(moved))


def _many_steps(sample: Sample) -> bool:
    """Whether there are launches enough for the bootstrap, and steps of each."""
    return len(sample) >= MIN_BOOTSTRAP and all(
        len(sample.steps.get(key, ())) > 1 for key in sample.values
    )


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


def _one(logs: _Launches) -> Estimate:
    """The mean of one sample of logs."""
    if not len(logs.values):
        return UNKNOWN
    mean, squared_error, df = _mean(logs.values)
    if len(logs.values) < MIN_LAUNCHES:
        return Estimate(mean, math.nan, math.nan)
    if logs.resampled is None or squared_error == 0:
        return Estimate(mean, math.sqrt(squared_error), df)
    drawn, errors = _draw(logs)
    return _studentised(mean, squared_error, df, drawn - mean, errors)


def _draw(logs: _Launches, seed: int = SEED) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
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
    df: float,
    deviations: NDArray[np.float64],
    errors: NDArray[np.float64],
) -> Estimate:
    """Symmetric bootstrap-t: mean +- error * quantile of |mean* - mean| / error* (Hall 1988).

    Its coverage errs by less than that of the two tails apart. Draws without a spread say nothing.
    The error is scaled so that Student's 95 % interval is the bootstrap's, whose draws do not reach
    the tails that many comparisons at once ask for. It is WIDEST times Student's at most: a third
    of the draws of six launches lack the one that is slow, and their error, of launches that agree,
    would make an interval ten times as wide that covers no more.
    """
    some = errors > 0
    ratio = float(np.quantile(np.abs(deviations[some]) / np.sqrt(errors[some]), CONFIDENCE))
    scale = min(ratio / float(stdtrit(df, (1 + CONFIDENCE) / 2)), WIDEST)
    return Estimate(mean, scale * math.sqrt(squared_error), df)


def _mean(values: np.ndarray) -> tuple[float, float, int]:
    """Mean, its squared standard error (0 for one value) and degrees of freedom."""
    num = len(values)
    variance = float(values.var(ddof=1)) if num > 1 else 0.0
    return float(values.mean()), variance / num, num - 1


def _joint_df(error_a: float, df_a: int, error_b: float, df_b: int) -> float:
    """Degrees of freedom of a sum of two squared errors, (A + B)^2 / (A^2/a + B^2/b).

    By a = df + k and k taken off the whole: k = 0 is Satterthwaite's (1946), with 3 launches 94.1
    to 97.1 % coverage as the ratio of the errors and the noise may be; k = 2 is Welch's (1947) of
    estimated errors, 92.8 to 95.7 %. k = 1 lies between, 93.4 to 96.3 %.
    """
    weights = error_a**2 / (df_a + 1) + error_b**2 / (df_b + 1)
    return (error_a + error_b) ** 2 / weights - 1
