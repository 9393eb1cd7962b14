"""Interval arithmetic against counting the nanoseconds one by one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from andromeda_scale.collectors.intervals import (
    Intervals,
    covers,
    intervals,
    length_within,
    minus,
    union,
)

END = 40
pairs = st.lists(st.tuples(st.integers(0, END), st.integers(0, END)).map(sorted), max_size=12)


def as_set(x: list[list[int]]) -> Intervals:
    return np.array(x, np.int64).reshape(-1, 2)


def points(x: Intervals) -> set[int]:
    return {t for start, end in x.tolist() for t in range(start, end)}


def is_union(x: Intervals) -> bool:
    flat = x.ravel()
    return bool(np.all(flat[1:] > flat[:-1]))  # sorted, disjoint, none empty, none touching


@given(pairs, pairs)
def test_union_holds_the_points_of_both_sets(a: list[list[int]], b: list[list[int]]) -> None:
    result = union(as_set(a), as_set(b))
    assert is_union(result)
    assert points(result) == points(as_set(a)) | points(as_set(b))


@given(pairs, pairs)
def test_minus_holds_the_points_of_the_first_alone(a: list[list[int]], b: list[list[int]]) -> None:
    result = minus(union(as_set(a)), union(as_set(b)))
    assert is_union(result)
    assert points(result) == points(as_set(a)) - points(as_set(b))


@given(pairs, pairs)
def test_length_within_counts_each_window_alone(a: list[list[int]], b: list[list[int]]) -> None:
    covered, windows = union(as_set(a)), as_set(b)
    expected = [len(points(covered) & set(range(start, end))) for start, end in windows.tolist()]
    assert length_within(covered, windows).tolist() == expected


@given(pairs)
def test_covers_agrees_with_the_points(a: list[list[int]]) -> None:
    covered = union(as_set(a))
    found = covers(covered, np.arange(END + 1))
    assert set(np.flatnonzero(found).tolist()) == points(covered)


def test_intervals_that_touch_are_one() -> None:
    assert union(intervals([5, 0], [9, 5])).tolist() == [[0, 9]]


def test_no_sets_make_an_empty_union() -> None:
    assert union().shape == (0, 2)
