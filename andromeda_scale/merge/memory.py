"""Memory of ranks, of the fullest rank of a repeat, and where it ran short. No torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from andromeda_scale.merge.values import number, of_ranks
from andromeda_scale.metrics_devices import NEARLY_FULL
from andromeda_scale.records import RankRecord

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
    "capacity_bytes": "float64",  # of the device
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
        "capacity_bytes": number(device, "capacity_bytes"),
        **{name: number(host, name) for name in ("rss_bytes", "uss_bytes", "peak_rss_bytes")},
    }


def of_repeat(frame: pd.DataFrame, problems: list[str]) -> dict[str, Any]:
    """The fullest rank of each; ranks that say nothing of their peak beside ranks that do are a
    problem."""
    found = {name: float(frame[name].max()) for name in LARGEST}
    return found | _peak(frame, problems) | _allocated(frame) | {"memory_pressure": pressure(frame)}


def pressure(frame: pd.DataFrame) -> str:
    """Which ranks had a device nearly full, or an allocator that had to try again; empty: none."""
    share = frame["peak_reserved_bytes"] / frame["capacity_bytes"]
    full, again = share > NEARLY_FULL, frame["alloc_retries"] > 0
    survived = frame["alloc_ooms"] > 0
    said = []
    if full.any():
        who = of_ranks(frame.loc[full, "rank"])
        said.append(f"{who} reserved {share[full].max():.1%} of the device")
    if again.any():
        most = frame.loc[again, "alloc_retries"].max()
        said.append(f"{of_ranks(frame.loc[again, 'rank'])} retried {most:.0f} allocations")
    if survived.any():
        who = of_ranks(frame.loc[survived, "rank"])
        said.append(f"{who} survived running out of memory")
    return ", ".join(said)


def _peak(frame: pd.DataFrame, problems: list[str]) -> dict[str, Any]:
    peak = frame["peak_memory_bytes"]
    if peak.isna().all():
        return {}
    if peak.isna().any():
        silent = of_ranks(np.flatnonzero(peak.isna()))
        problems.append(f"peak memory of {silent} is missing: the maximum is over the others")
    fullest = int(peak.to_numpy(na_value=-1.0).argmax())
    return {
        "peak_memory_bytes": float(peak.iloc[fullest]),
        "peak_memory_rank": fullest,
        "peak_memory_host": frame["host"].iloc[fullest],
    }


def _allocated(frame: pd.DataFrame) -> dict[str, Any]:
    """The rank that allocated most; empty unless every rank says what it did."""
    peak = frame["peak_allocated_bytes"]
    if peak.isna().any():
        return {}
    fullest = int(peak.to_numpy().argmax())
    return {
        "peak_allocated_bytes": float(peak.iloc[fullest]),
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
