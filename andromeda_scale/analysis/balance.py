"""How evenly ranks compute, and whether one of them stands out. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from andromeda_scale.analysis.stats import MIN_LAUNCHES, mean_interval, sign_test

MIN_STEPS = 20  # fewer steps allow no verdict on a rank
MIN_EXCESS = 0.02  # of the step: a smaller difference is not worth naming
ALPHA = 0.05


class Slowest(NamedTuple):
    """The rank that computed longest in one launch."""

    rank: int
    excess: float  # share of the step, see METRICS["slow_rank_excess"]
    stands_out: bool  # out of this launch's own noise


def imbalance(compute_s: np.ndarray) -> dict[str, float]:
    """Excess of the slowest rank over the mean, from (ranks, steps) seconds of computing.

    `imbalance` averages over steps, so that a rank late in 30 % of them shows (a median would
    hide it); the persistent part is that of the ranks' medians, the transient part the rest.
    """
    total = float(np.mean(_excess(compute_s)))
    persistent = float(_excess(np.median(compute_s, axis=1)))
    return {
        "imbalance": total,
        "imbalance_persistent": persistent,
        "imbalance_transient": total - persistent,
    }


def _excess(compute_s: np.ndarray) -> np.ndarray:
    mean = compute_s.mean(axis=0)
    ratio: np.ndarray = np.divide(
        compute_s.max(axis=0), mean, out=np.ones_like(mean), where=mean > 0
    )
    return ratio - 1


def slowest(compute_s: np.ndarray, step_s: np.ndarray) -> Slowest | None:
    """The rank with the largest median compute, from (ranks, steps) seconds; None for one rank.

    It stands out if there are MIN_STEPS steps, its median excess over the others' median is
    above MIN_EXCESS of the median step, and a sign test over the steps passes ALPHA / ranks (it
    was chosen among them all).
    """
    num_ranks, num_steps = compute_s.shape
    if num_ranks < 2:
        return None
    rank = int(np.median(compute_s, axis=1).argmax())
    gap = compute_s[rank] - np.median(np.delete(compute_s, rank, axis=0), axis=0)
    excess = float(np.median(gap) / np.median(step_s.max(axis=0)))
    stands_out = (
        num_steps >= MIN_STEPS and excess > MIN_EXCESS and sign_test(gap) < ALPHA / num_ranks
    )
    return Slowest(rank, excess, stands_out)


def slow_rank(launches: Sequence[Slowest]) -> int | None:
    """The rank to name for a case: one that stands out in every launch, or None.

    A launch places its processes anew, so one launch's slow rank may be an accident of placement.
    From MIN_LAUNCHES launches the 95 % t interval of its excess must also lie above 0.
    """
    if not launches or len({launch.rank for launch in launches}) > 1:
        return None
    if not all(launch.stands_out for launch in launches):
        return None
    low = mean_interval([launch.excess for launch in launches]).low
    if len(launches) >= MIN_LAUNCHES and (math.isnan(low) or low <= 0):
        return None
    return launches[0].rank
