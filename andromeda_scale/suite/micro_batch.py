"""`train.micro_batch_size: auto`: which sizes a case may have, and which to try next. No torch.

A size runs if every rank's first steps leave MARGIN of its memory free. What is larger than one
that does not run is taken not to run either; closed forms say where to begin.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence

from andromeda_scale.suite.config import Case
from andromeda_scale.suite.schema import MAX_BATCH

MARGIN = 0.1  # of a rank's memory: fragments, a profiler, later steps that hold more
MOST_LINES = 4  # after so many trials memory is no straight line of the size, or too noisy for one
TRIAL_STEPS = 3  # the first has no optimizer state yet, and DDP makes its buckets anew after it


def sizes(case: Case) -> Sequence[int]:
    """Micro-batches in increasing order; strong scaling shares a rank's sequences out evenly."""
    if case.regime == "weak":
        return range(1, MAX_BATCH + 1)
    share = case.train.micro_batch_size * case.train.grad_accum
    return [size for size in range(1, share + 1) if share % size == 0]


def at_size(case: Case, size: int) -> Case:
    """A case that finds its micro batch, with the one it found; strong scaling accumulates."""
    accum = case.train.grad_accum
    if case.regime == "strong":
        accum = case.train.micro_batch_size * accum // size
    train = case.train.model_copy(update={"micro_batch_size": size, "grad_accum": accum})
    return case.model_copy(update={"train": train, "auto": None})


def largest(of: Sequence[int], fits: Callable[[int], bool]) -> int:
    """The largest size for which a closed form says that it fits; the smallest if none does."""
    return of[max(0, bisect.bisect_left(of, True, key=lambda size: not fits(size)) - 1)]


def next_size(
    of: Sequence[int], first: int, ran: Mapping[int, bool], used: Mapping[int, float] | None = None
) -> int | None:
    """The size to try next, after those of `ran`; None when the largest that runs is known.

    From `first` to where memory would end by a straight line through what trials `used`, shares of
    a rank's memory, while such lines are few; then, or where trials ended before they could tell,
    up or down in steps that double, the first of them an eighth of the way to `first`, and by
    bisection.
    """
    low, high = _between(of, ran)
    if high - low == 1:
        return None
    start = bisect.bisect_left(of, first)
    if not ran:
        return of[start]
    told = _that_agree(ran, used or {})
    if told and len(ran) <= MOST_LINES and (size := _where_memory_ends(told)) is not None:
        place = bisect.bisect_right(of, size) - 1
        return of[max(low + 1, min(high - 1, place))]
    strides = len(ran) - (1 if told else 0)  # the first trial that told gave a line
    stride = max(1, start // 8) << max(0, strides - 1)
    if high == len(of):
        return of[min(high - 1, low + stride)]
    if low == -1:
        return of[max(0, high - stride)]
    return of[(low + high) // 2]


def _that_agree(ran: Mapping[int, bool], used: Mapping[int, float]) -> dict[int, float]:
    """What trials used that ended as their memory says: others ended by something else."""
    return {size: share for size, share in used.items() if ran[size] == (share <= 1 - MARGIN)}


def _where_memory_ends(used: Mapping[int, float]) -> float | None:
    """The size that leaves MARGIN free, by a straight line; None: there is none to be trusted.

    Through the largest that ran and what is next above it, or the two nearest of a kind; after one
    trial through the origin. An allocator that frees its cache in need makes the line of two that
    are too large flat: it counts where it rises half as fast as one through the origin.
    """
    limit = 1 - MARGIN
    fit = sorted(size for size, share in used.items() if share <= limit)
    above = sorted(size for size, share in used.items() if share > limit)
    points = {0: 0.0, **used}
    one, other = [0, *fit, *above[: 1 if fit else 2]][-2:]
    growth = (points[other] - points[one]) / (other - one)
    if growth <= (0 if fit else points[other] / other / 2):
        return None
    return other + (limit - points[other]) / growth


def largest_that_ran(of: Sequence[int], ran: Mapping[int, bool]) -> int | None:
    """What a search found; None: no size runs."""
    low, _ = _between(of, ran)
    return of[low] if low >= 0 else None


def _between(of: Sequence[int], ran: Mapping[int, bool]) -> tuple[int, int]:
    """Indices of the largest size that ran below the smallest that did not, and of that one.

    -1 and len(of) where there is none.
    """
    places = {bisect.bisect_left(of, size): ok for size, ok in ran.items()}
    high = min((place for place, ok in places.items() if not ok), default=len(of))
    return max((place for place, ok in places.items() if ok and place < high), default=-1), high
