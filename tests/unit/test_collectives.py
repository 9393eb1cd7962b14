"""Bandwidths of kinds of collectives, from hand-made executions of one rank."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from andromeda_scale.collectors.collectives import kinds, times
from andromeda_scale.collectors.executions import Execution
from andromeda_scale.collectors.intervals import intervals, union

MS = 1_000_000
SIZE = 10_000_000  # bytes


def execution(op: str, seq: int, start_ms: int, end_ms: int) -> Execution:
    start, end = start_ms * MS, end_ms * MS
    names: Any = {"op": op, "c10d_op": f"c10d::{op}", "backend_op": f"gloo:{op}"}
    return Execution(
        "0", (0, 1), seq, start, start, end, dtype="Float", size_bytes=SIZE, scalar=False, **names
    )


def bandwidths(*executions: Execution) -> dict[str, float]:
    """GB/s by kind where nobody waits and nothing computes, in one step of 1 s."""
    spans = intervals([e.start_ns for e in executions], [e.end_ns for e in executions])
    spent = times(executions, spans[:, 1] - spans[:, 0], union(spans), np.empty((0, 2), np.int64))
    rows = kinds(executions, spent, np.array([[0, 1000 * MS]], np.int64))
    return {row["op"]: row["busbw_gbps"] for row in rows}


def test_two_kinds_at_once_are_each_as_fast_as_their_own_transfers() -> None:
    found = bandwidths(execution("all_gather", 0, 0, 10), execution("reduce_scatter", 1, 1, 11))
    # 10 MB in 10 ms, times 1/2 for two ranks; not 10 MB in the 1 ms that nothing else moves
    assert found == pytest.approx({"all_gather": 0.5, "reduce_scatter": 0.5})


def test_two_of_a_kind_at_once_share_the_link() -> None:
    found = bandwidths(execution("all_reduce", 0, 0, 10), execution("all_reduce", 1, 0, 10))
    assert found == pytest.approx({"all_reduce": 2.0})  # 20 MB in 10 ms
