"""When warm-up has ended, and how long the timed window then is: rules on evidence, judged on the
slowest rank of each step. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from andromeda_scale.suite.config import Warmup

BLOCK_STEPS = 5  # steps between two judgements
WINDOW_STEPS = 20  # steps a judgement looks back on
MAX_DRIFT = 0.01  # of the median step time, over the window
MARGIN = 1.2  # of a window in seconds: steps may become shorter than they were in warm-up


@dataclass(frozen=True)
class Block:
    """Consecutive steps of all ranks."""

    step_ns: tuple[int, ...]  # max over ranks
    steady: bool  # on every rank: no new memory from the device, no compilation


def next_block(warmup: Warmup, done: int) -> int:
    """Steps until the next judgement; 0 when none may follow."""
    size = max(warmup.min_steps, BLOCK_STEPS) if done == 0 else BLOCK_STEPS
    return min(size, warmup.max_steps - done)


def ended_by(warmup: Warmup, blocks: Sequence[Block]) -> str | None:
    """The rule that ends warm-up after these blocks, or None to go on.

    fixed: the bounds are equal. slope: |slope| x window below 1 % of the step time. flat: the
    slope's 95 % interval contains 0. max_steps: neither, until no step was left.
    """
    done = sum(len(block.step_ns) for block in blocks)
    if warmup.min_steps == warmup.max_steps:
        return "fixed" if done >= warmup.max_steps else None
    if done >= warmup.min_steps and blocks and blocks[-1].steady:
        times = [t for block in blocks for t in block.step_ns][-WINDOW_STEPS:]
        if len(times) >= BLOCK_STEPS:
            slope, low, high = theil_sen(np.array(times, dtype=np.float64))
            if abs(slope) * len(times) < MAX_DRIFT * float(np.median(times)):
                return "slope"
            if low <= 0 <= high:
                return "flat"
    return "max_steps" if done >= warmup.max_steps else None


def step_s(blocks: Sequence[Block]) -> float | None:
    """The median of the last steps of warm-up; None without one."""
    times = [t for block in blocks for t in block.step_ns][-WINDOW_STEPS:]
    return float(np.median(times)) / 1e9 if times else None


def window_steps(
    asked: int, least_steps: int, least_s: float, *, step_s: float | None, limit_s: float
) -> int:
    """Steps of the timed window: `asked`, or enough for `least_steps` and `least_s`.

    An extension ends at `limit_s`. Without a step time only the number of steps can be met.
    """
    if step_s is None or step_s <= 0:
        return max(asked, least_steps)
    needed = max(least_steps, math.ceil(MARGIN * least_s / step_s))
    return max(asked, min(needed, int(limit_s / step_s)))


def theil_sen(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Median slope per step of equidistant values, and its 95 % interval (Sen 1968).

    The interval's ends are order statistics of the n(n-1)/2 pairwise slopes, 1.96 standard
    deviations of Kendall's statistic, sqrt(n(n-1)(2n+5)/18), apart. It holds all slopes where
    these are too few.
    """
    n = len(values)
    first, second = np.triu_indices(n, k=1)
    slopes = np.sort((values[second] - values[first]) / (second - first))
    half_width = 1.959964 * np.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low = max(round((len(slopes) - half_width) / 2) - 1, 0)
    high = min(round((len(slopes) + half_width) / 2), len(slopes) - 1)
    return float(np.median(slopes)), float(slopes[low]), float(slopes[high])
