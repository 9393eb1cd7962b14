"""How evenly ranks compute. No torch."""

from __future__ import annotations

import numpy as np


def imbalance(compute_s: np.ndarray) -> dict[str, float]:
    """Excess of the slowest rank over the mean, from (ranks, steps) seconds of computing.

    `imbalance` averages over steps, so that a rank late in 30 % of them shows (a median would
    hide it); the persistent part is that of the ranks' medians, but no more than the whole, which a
    rank late in little more than half of the steps has less of; the transient part is the rest.
    """
    total = float(np.mean(_excess(compute_s)))
    persistent = min(float(_excess(np.median(compute_s, axis=1))), total)
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
