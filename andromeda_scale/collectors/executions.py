"""The collectives of a profiled phase: when each executed on this rank, in which group, how large.

The flight recorder has group, sequence number, sizes and dtype; the profiler has the times. A
profiler's range named as the backend and the collective belongs to each entry of the recorder:
they are joined first in, first out per name.

gloo: the range is the execution, on a worker thread of the group. Groups of other ranks run side
by side on threads of their own: then the sizes must agree as well.
NCCL: the range surrounds the launch of the kernels, and these are the execution.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from andromeda_scale.collectors.trace import (
    Events,
    TraceError,
    is_collective_kernel,
)

Entry = dict[str, Any]  # of the flight recorder

# The flight recorder's creation time and the profiler's clock are calibrated apart.
_CLOCK_SLACK_NS = 1_000_000

_ITEM_BYTES = {
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    **dict.fromkeys(("Float", "Int"), 4),
    **dict.fromkeys(("BFloat16", "Half", "Short"), 2),
    **dict.fromkeys(("Byte", "Char", "Bool"), 1),
}

# In order: a name that contains the key is that collective.
_OPS = {
    "reducescatter": "reduce_scatter",
    "allreduce": "all_reduce",
    "allgather": "all_gather",
    "alltoall": "all_to_all",
    "broadcast": "broadcast",
    "barrier": "barrier",
    "reduce": "reduce",
    "scatter": "scatter",
    "gather": "gather",
    "send": "send",
    "recv": "recv",
}


@dataclass(frozen=True)
class Execution:
    """One collective on this rank.

    `size_bytes` is S of METRICS: the larger of input and output, which is the reduced tensor of
    an all-reduce, the whole output of an all-gather, the whole input of a reduce-scatter.
    """

    group: str  # its name, equal on all its ranks
    ranks: tuple[int, ...]  # global ranks of the group
    seq: int  # the group's own count of collectives
    issued_ns: int
    start_ns: int
    end_ns: int
    op: str  # all_reduce, all_gather, ...
    c10d_op: str  # what was asked for, as c10d names it
    backend_op: str  # what ran: gloo runs a reduce-scatter as an all-reduce
    dtype: str
    size_bytes: int
    scalar: bool  # a single number, such as a norm: no parameters or gradients


def canonical_op(name: str) -> str:
    """`c10d::_allgather_base_`, `gloo:all_gather`, `all_gather` -> all_gather; others unchanged."""
    plain = name.rpartition(":")[2].replace("_", "").lower()
    return next((op for key, op in _OPS.items() if key in plain), name)


def _size(dtype: str, numel: int) -> int:
    if numel and dtype not in _ITEM_BYTES:
        raise TraceError(f"unknown element size of dtype {dtype!r}")
    return numel * _ITEM_BYTES.get(dtype, 0)


def group_ranks() -> dict[str, tuple[int, ...]]:
    """Name of each process group of this rank -> its global ranks."""
    from torch.distributed.distributed_c10d import _world

    names = _world.pg_names
    return {
        str(names[group]): tuple(sorted(ranks))
        for group, ranks in _world.pg_group_ranks.items()
        if group in names
    }


def flight_recorder_entries(backend: str, since_ns: int) -> list[Entry]:
    """The collectives that gloo or nccl created from `since_ns` (Unix time) on, in this order."""
    from torch._C import _distributed_c10d as c10d

    dump = c10d._dump_fr_trace_json  # type: ignore[attr-defined]  # no stub
    if backend == "nccl":  # it has a recorder of its own
        dump = getattr(c10d, "_dump_nccl_trace_json", dump)
    entries = [
        entry
        for entry in json.loads(dump()).get("entries", ())
        if entry["profiling_name"].startswith(f"{backend}:")
        and entry["time_created_ns"] >= since_ns
    ]
    return sorted(entries, key=lambda e: int(e["record_id"]))


def sizes_needed(groups: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether gloo's join needs the profiler's sizes (record_shapes), which cost 15 us an event."""
    return len(set(groups.values())) > 1


def join(
    backend: str, events: Events, entries: list[Entry], groups: Mapping[str, tuple[int, ...]]
) -> list[Execution]:
    """The executions of gloo or nccl. Raises TraceError naming what did not join."""
    if backend == "nccl":
        return join_nccl(events, entries, groups)
    return join_gloo(events, entries, groups)


