"""The collectives of a profiled phase: when each executed on this rank, in which group, how large.

gloo: the profiler has the times (`gloo:*` on the group's worker threads), the flight recorder has
group, sequence number, sizes and dtype; they are joined first in, first out per name. Groups of
other ranks run side by side on threads of their own: then the sizes must agree as well.
NCCL: a kernel is linked with the `record_param_comms` operator that launched it, which has all.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from andromeda_scale.collectors.trace import Events, TraceError, is_collective_kernel

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


def flight_recorder_entries(since_ns: int) -> list[dict[str, Any]]:
    """gloo's collectives created from `since_ns` (Unix time) on, in order of their creation."""
    from torch._C import _distributed_c10d as c10d

    dump = json.loads(c10d._dump_fr_trace_json())  # type: ignore[attr-defined]
    entries = [
        entry
        for entry in dump.get("entries", ())
        if entry["profiling_name"].startswith("gloo:") and entry["time_created_ns"] >= since_ns
    ]
    return sorted(entries, key=lambda e: int(e["record_id"]))


def sizes_needed(groups: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a join needs the profiler's sizes (record_shapes), which cost 15 us an event."""
    return len(set(groups.values())) > 1


def join_gloo(
    events: Events, entries: list[dict[str, Any]], groups: Mapping[str, tuple[int, ...]]
) -> list[Execution]:
    """Join every `gloo:*` event with its flight recorder entry.

    Raises TraceError naming what did not join.
    """
    by_size = sizes_needed(groups)
    issued: dict[tuple[str, str], deque[dict[str, Any]]] = defaultdict(deque)
    for entry in entries:
        sizes = str(entry["input_sizes"]) if by_size else ""
        issued[entry["profiling_name"], sizes].append(entry)
    pairs = []
    for i in events.find(lambda name: name.startswith("gloo:")).tolist():
        name, sizes = key = events.name(i), str(events.raw[i].shapes()) if by_size else ""
        if not issued[key]:
            raise TraceError(
                f"{name} {sizes} executed but is not among the {len(entries)} collectives that "
                "the flight recorder holds of this phase; a larger TORCH_FR_BUFFER_SIZE helps if "
                "more were issued"
            )
        entry = issued[key].popleft()
        if events.spans[i, 0] < entry["time_created_ns"] - _CLOCK_SLACK_NS:
            raise TraceError(f"{name} {sizes} executed before it was issued")
        pairs.append((i, entry))
    if left := sum(map(len, issued.values())):
        names = sorted({name for (name, _), rest in issued.items() if rest})
        raise TraceError(f"the profiler did not see {left} collectives execute: {names}")

    operators = events.find(lambda name: name.startswith("c10d::"))
    starts = events.spans[operators, 0]
    result = []
    for i, entry in pairs:
        before = int(np.searchsorted(starts, entry["time_created_ns"], side="right")) - 1
        operator = events.name(int(operators[before])) if before >= 0 else events.name(i)
        result.append(_gloo_execution(events, i, entry, operator, groups))
    return result


def _gloo_execution(
    events: Events,
    index: int,
    entry: dict[str, Any],
    operator: str,
    groups: Mapping[str, tuple[int, ...]],
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
        issued_ns=int(entry["time_created_ns"]),
        start_ns=int(events.spans[index, 0]),
        end_ns=int(events.spans[index, 1]),
        op=canonical_op(operator),
        c10d_op=operator,
        backend_op=entry["profiling_name"],
        dtype=dtype,
        size_bytes=_size(dtype, numel),
        scalar=numel <= 1,
    )


def join_nccl(events: Events, groups: Mapping[str, tuple[int, ...]]) -> list[Execution]:
    """Join every NCCL kernel with the `record_param_comms` operator that launched it.

    Kernels of one collective become one execution. Raises TraceError for a kernel without one.
    """
    operators = {
        events.raw[i].correlation_id(): i
        for i in events.find(lambda name: name == "record_param_comms").tolist()
    }
    kernels: dict[int, list[int]] = defaultdict(list)
    for i in events.find(is_collective_kernel, device=True).tolist():
        linked = events.raw[i].linked_correlation_id()
        if linked not in operators:
            raise TraceError(f"no record_param_comms launched the kernel {events.name(i)}")
        kernels[operators[linked]].append(i)
    return [_nccl_execution(events, at, indices, groups) for at, indices in kernels.items()]


def _nccl_execution(
    events: Events, operator: int, kernels: list[int], groups: Mapping[str, tuple[int, ...]]
) -> Execution:
    meta = {k: str(v).strip('"') for k, v in events.raw[operator].extra_meta().items()}
    missing = {"Collective name", "Process Group Name", "Seq", "dtype"} - meta.keys()
    if missing:
        raise TraceError(f"record_param_comms lacks {sorted(missing)}; it has {sorted(meta)}")
    group, dtype = meta["Process Group Name"], meta["dtype"]
    if group not in groups:
        raise TraceError(f"process group {group!r} of {meta['Collective name']} is unknown")
    numel = max(int(meta.get("In msg nelems", 0)), int(meta.get("Out msg nelems", 0)))
    op = canonical_op(meta["Collective name"])
    return Execution(
        group=group,
        ranks=groups[group],
        seq=int(meta["Seq"]),
        issued_ns=int(events.spans[operator, 0]),
        start_ns=int(events.spans[kernels, 0].min()),
        end_ns=int(events.spans[kernels, 1].max()),
        op=op,
        c10d_op=meta["Collective name"],
        backend_op=events.name(kernels[0]).partition("(")[0],
        dtype=dtype,
        size_bytes=_size(dtype, numel),
        scalar=numel <= 1,
    )
