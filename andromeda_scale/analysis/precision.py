"""How well a case is known, and what it would take to know it better. No torch."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from andromeda_scale.analysis.resampling import correlation_time
from andromeda_scale.analysis.stats import CONFIDENCE, MIN_LAUNCHES, Interval, Sample

WANTED = 0.01  # where a suite says nothing
MAX_NEEDED = 10**4  # launches; more is no plan


class Needed(NamedTuple):
    """Launches of as many steps, or steps a launch in as many launches; None: not that way."""

    launches: int | None
    steps: int | None


def half_width(interval: Interval) -> float:
    """Half of an interval of logs, relative: sqrt(high / low) - 1; NaN where there is none."""
    return math.sqrt(interval.high / interval.low) - 1 if interval.low > 0 else math.nan


def needed(sample: Sample, precision: float) -> Needed:
    """What makes the t interval of the logs as narrow as +- `precision`, as the launches vary now.

    The variance of a launch's log mean is V = b + w/m: b between launches, and w/m of its m steps,
    w = variance of the log steps * correlation time. More launches divide V, more steps only w/m.
    """
    logs = np.log(np.array(list(sample.values.values()), dtype=float))
    if len(logs) < MIN_LAUNCHES:
        return Needed(None, None)
    variance, wanted = float(logs.var(ddof=1)), math.log1p(precision)
    counts = np.arange(MIN_LAUNCHES, MAX_NEEDED)
    enough = _quantiles()[counts] * np.sqrt(variance / counts) <= wanted
    launches = int(counts[enough.argmax()]) if enough.any() else None
    series = [sample.steps[key] for key in sample.values if len(sample.steps.get(key, ())) > 1]
    if len(series) < len(logs):
        return Needed(launches, None)
    within = float(np.mean([np.log(one).var(ddof=1) * correlation_time(one) for one in series]))
    mean_steps = float(np.mean([len(one) for one in series]))
    between = max(0.0, variance - within / mean_steps)
    room = len(logs) * (wanted / float(_t(np.array(len(logs))))) ** 2 - between
    return Needed(launches, math.ceil(within / room) if room > 0 else None)


@cache
def _quantiles() -> NDArray[np.float64]:
    """Student's t of an interval over 0..MAX_NEEDED launches; the same for every case."""
    return _t(np.arange(MAX_NEEDED))


def _t(launches: NDArray[np.int64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = stdtrit(launches - 1, (1 + CONFIDENCE) / 2)
    return found
