"""Steps of a launch as a correlated series: their autocorrelation, and moving blocks of them.

No torch. Steps that follow each other are alike (clocks, allocator, neighbours), so the error of
their mean is larger than s/sqrt(n), and what is resampled is blocks of them.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Series = NDArray[np.float64]

MIN_STEPS = 8  # fewer say nothing about their correlation
MAX_CORRELATION = 0.97  # a longer memory than a window can show


def autocorrelation(steps: Series) -> float:
    """Correlation of a step with the next; NaN under MIN_STEPS or where all steps are equal."""
    centred = steps - steps.mean()
    variance = float(centred @ centred)
    if len(steps) < MIN_STEPS or variance == 0:
        return math.nan
    return float(centred[1:] @ centred[:-1]) / variance


def correlation_time(steps: Series) -> float:
    """By what factor the variance of the mean exceeds s^2/n: (1 + r)/(1 - r), at least 1.

    That of a first-order autoregressive series with lag-1 correlation r.
    """
    return correlation_time_of(autocorrelation(steps))


def correlation_time_of(r: float) -> float:
    """`correlation_time` of a series whose lag-1 correlation is r; 1 where r is NaN."""
    r = min(max(r, 0.0), MAX_CORRELATION) if r == r else 0.0
    return (1 + r) / (1 - r)


def block_steps(steps: Series) -> int:
    """Length of the blocks: (2r/(1 - r^2))^(2/3) n^(1/3) (Carlstein 1986), at most half of all."""
    r = autocorrelation(steps)
    if not r > 0:
        return 1
    r = min(r, MAX_CORRELATION)
    length = math.ceil(float((2 * r / (1 - r * r)) ** (2 / 3) * len(steps) ** (1 / 3)))
    return max(1, min(length, len(steps) // 2))


def block_means(
    series: NDArray[np.float64], length: int, num: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """(num, k) means of k series, (k, steps), over blocks of `length` steps drawn with replacement.

    The series share the blocks of a draw. Blocks are circular, so that every step is as likely.
    """
    count = series.shape[1]
    wrapped = np.concatenate([series, series[:, :length]], axis=1)
    sums = np.concatenate([np.zeros((len(series), 1)), np.cumsum(wrapped, axis=1)], axis=1)
    blocks = sums[:, length : length + count] - sums[:, :count]
    per_draw = math.ceil(count / length)
    starts = rng.integers(0, count, (num, per_draw))
    means: NDArray[np.float64] = blocks[:, starts].sum(axis=2).T / (per_draw * length)
    return means
