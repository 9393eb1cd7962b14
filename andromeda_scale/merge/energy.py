"""Joules of a launch's devices over its measured window, from the nodes' counters. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from andromeda_scale.analysis.energy import energy_between
from andromeda_scale.contracts.records import RankRecord, RepeatRecord
from andromeda_scale.merge.devices import window_of
from andromeda_scale.merge.ranks import RankTable
from andromeda_scale.merge.values import number, of_ranks, series_of, text
from andromeda_scale.metrics.devices import ENERGY_SECONDS, ENERGY_STEPS

COLUMNS: dict[str, str] = {
    "energy_unavailable": "str",  # why a launch that collects energy has none
    "energy_short": "str",  # its window, where that is too short to rely on
}

_UNSOUND = "the counter stood still, or its samples do not enclose"


@dataclass(frozen=True)
class _Device:
    """One counter over one window."""

    energy_j: float
    seconds: float
    idle_w: float  # NaN: not measured


def energy_columns(record: RepeatRecord, table: RankTable) -> dict[str, Any]:
    """METRICS of energy, or why there are none; for launches that collect it."""
    ranks = [record.ranks.get(rank, RankRecord(rank)) for rank in range(table.world_size)]
    nodes = [node for node in record.nodes if "energy" in node]
    on_gpus = any(text(rank.start, "device_uuid") for rank in ranks)
    found = _of_gpus(ranks, nodes) if on_gpus else _of_packages(ranks, nodes)
    if isinstance(found, str):
        return {"energy_unavailable": found}
    energy_j = sum(device.energy_j for device in found)
    power_w = sum(device.energy_j / device.seconds for device in found)
    num_steps = 0 if table.step_s is None else table.step_s.shape[1]
    seconds = min(device.seconds for device in found)
    short = num_steps < ENERGY_STEPS or seconds < ENERGY_SECONDS
    return {
        "energy_j": energy_j,
        "joules_per_token": energy_j / float(table.columns["tokens"].sum()),
        "power_w": power_w,
        "power_per_device_w": power_w / len(found),
        "idle_power_w": sum(device.idle_w for device in found),
        "energy_short": f"{num_steps} steps, {seconds:.1f} s" if short else "",
    }


def _of_gpus(ranks: Sequence[RankRecord], nodes: Sequence[dict[str, Any]]) -> list[_Device] | str:
    """The GPU of every rank over its own window; one that ranks share counts once."""
    devices: dict[str, _Device] = {}
    for rank in ranks:
        uuid, (start, end) = text(rank.start, "device_uuid"), window_of(rank)
        if uuid in devices:
            continue
        samples = [_counters(node, "gpus").get(uuid) for node in nodes]
        node = next((n for n, of in zip(nodes, samples, strict=True) if of is not None), None)
        if node is None:
            return _silence(nodes) or f"no node counts the energy of {of_ranks([rank.rank])}'s GPU"
        device = _device(node, "gpus", uuid, start, end)
        if device is None:
            return f"{_UNSOUND} the window of {of_ranks([rank.rank])}"
        devices[uuid] = device
    return list(devices.values())


def _of_packages(
    ranks: Sequence[RankRecord], nodes: Sequence[dict[str, Any]]
) -> list[_Device] | str:
    """Every CPU package of the ranks' nodes, from their first rank's window to their last's."""
    windows: dict[str, list[tuple[float, float]]] = {}
    for rank in ranks:
        windows.setdefault(text(rank.start, "host"), []).append(window_of(rank))
    by_host = {text(node.get("environment") or {}, "hostname"): node for node in nodes}
    found = []
    for host, of_host in windows.items():
        node = by_host.get(host, {})
        packages = _counters(node, "packages")
        if not packages:
            return _silence([node] if node else nodes) or f"no CPU package of {host} is counted"
        start, end = min(w[0] for w in of_host), max(w[1] for w in of_host)
        for zone in packages:
            device = _device(node, "packages", zone, start, end)
            if device is None:
                return f"{_UNSOUND} the window of {host}"
            found.append(device)
    return found


def _silence(nodes: Sequence[dict[str, Any]]) -> str:
    """Why the nodes' collectors have no counter, in their own words."""
    said: dict[str, None] = {}
    for node in nodes:
        values = node["energy"] if isinstance(node.get("energy"), dict) else {}
        for key in ("unavailable", "error", "missing"):
            if isinstance(values.get(key), str):
                said[values[key]] = None
    return "; ".join(said)


def _counters(node: dict[str, Any], kind: str) -> dict[str, Any]:
    values = node.get("energy")
    found = values.get(kind) if isinstance(values, dict) else None
    return found if isinstance(found, dict) else {}


def _device(node: dict[str, Any], kind: str, key: str, start: float, end: float) -> _Device | None:
    samples = _counters(node, kind)[key]
    if not isinstance(samples, dict):
        return None
    times, joules = series_of(samples.get("t_s")), series_of(samples.get("energy_j"))
    if times is None or joules is None or not math.isfinite(start) or not math.isfinite(end):
        return None
    energy_j = energy_between(times, joules, start, end)
    if energy_j is None:
        return None
    idle = node["energy"].get("idle")
    of_kind = idle.get(kind) if isinstance(idle, dict) else None
    return _Device(energy_j, end - start, number(of_kind, key))
