"""Waiting is charged to the ranks that had not arrived: arithmetic on hand-made collectives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from andromeda_scale.collectors.charges import charges
from andromeda_scale.collectors.executions import Execution
from andromeda_scale.collectors.intervals import Intervals, minus, union

STEPS = np.array([[0, 1000], [1000, 2000]], np.int64)
TRANSFER = 10


def execution(start: int, end: int, seq: int, ranks: tuple[int, ...], group: str) -> Execution:
    ops: Any = {"op": "all_reduce", "c10d_op": "", "backend_op": "gloo:all_reduce"}
    return Execution(
        group, ranks, seq, start, start, end, dtype="Float", size_bytes=4, scalar=False, **ops
    )


def run_of(
    *collectives: tuple[Sequence[int], int],
    ranks: tuple[int, ...] = (0, 1, 2, 3),
    compute: dict[int, list[list[int]]] | None = None,
) -> list[np.ndarray]:
    """What each rank charges, when collective k is entered at arrivals[r] and ends at end + 10.

    `collectives`: (arrivals by rank, last arrival) on the one clock of these hand-made ranks.
    """
    rows = {
        rank: [
            execution(arrivals[place], end + TRANSFER, seq, ranks, "g")
            for seq, (arrivals, end) in enumerate(collectives)
        ]
        for place, rank in enumerate(ranks)
    }
    tables: list[dict[Any, Any]] = [{} for _ in range(max(ranks) + 1)]
    for rank, found in rows.items():
        lengths = np.array([e.end_ns - e.start_ns for e in found])
        tables[rank] = {("g", ranks): (np.arange(len(found)), lengths)}
    result = []
    for rank, found in rows.items():
        transfers = np.full(len(found), TRANSFER)
        waits = [[e.start_ns, e.end_ns - TRANSFER] for e in found]
        work = (compute or {}).get(rank, [])
        exposed = minus(_union(waits), _union(work))
        result.append(charges(found, tables, transfers, exposed, STEPS, STEPS))
    return result


def _union(spans: list[list[int]]) -> Intervals:
    return union(np.array(spans, np.int64).reshape(-1, 2))


def test_the_gap_between_two_arrivals_is_shared_by_the_ranks_still_missing() -> None:
    # arrivals 0, 0, 60, 100: until 60 two wait for two, then three wait for the last
    charged = sum(run_of(([0, 0, 60, 100], 100)))
    assert charged[:, 0].tolist() == [0, 0, 60, 60 + 3 * 40]
    assert charged[:, 1].tolist() == [0] * 4
    assert charged.sum() == 100 + 100 + 40  # what the ranks waited


def test_a_rank_late_at_every_collective_is_charged_for_each_in_its_step() -> None:
    charged = sum(run_of(([0, 30], 30), ([100, 150], 150), ([1000, 1005], 1005), ranks=(0, 1)))
    assert charged.tolist() == [[0, 0], [80, 5]]


def test_waiting_hidden_by_compute_is_charged_to_nobody() -> None:
    charged = sum(run_of(([0, 50], 50), ranks=(0, 1), compute={0: [[10, 30]]}))
    assert charged[:, 0].tolist() == [0, 30]


def test_two_collectives_that_wait_at_once_are_charged_once() -> None:
    # the second is entered at 20 by the early rank, while the first still waits until 50
    charged = sum(run_of(([0, 50], 50), ([20, 70], 70), ranks=(0, 1)))
    assert charged[:, 0].tolist() == [0, 70]


def test_ranks_of_a_group_are_charged_by_their_global_numbers() -> None:
    (early, late) = run_of(([0, 40], 40), ranks=(1, 3))
    assert early[:, 0].tolist() == [0, 0, 0, 40]
    assert not late.any()


@pytest.mark.parametrize("seed", range(5))
def test_every_moment_of_exposed_waiting_is_charged_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    collectives: list[tuple[list[int], int]] = []
    for start in (*range(0, 850, 50), *range(1000, 1850, 50)):  # none waits beyond its step
        arrivals = (start + rng.integers(0, 150, 4)).tolist()
        collectives.append((arrivals, max(arrivals)))
    for rank, charged in enumerate(run_of(*collectives)):
        waits = _union([[arrivals[rank], end] for arrivals, end in collectives])
        assert charged.sum() == pytest.approx(np.diff(waits).sum())
        assert charged[rank].sum() == pytest.approx(0, abs=1e-9)


def test_a_rank_without_collectives_charges_nobody() -> None:
    nothing = np.empty((0, 2), np.int64)
    charged = charges([], [{}, {}], np.empty(0, np.int64), nothing, STEPS, STEPS)
    assert charged.tolist() == [[0, 0], [0, 0]]
