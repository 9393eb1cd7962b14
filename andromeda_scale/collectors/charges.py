"""Who was waited for: every rank's exposed waiting, charged to the ranks that had not arrived.

A rank knows of a collective when the others came by how long each of them was in it: whoever was
in it longest came first, and all leave together. So no clock of two ranks is compared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from andromeda_scale.collectors.executions import Execution
from andromeda_scale.collectors.intervals import Intervals, disjoint, intervals, length_within

Group = tuple[str, tuple[int, ...]]  # its name and global ranks
# Group -> (sequence numbers, nanoseconds) of its collectives on one rank.
Durations = Mapping[Group, tuple[NDArray[np.int64], NDArray[np.int64]]]


def charges(
    executions: Sequence[Execution],
    everyone: Sequence[Durations],
    transfers: NDArray[np.int64],
    exposed_wait: Intervals,
    host_steps: Intervals,
    steps: Intervals,
) -> NDArray[np.float64]:
    """(ranks, steps) nanoseconds for which this rank waited for each rank.

    In each collective, the time between two successive arrivals is shared alike by the ranks that
    were still missing; `exposed_wait` (a union) alone counts, and a moment in which two
    collectives wait counts once, for the one that began first. Summed over ranks a column is
    `exposed_wait` within that step.
    """
    charged = np.zeros((len(everyone), len(steps)))
    if not executions:
        return charged
    step = np.searchsorted(host_steps[:, 0], [e.issued_ns for e in executions], side="right") - 1
    arrived = np.array([e.end_ns for e in executions], np.int64) - transfers
    starts = np.array([e.start_ns for e in executions], np.int64)
    first = np.maximum(disjoint(intervals(starts, arrived))[:, 0], steps[step, 0])
    groups: dict[Group, list[int]] = defaultdict(list)
    for index, e in enumerate(executions):
        groups[e.group, e.ranks].append(index)
    for group, members in groups.items():
        at = np.array(members)
        order, shares = _shares(
            _waits(group, [executions[i].seq for i in members], everyone),
            arrived[at],
            intervals(first[at], np.minimum(arrived, steps[step, 1])[at]),
            exposed_wait,
        )
        np.add.at(charged, (np.array(group[1])[order], step[at]), shares)
    return charged


def _waits(group: Group, seqs: list[int], everyone: Sequence[Durations]) -> NDArray[np.int64]:
    """(ranks of the group, collectives) nanoseconds that each was there before the last."""
    tables = [everyone[rank][group] for rank in group[1]]
    columns = np.searchsorted(tables[0][0], seqs)
    durations = np.stack([table[1][columns] for table in tables])
    waits: NDArray[np.int64] = durations - durations.min(axis=0)
    return waits


def _shares(
    waits: NDArray[np.int64],
    arrived: NDArray[np.int64],
    own: Intervals,
    exposed_wait: Intervals,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(place in the group, nanoseconds) per collective, both (ranks, collectives), last rank first.

    `arrived` is when the last rank came, on this rank's clock; `own` what may be counted.
    """
    order = np.argsort(waits, axis=0, kind="stable")
    ahead = np.take_along_axis(waits, order, axis=0)  # of the last arrival, ascending
    # Between the arrivals of places j and j-1, counted from the last, j ranks are missing.
    starts = np.clip(arrived - ahead[1:], own[:, 0], None)
    ends = np.clip(arrived - ahead[:-1], None, own[:, 1])
    windows = intervals(starts, np.maximum(starts, ends)).reshape(-1, 2)
    waited = length_within(exposed_wait, windows).reshape(starts.shape)
    each = waited / np.arange(1, len(waits))[:, None]
    shares = np.zeros(waits.shape)
    shares[:-1] = np.cumsum(each[::-1], axis=0)[::-1]
    return order, shares
