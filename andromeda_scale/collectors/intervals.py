"""Arithmetic on sets of time intervals, vectorised: what exposure and waiting are made of.

A set is an int64 array (n, 2) of [start, end) in nanoseconds. A *union* is a set that is sorted,
disjoint and without empty intervals: what `union` and `minus` return and the others take.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Intervals = NDArray[np.int64]


def intervals(starts: ArrayLike, ends: ArrayLike) -> Intervals:
    """The set of [starts[i], ends[i]), in the order given."""
    return np.stack([np.asarray(starts, np.int64), np.asarray(ends, np.int64)], axis=-1)


def union(*sets: Intervals) -> Intervals:
    """All points of the sets, as a union: intervals that touch or overlap are merged."""
    x = np.concatenate(sets) if sets else np.empty((0, 2), np.int64)
    x = x[x[:, 1] > x[:, 0]]
    if not len(x):
        return np.empty((0, 2), np.int64)
    x = x[np.argsort(x[:, 0], kind="stable")]
    reached = np.maximum.accumulate(x[:, 1])  # furthest end so far
    first = np.concatenate([[True], x[1:, 0] > reached[:-1]])
    last = np.concatenate([first[1:], [True]])
    return intervals(x[first, 0], reached[last])


def covers(a: Intervals, points: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each point lies in the union `a`."""
    if not len(a):
        return np.zeros(np.shape(points), dtype=bool)
    index = np.searchsorted(a[:, 0], points, side="right") - 1
    inside: NDArray[np.bool_] = (index >= 0) & (points < a[index, 1])
    return inside


def minus(a: Intervals, b: Intervals) -> Intervals:
    """The points of union `a` that are not in union `b`, as a union."""
    if not len(a) or not len(b):
        return a
    # The gaps of b are what may remain of a: for each interval of a, those that overlap it.
    low, high = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    starts, ends = np.concatenate([[low], b[:, 1]]), np.concatenate([b[:, 0], [high]])
    first = np.searchsorted(ends, a[:, 0], side="right")
    count = np.searchsorted(starts, a[:, 1], side="left") - first
    owner = np.repeat(np.arange(len(a)), count)
    gap = np.arange(len(owner)) + np.repeat(first - (np.cumsum(count) - count), count)
    return intervals(np.maximum(a[owner, 0], starts[gap]), np.minimum(a[owner, 1], ends[gap]))


def disjoint(a: Intervals) -> Intervals:
    """Each interval of a set from where all that began before it have ended: disjoint, in the
    order given, some of them empty."""
    order = np.argsort(a[:, 0], kind="stable")
    reached = np.maximum.accumulate(a[order, 1])
    starts = a[:, 0].copy()
    starts[order[1:]] = np.maximum(starts[order[1:]], reached[:-1])
    return intervals(starts, np.maximum(starts, a[:, 1]))


def length_within(a: Intervals, windows: Intervals) -> NDArray[np.int64]:
    """Nanoseconds of union `a` inside each window; windows may overlap and come in any order."""
    if not len(a):
        return np.zeros(len(windows), np.int64)
    total = np.concatenate([[0], np.cumsum(a[:, 1] - a[:, 0])])

    def below(t: NDArray[np.int64]) -> NDArray[np.int64]:
        count = np.searchsorted(a[:, 0], t, side="right")  # intervals that started by t
        unfinished = np.maximum(a[np.maximum(count - 1, 0), 1] - t, 0)
        result: NDArray[np.int64] = total[count] - np.where(count > 0, unfinished, 0)
        return result

    return below(windows[:, 1]) - below(windows[:, 0])