def _pairs(
    backend: str, events: Events, entries: list[Entry], *, by_size: bool = False
) -> list[tuple[int, Entry]]:
    """(index of a range, its entry), in order of the ranges' starts."""
    issued: dict[tuple[str, str], deque[Entry]] = defaultdict(deque)
    for entry in entries:
        sizes = str(entry["input_sizes"]) if by_size else ""
        issued[entry["profiling_name"], sizes].append(entry)
    pairs = []
    for i in events.find(lambda name: name.startswith(f"{backend}:")).tolist():
        name, sizes = key = events.name(i), str(events.raw[i].shapes()) if by_size else ""
        if not issued[key]:
            raise TraceError(
                f"{name} {sizes} executed but is not among the {len(entries)} collectives that "
                "the flight recorder holds of this phase; a larger TORCH_FR_BUFFER_SIZE helps if "
                "more were issued"
            )
        pairs.append((i, issued[key].popleft()))
    if left := sum(map(len, issued.values())):
        names = sorted({name for (name, _), rest in issued.items() if rest})
        raise TraceError(f"the profiler did not see {left} collectives execute: {names}")
    return pairs


def join_gloo(
    events: Events, entries: list[Entry], groups: Mapping[str, tuple[int, ...]]
) -> list[Execution]:
    """Join every `gloo:*` range, an execution, with its flight recorder entry."""
    operators = events.find(lambda name: name.startswith("c10d::"))
    starts = events.spans[operators, 0]
    result = []
    for i, entry in _pairs("gloo", events, entries, by_size=sizes_needed(groups)):
        created = int(entry["time_created_ns"])
        start, end = events.spans[i].tolist()
        if start < created - _CLOCK_SLACK_NS:
            raise TraceError(f"{events.name(i)} executed before it was issued")
        before = int(np.searchsorted(starts, created, side="right")) - 1
        asked = events.name(int(operators[before])) if before >= 0 else events.name(i)
        result.append(_execution(entry, groups, created, (start, end), asked, events.name(i)))
    return result


def join_nccl(
    events: Events, entries: list[Entry], groups: Mapping[str, tuple[int, ...]]
) -> list[Execution]:
    """Join every NCCL kernel with the `nccl:*` range that launched it, and that with its entry.

    Kernels of one collective become one execution; a collective without kernels is none.
    """
    pairs = _pairs("nccl", events, entries)
    ranges = events.spans[[i for i, _ in pairs]].reshape(-1, 2)
    if (ranges[1:, 0] < ranges[:-1, 1]).any():
        raise TraceError("two threads issued collectives at the same time")
    for span, (i, entry) in zip(ranges.tolist(), pairs, strict=True):
        created = int(entry["time_created_ns"])
        if not span[0] - _CLOCK_SLACK_NS <= created <= span[1] + _CLOCK_SLACK_NS:
            raise TraceError(f"{events.name(i)} was not issued when the flight recorder says so")

    at = events.find(is_collective_kernel, device=True)
    launched = events.launch_times(at)
    owners = np.searchsorted(ranges[:, 0], launched, side="right") - 1
    kernels: dict[int, list[int]] = defaultdict(list)
    for kernel, owner, time_ns in zip(at.tolist(), owners.tolist(), launched, strict=True):
        if owner < 0 or time_ns >= ranges[owner, 1]:
            raise TraceError(
                f"{events.name(kernel)} was launched outside every nccl:* range, "
                "as collectives that were issued as one group are"
            )
        kernels[owner].append(kernel)
    return [
        _execution(
            pairs[owner][1],
            groups,
            int(ranges[owner, 0]),
            (int(events.spans[found, 0].min()), int(events.spans[found, 1].max())),
            events.name(pairs[owner][0]),
            events.name(found[0]).partition("(")[0],
        )
        for owner, found in kernels.items()
    ]


def _execution(
    entry: Entry,
    groups: Mapping[str, tuple[int, ...]],
    issued_ns: int,
    span: tuple[int, int],
    asked: str,
    ran: str,
) -> Execution:
    group = str(entry["process_group"][0])
    if group not in groups:
        raise TraceError(f"process group {group!r} of {entry['profiling_name']} is unknown")
    dtypes = entry["input_dtypes"] or entry["output_dtypes"]
    numel = max(sum(prod(size) for size in entry[key]) for key in ("input_sizes", "output_sizes"))
    dtype = dtypes[0] if dtypes else ""
    return Execution(
        group=group,
        ranks=groups[group],
        seq=int(entry["collective_seq_id"]),
        issued_ns=issued_ns,
        start_ns=span[0],
        end_ns=span[1],
        op=canonical_op(asked),
        c10d_op=asked,
        backend_op=ran,
        dtype=dtype,
        size_bytes=_size(dtype, numel),
        scalar=numel <= 1,
    )
