"""A rank's collectives by kind, and those of one step one by one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from andromeda_scale.collectors.executions import Execution, canonical_op
from andromeda_scale.collectors.intervals import Intervals, disjoint, intervals, length_within
from andromeda_scale.cost.comm import bus_factor, wire_factor


class Times(NamedTuple):
    """Nanoseconds of each collective.

    `total` and `transfer` are its own. Of the others a moment in which several execute (`moving`:
    transfer) counts for the one that began first, so that they sum to those of the steps.
    """

    total: NDArray[np.int64]
    exposed: NDArray[np.int64]
    overlapped: NDArray[np.int64]
    exposed_wait: NDArray[np.int64]
    transfer: NDArray[np.int64]
    moving: NDArray[np.int64]


def times(
    executions: Sequence[Execution],
    transfers: NDArray[np.int64],
    exposed: Intervals,
    exposed_wait: Intervals,
) -> Times:
    """`exposed`: all communication that no compute hides; `exposed_wait`: what of it waits."""
    starts = np.array([e.start_ns for e in executions], np.int64)
    ends = np.array([e.end_ns for e in executions], np.int64)
    own = disjoint(intervals(starts, ends))
    waiting = disjoint(intervals(starts, ends - transfers))
    moving = disjoint(intervals(ends - transfers, ends))
    bare = length_within(exposed, own)
    return Times(
        total=ends - starts,
        exposed=bare,
        overlapped=own[:, 1] - own[:, 0] - bare,
        exposed_wait=length_within(exposed_wait, waiting),
        transfer=transfers,
        moving=moving[:, 1] - moving[:, 0],
    )


def kinds(executions: Sequence[Execution], spent: Times, steps: Intervals) -> list[dict[str, Any]]:
    """One row per kind of collective, the largest first: means over the steps as issued.

    The bandwidth is that of the median step, as a probe's is of its median repeat: one packet lost
    in 20 steps stops a connection for longer than all its transfers take. Transfers of the kind
    that share the link count once; what another kind moves beside it makes it slower, not faster.
    """
    num_steps = len(steps)
    issued = np.array([e.issued_ns for e in executions], np.int64)
    step_of = np.searchsorted(steps[:, 0], issued, side="right") - 1
    ends = np.array([e.end_ns for e in executions], np.int64)
    transferring = intervals(ends - spent.transfer, ends)
    found: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index, e in enumerate(executions):
        found[_kind(e)].append(index)
    rows = []
    for (op, c10d_op, backend_op, dtype, ranks, scalar), members in found.items():
        size = sum(executions[index].size_bytes for index in members)
        backend = backend_op.partition(":")[0]
        wire = size * wire_factor(canonical_op(backend_op), len(ranks), backend)
        own = disjoint(transferring[members])
        by_step = np.bincount(step_of[members], own[:, 1] - own[:, 0], num_steps)
        moving_ns = float(np.median(by_step))
        row = {
            "op": op,
            "c10d_op": c10d_op,
            "backend_op": backend_op,
            "dtype": dtype,
            "ranks": list(ranks),
            "scalar": scalar,
            "count_per_step": len(members) / num_steps,
            "bytes_per_step": size / num_steps,
            "wire_bytes_per_step": wire / num_steps,
            "moving_s_median": moving_ns / 1e9,
            "busbw_gbps": size / num_steps * bus_factor(op, len(ranks)) / max(moving_ns, 1),
        }
        for name, values in spent._asdict().items():
            row[f"{name}_s_per_step"] = int(values[members].sum()) / num_steps / 1e9
        rows.append(row)
    return sorted(rows, key=lambda row: row["bytes_per_step"], reverse=True)


def one_by_one(
    executions: Sequence[Execution], spent: Times, step: tuple[int, int]
) -> dict[str, list[Any]]:
    """Columns with a value for each collective issued in [start, end) of a step, as it was issued.

    `start_s` is from the start of the step.
    """
    start, end = step
    chosen = [i for i, e in enumerate(executions) if start <= e.issued_ns < end]
    chosen.sort(key=lambda i: executions[i].issued_ns)
    those = [executions[i] for i in chosen]
    return {
        "op": [e.op for e in those],
        "backend_op": [e.backend_op for e in those],
        "group": [e.group for e in those],
        "seq": [e.seq for e in those],
        "dtype": [e.dtype for e in those],
        "bytes": [e.size_bytes for e in those],
        "start_s": [(e.start_ns - start) / 1e9 for e in those],
        **{f"{name}_s": (x[chosen] / 1e9).tolist() for name, x in spent._asdict().items()},
    }


def _kind(e: Execution) -> tuple[Any, ...]:
    return (e.op, e.c10d_op, e.backend_op, e.dtype, e.ranks, e.scalar)
