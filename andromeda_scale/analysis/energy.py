"""Energy between two moments, from the samples of a cumulative counter. No torch."""

from __future__ import annotations

import numpy as np


def energy_between(
    times_s: np.ndarray, energy_j: np.ndarray, start_s: float, end_s: float
) -> float | None:
    """Joules from `start_s` to `end_s`, the counter interpolated linearly at both edges.

    None unless the samples grow in time and in joules and enclose both edges: then they are of
    another clock, or of a counter that stood still, as RAPL's does in some virtual machines.
    """
    if len(times_s) != len(energy_j) or len(times_s) < 2 or not start_s < end_s:
        return None
    if (np.diff(times_s) <= 0).any() or (np.diff(energy_j) < 0).any():
        return None
    if start_s < times_s[0] or end_s > times_s[-1]:
        return None
    first, last = np.interp((start_s, end_s), times_s, energy_j)
    return float(last - first) if last > first else None
