"""What the nodes' samplers saw of each rank's GPU while it was measured. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from andromeda_scale.contracts.records import RankRecord
from andromeda_scale.merge.values import number, of_ranks, series_of, text

COLUMNS: dict[str, str] = {
    "device_uuid": "str",  # of its GPU; empty for a CPU
    "sm_clock_mhz": "float64",  # median of the samples in the measured window
    "temperature_c": "float64",  # the highest of them
    "sampled_power_w": "float64",  # their mean
    "throttled": "str",  # what held the clocks down in any of them
}

# NVML's bits (nvml.h, nvmlClocksEventReasons) that say a GPU runs below the clocks it could have;
# the others are idleness and clocks that a person has set.
_THROTTLES = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


def device_columns(
    ranks: Sequence[RankRecord], nodes: Sequence[dict[str, Any]]
) -> dict[str, list[Any]]:
    """COLUMNS, one value a rank: from the samples within its own measured window."""
    sampled: dict[str, tuple[np.ndarray, dict[str, Any]]] = {}
    for node in nodes:
        values = node.get("system")
        times = series_of(values.get("t_s")) if isinstance(values, dict) else None
        gpus = values.get("gpus") if isinstance(values, dict) else None
        if times is not None and isinstance(gpus, dict):
            times = times + number(values, "start_s")
            sampled |= {uuid: (times, gpu) for uuid, gpu in gpus.items() if isinstance(gpu, dict)}
    rows = [_of_rank(rank, sampled) for rank in ranks]
    return {name: [row[name] for row in rows] for name in COLUMNS}


def throttled_ranks(throttled: Sequence[str]) -> str:
    """Which ranks of one repeat were throttled, by reason; empty if none was."""
    found: dict[str, list[int]] = {}
    for rank, why in enumerate(throttled):
        if why:
            found.setdefault(why, []).append(rank)
    return "; ".join(f"{of_ranks(who)}: {why}" for why, who in found.items())


def window_of(rank: RankRecord) -> tuple[float, float]:
    """Edges of the measured window on the clock of the rank's node; NaN where unknown."""
    measured = rank.values("measure", "step_time")
    start = number(measured, "start_s")
    return start, start + number(measured, "window_ns") / 1e9


def _of_rank(
    rank: RankRecord, sampled: dict[str, tuple[np.ndarray, dict[str, Any]]]
) -> dict[str, Any]:
    uuid = text(rank.start, "device_uuid")
    times, gpu = sampled.get(uuid, (np.empty(0), {}))
    start, end = window_of(rank)
    inside = (times >= start) & (times <= end)

    def values(name: str) -> list[float]:
        """Of the samples inside, those that the GPU answered."""
        series = gpu.get(name)
        if not isinstance(series, list) or len(series) != len(times):
            return []
        kept = [number({"it": v}, "it") for v, within in zip(series, inside, strict=True) if within]
        return [value for value in kept if not math.isnan(value)]

    bits = 0
    for value in values("throttle_reasons"):
        bits |= int(value)
    return {
        "device_uuid": uuid,
        "sm_clock_mhz": _over(np.median, values("sm_clock_mhz")),
        "temperature_c": _over(np.max, values("temperature_c")),
        "sampled_power_w": _over(np.mean, values("power_w")),
        "throttled": ", ".join(name for bit, name in _THROTTLES.items() if bits & bit),
    }


def _over(rule: Any, values: list[float]) -> float:
    return float(rule(values)) if values else math.nan
