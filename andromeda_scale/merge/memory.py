"""Memory of ranks, of the fullest rank of a repeat, and where it ran short. No torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from andromeda_scale.contracts.records import RankRecord
from andromeda_scale.merge.values import Columns, most, number, of_ranks
from andromeda_scale.metrics.devices import NEARLY_FULL

# Bytes and counts of a rank of which a repeat has the largest.
LARGEST = (
    "state_bytes",
    "communication_buffers_bytes",
    "activation_bytes",
    "start_memory_bytes",
    "peak_setup_bytes",
    "peak_forward_bytes",
    "peak_backward_bytes",
    "peak_update_bytes",
    "peak_reserved_bytes",
    "outside_allocator_bytes",
    "rss_bytes",
    "uss_bytes",
    "peak_rss_bytes",
    "alloc_retries",
    "alloc_ooms",
)
RANK_COLUMNS: dict[str, str] = {
    "peak_memory_bytes": "float64",
    "peak_allocated_bytes": "float64",
    **{f"{kind}_bytes": "float64" for kind in ("parameters", "gradients", "master")},
    "optimizer_state_bytes": "float64",
    **dict.fromkeys(LARGEST, "float64"),
    "capacity_bytes": "float64",  # of the device; on a CPU the rank's share of the node
}
COLUMNS: dict[str, str] = {
    "peak_memory_rank": "Int64",
    "peak_memory_host": "str",
    "peak_allocated_rank": "Int64",
    "memory_pressure": "str",  # ranks whose memory was nearly full, or that had to ask for it twice
}


def of_rank(rank: RankRecord) -> dict[str, float]:
    """RANK_COLUMNS of one rank; NaN for what it did not say."""
    measured, inspected = rank.values("measure", "memory"), rank.values("inspect", "memory")
    device, host = measured.get("device"), measured.get("host")
    parts = inspected.get("parts")
    sizes = rank.describe.get("bytes")
    kinds = ("parameters", "gradients", "master", "optimizer_state")
    # What torch held at most: in the timed window on CUDA, on a CPU in a step of its own.
    peak = number(device if isinstance(device, dict) else inspected, "peak_allocated_bytes")
    buffers = _sum(inspected.get("communication_buffers"))
    return {
        "peak_memory_bytes": number(measured, "peak_memory_bytes"),
        "peak_allocated_bytes": peak,
        **{f"{kind}_bytes": number(sizes, kind) for kind in kinds},
        "state_bytes": _sum(sizes),
        "communication_buffers_bytes": buffers,
        "activation_bytes": _not_negative(peak - _states_on_device(rank) - buffers),
        "start_memory_bytes": number(parts, "start"),
        "peak_setup_bytes": number(
            rank.values("setup", "memory").get("device"), "peak_allocated_bytes"
        ),
        **{f"peak_{part}_bytes": number(parts, part) for part in ("forward", "backward", "update")},
        "peak_reserved_bytes": number(device, "peak_reserved_bytes"),
        "outside_allocator_bytes": number(device, "outside_allocator_bytes"),
        "alloc_retries": number(device, "retries"),
        "alloc_ooms": number(device, "ooms"),
        "capacity_bytes": number(device if device else host, "capacity_bytes"),
        **{name: number(host, name) for name in ("rss_bytes", "uss_bytes", "peak_rss_bytes")},
    }


def of_repeat(columns: Columns, problems: list[str]) -> dict[str, Any]:
    """The fullest rank of each; ranks that say nothing of their peak beside ranks that do are a
    problem."""
    found = {name: most(columns[name]) for name in LARGEST}
    found |= _peak(columns, problems) | _allocated(columns["peak_allocated_bytes"])
    return found | {"memory_pressure": pressure(columns)}


def pressure(columns: Columns) -> str:
    """Which ranks had a device nearly full, or an allocator that had to try again; empty: none."""
    with np.errstate(divide="ignore", invalid="ignore"):  # a record may hold zeros
        share = columns["peak_reserved_bytes"] / columns["capacity_bytes"]
    retries = columns["alloc_retries"]
    over = (share > NEARLY_FULL, retries > 0, columns["alloc_ooms"] > 0)
    full, again, survived = map(np.flatnonzero, over)
    said = []
    if len(full):
        said.append(f"{of_ranks(full)} reserved {share[full].max():.1%} of the device")
    if len(again):
        said.append(f"{of_ranks(again)} retried {retries[again].max():.0f} allocations")
    if len(survived):
        said.append(f"{of_ranks(survived)} survived running out of memory")
    return ", ".join(said)


def _peak(columns: Columns, problems: list[str]) -> dict[str, Any]:
    peak = columns["peak_memory_bytes"]
    silent = np.isnan(peak)
    if silent.all():
        return {}
    if silent.any():
        who = of_ranks(np.flatnonzero(silent))
        problems.append(f"peak memory of {who} is missing: the maximum is over the others")
    fullest = int(np.nanargmax(peak))
    return {
        "peak_memory_bytes": float(peak[fullest]),
        "peak_memory_rank": fullest,
        "peak_memory_host": columns["host"][fullest],
    }


def _allocated(peak: np.ndarray) -> dict[str, Any]:
    """The rank that allocated most; empty unless every rank says what it did."""
    if np.isnan(peak).any():
        return {}
    fullest = int(peak.argmax())
    return {
        "peak_allocated_bytes": float(peak[fullest]),
        "peak_allocated_rank": fullest,
    }


def _states_on_device(rank: RankRecord) -> float:
    """On a CPU, and in records that say no device, all states."""
    on = rank.describe.get("bytes_on")
    if not isinstance(on, dict) or not rank.start.get("device_uuid"):
        return _sum(rank.describe.get("bytes"))
    return _sum({kind: size for kind, size in on.items() if kind != "cpu"})


def _sum(sizes: Any) -> float:
    """Of all values of a mapping; NaN if it is none, or any of them is no size."""
    return sum(number(sizes, kind) for kind in sizes) if isinstance(sizes, dict) else math.nan


def _not_negative(value: float) -> float:
    return value if value >= 0 else math.nan
