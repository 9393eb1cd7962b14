"""Bandwidths of collectives, and a machine's ceilings looked up for what a run did. No torch.

A lookup answers (number, "") or (None, why there is none).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from andromeda_scale.contracts.probed import COLLECTIVES, Ceiling, Probed
from andromeda_scale.cost.comm import bus_factor

DTYPES = {"fp32": "float32", "tf32": "tf32", "bf16": "bfloat16", "fp16": "float16"}
NO_PROBE = "no probe of this machine is in the run; andromeda-scale probe, then resume RUN"

Found = tuple[float, str] | tuple[None, str]


class Bandwidths(NamedTuple):
    """algbw = S/t and busbw = algbw x factor, in GB/s of 1e9 (nccl-tests, PERFORMANCE.md)."""

    algbw_gbps: float
    busbw_gbps: float


def bandwidths(op: str, group_size: int, size_bytes: float, time_s: float) -> Bandwidths:
    """Of one collective of S = `size_bytes` over `group_size` ranks."""
    algbw = size_bytes / time_s / 1e9
    return Bandwidths(algbw, algbw * bus_factor(op, group_size))


def interpolate(size_bytes: float, sizes: list[int], values: list[float]) -> float:
    """A value between measured sizes, linear in the logarithms of both; the last one beyond them.

    `sizes` ascend. NaN below the smallest: there the time is a latency, whatever the size.
    """
    if size_bytes < sizes[0]:
        return float("nan")
    return float(np.exp(np.interp(np.log(size_bytes), np.log(sizes), np.log(values))))


class Ceilings:
    """The ceilings of a calibration; what cannot be read of it is in `problems`."""

    def __init__(self, stored: Mapping[str, Any]) -> None:
        self.problems: list[str] = []
        self._worlds: dict[str, Probed] = {}
        for name, value in stored.items():
            try:
                self._worlds[str(name)] = Probed.model_validate(value)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, (name, *first["loc"])))
                self.problems.append(
                    f"calibration.json: ceilings.{where}: {first['msg']}; probe again"
                )

    def matmul(self, device: str, device_name: str, precision: str, threads: int) -> Found:
        """Best FLOP/s of a device in a precision; on a CPU with as many threads as a rank has."""
        wanted = DTYPES.get(precision, precision)
        found = [p for p, _ in self._points(device, device_name) if p.kind == "matmul"]
        if not found:
            return None, self._nothing(device, device_name, "matrix products")
        found = [p for p in found if p.dtype == wanted]
        if not found:
            return None, f"the probe has no matrix products in {precision}"
        if device == "cpu":
            found = [p for p in found if p.threads == threads]
            if not found:
                return None, f"the probe has no matrix products on {threads} threads"
        rates = [p.flops_per_s for p in found if p.flops_per_s]
        return (max(rates), "") if rates else (None, "the probe has no rate")

    def busbw(
        self,
        device: str,
        device_name: str,
        op: str,
        size_bytes: float,
        *,
        group_size: int,
        group_nodes: int,
        world_size: int,
    ) -> Found:
        """GB/s that a collective reached at this message size over as many ranks and nodes.

        From the probe of this world where there is one, otherwise of the largest.
        """
        op = "send" if op == "recv" else op
        if op not in COLLECTIVES:
            return None, f"{op} is not probed"
        of_op = [
            (probed, point)
            for point, probed in self._points(device, device_name)
            if point.kind == "collective" and point.op == op and point.busbw_gbps
            if (point.group_size, point.group_nodes) == (group_size, group_nodes)
        ]
        if not of_op:
            on = f" on {group_nodes} nodes" if group_nodes > 1 else ""
            return None, self._nothing(device, device_name, f"{op} over {group_size} ranks{on}")
        worlds = {probed.world_size for probed, _ in of_op}
        world = world_size if world_size in worlds else max(worlds)
        points = {p.size_bytes or 0: p.busbw_gbps or 0.0 for w, p in of_op if w.world_size == world}
        sizes = sorted(points)
        found = interpolate(size_bytes, sizes, [points[size] for size in sizes])
        if np.isnan(found):
            return None, f"messages under {sizes[0]} bytes are not probed"
        return found, ""

    def _points(self, device: str, device_name: str) -> Iterator[tuple[Ceiling, Probed]]:
        for name, probed in self._worlds.items():
            if name.partition("/")[0] == device and probed.device_name == device_name:
                yield from ((point, probed) for point in probed.points)

    def _nothing(self, device: str, device_name: str, what: str) -> str:
        """Why there is no point of `what`."""
        if not self._worlds:
            return NO_PROBE
        if not any(True for _ in self._points(device, device_name)):
            others = ", ".join(dict.fromkeys(p.device_name for p in self._worlds.values()))
            return f"the probe in the run is of {others}, not of {device_name or 'this device'}"
        return f"the probe has no {what}"
