"""How evenly ranks compute, and whether one of them stands out. No torch."""

from __future__ import annotations

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
    steps_slower: int  # than the median of the other ranks
    num_steps: int


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
    """The rank with the largest median compute, from (ranks, steps) seconds; None for one rank."""
    num_ranks, num_steps = compute_s.shape
    if num_ranks < 2:
        return None
    rank = int(np.median(compute_s, axis=1).argmax())
    gap = compute_s[rank] - np.median(np.delete(compute_s, rank, axis=0), axis=0)
    excess = float(np.median(gap) / np.median(step_s.max(axis=0)))
    return Slowest(rank, excess, int(np.count_nonzero(gap > 0)), num_steps)


def slow_rank(launches: Sequence[Slowest], num_ranks: int) -> int | None:
    """The rank to call slow, or None where none stands out of the noise.

    It is the slowest of every launch (each places its processes anew, so one launch's may be an
    accident), by more than MIN_EXCESS of the step in each; over at least MIN_STEPS steps in all,
    a sign test passes ALPHA / num_ranks (it was chosen among them); and from MIN_LAUNCHES launches
    the 95 % t interval of its excess lies above 0.
    """
    if not launches or len({launch.rank for launch in launches}) > 1:
        return None
    if min(launch.excess for launch in launches) <= MIN_EXCESS:
        return None
    num_steps = sum(launch.num_steps for launch in launches)
    chance = sign_test(sum(launch.steps_slower for launch in launches), num_steps)
    if num_steps < MIN_STEPS or chance >= ALPHA / num_ranks:
        return None
    if len(launches) >= MIN_LAUNCHES and mean_interval([one.excess for one in launches]).low <= 0:
        return None
    return launches[0].rank
