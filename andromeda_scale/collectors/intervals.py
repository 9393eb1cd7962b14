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
    edges = np.unique(np.concatenate([a.ravel(), b.ravel()]))
    starts, ends = edges[:-1], edges[1:]  # no edge lies inside one of these pieces
    kept = covers(a, starts) & ~covers(b, starts)
    return union(intervals(starts[kept], ends[kept]))


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
