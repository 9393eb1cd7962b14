"""Energy of a node: cumulative counters of its GPUs and CPU packages, read by the agent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from andromeda_scale.collectors.base import NodeCollector
from andromeda_scale.errors import CollectorUnavailable
from andromeda_scale.hardware.nvml import Gpu, Nvml
from andromeda_scale.metrics.devices import ENERGY_SECONDS, ENERGY_STEPS

_POWERCAP = Path("/sys/class/powercap")
_IDLE_S = 2.0


class Energy(NodeCollector):
    """Joules of GPUs and CPU packages over the timed window, which is at least 100 steps and 10 s.

    Values:
        gpus      {uuid: {name, t_s, energy_j}}: NVML's total energy counter
        packages  {zone: {name, t_s, energy_j}}: RAPL, where it may be read
                  t_s on the node's monotonic clock, energy_j since the first sample; a sample is
                  kept where the counter has moved, and the last
        idle      {seconds, gpus: {uuid: W}, packages: {zone: W}}: mean power before the agent
                  started its first rank of the run, its own imports done
        missing   why there is no counter of the other kind; null if there is
    """

    least_steps: ClassVar[int] = ENERGY_STEPS  # the window is extended to both
    least_s: ClassVar[float] = ENERGY_SECONDS
    _idle: ClassVar[Mapping[str, Any] | None] = None

    def __init__(self, period_s: float = 0.1, powercap: Path = _POWERCAP) -> None:
        self._period_s, self._powercap = period_s, powercap
        self._ended = threading.Event()

    @classmethod
    def before_ranks(cls) -> None:
        """Once a run, while no rank of it exists: what the devices take when idle."""
        meters, _ = open_meters()
        for meter in meters:
            meter.sample()
        if meters:
            time.sleep(_IDLE_S)
        for meter in meters:
            meter.sample()
        _close(meters)
        watts: dict[str, dict[str, float]] = {"gpus": {}, "packages": {}}
        for meter in meters:
            if (found := meter.mean_w()) is not None:
                watts[meter.kind][meter.key] = found
        cls._idle = {"seconds": _IDLE_S, **watts} if meters else None

    def start(self) -> None:
        """Take the first sample, then go on in the background.

        Raises CollectorUnavailable where nothing counts energy.
        """
        self._meters, self._missing = open_meters(self._powercap)
        if not self._meters:
            raise CollectorUnavailable(self._missing)
        self._sample()
        self._thread = threading.Thread(target=self._run, name="energy", daemon=True)
        self._thread.start()

    def stop(self) -> Mapping[str, Any]:
        self._ended.set()
        self._thread.join()
        self._sample()
        _close(self._meters)
        found: dict[str, dict[str, Any]] = {"gpus": {}, "packages": {}}
        for meter in self._meters:
            found[meter.kind][meter.key] = meter.values()
        return {**found, "idle": self._idle, "missing": self._missing or None}

    def _run(self) -> None:
        while not self._ended.wait(self._period_s):
            self._sample()

    def _sample(self) -> None:
        for meter in self._meters:
            meter.sample()


@dataclass
class Meter:
    """One device's counter; `read` gives joules that only grow, or None when it does not answer."""

    kind: Literal["gpus", "packages"]
    key: str
    name: str
    read: Callable[[], float | None]
    close: Callable[[], None] = lambda: None
    times: list[float] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)

    def sample(self) -> None:
        """Note the counter at the middle of its reading; of equal values the first and the last."""
        before = time.monotonic()
        joules = self.read()
        if joules is None:
            return
        now = (before + time.monotonic()) / 2
        if len(self.joules) > 1 and self.joules[-2] == self.joules[-1] == joules:
            self.times[-1] = now
        else:
            self.times.append(now)
            self.joules.append(joules)

    def mean_w(self) -> float | None:
        """Over all samples; None with fewer than two."""
        if len(self.times) < 2:
            return None
        return (self.joules[-1] - self.joules[0]) / (self.times[-1] - self.times[0])

    def values(self) -> dict[str, Any]:
        first = self.joules[0] if self.joules else 0.0
        return {
            "name": self.name,
            "t_s": [round(t, 6) for t in self.times],
            "energy_j": [round(joules - first, 6) for joules in self.joules],
        }


def open_meters(powercap: Path = _POWERCAP) -> tuple[list[Meter], str]:
    """Every counter of this node, and why there is none of a kind."""
    gpus, no_gpus = _gpus()
    packages, no_packages = cpu_packages(powercap)
    return gpus + packages, "; ".join(reason for reason in (no_gpus, no_packages) if reason)


def _close(meters: list[Meter]) -> None:
    for meter in meters:
        meter.close()


def cpu_packages(root: Path) -> tuple[list[Meter], str]:
    """RAPL's packages below `root`, without their parts (core, dram) and the whole platform.

    All or none: what is left of several is not the node's energy.
    """
    found, unreadable = [], []
    for zone in sorted(root.glob("intel-rapl:*")):
        try:
            name = (zone / "name").read_text().strip()
            if not name.startswith("package"):
                continue
            counter = RaplCounter(zone)
        except OSError as error:
            unreadable.append(f"{zone}/energy_uj: {error.strerror}")
            continue
        except ValueError:
            unreadable.append(f"{zone}: no numbers")
            continue
        found.append(Meter("packages", zone.name, name, counter.read))
    if found and not unreadable:
        return found, ""
    return [], "; ".join(unreadable) or f"no RAPL package in {root}"


class RaplCounter:
    """Microjoules of one zone, which start at zero again above its range (Linux,
    Documentation/power/powercap). Raises OSError or ValueError where it cannot be read."""

    def __init__(self, zone: Path) -> None:
        self._file = zone / "energy_uj"
        self._range_uj = int((zone / "max_energy_range_uj").read_text())
        self._last_uj = int(self._file.read_text())
        self._total_uj = 0

    def read(self) -> float | None:
        """Joules since this was made; None when it does not answer."""
        try:
            now_uj = int(self._file.read_text())
        except (OSError, ValueError):
            return None
        grown = now_uj - self._last_uj
        self._total_uj += grown if grown >= 0 else grown + self._range_uj
        self._last_uj = now_uj
        return self._total_uj / 1e6


def _gpus() -> tuple[list[Meter], str]:
    """NVML's counter of every GPU of the node that has one."""
    nvml = Nvml()
    found: list[Meter] = []
    reason = f"no GPU: {nvml.missing}" if nvml.missing else "no GPU"
    for gpu in nvml.gpus:
        read = partial(_joules, nvml, gpu)
        if read() is None:  # before Volta there is none
            reason = f"{gpu.name} ({gpu.uuid}) has no energy counter"
            continue
        # The library is opened once for all: the first meter closes it.
        last = nvml.close if not found else (lambda: None)
        found.append(Meter("gpus", gpu.uuid, gpu.name, read, last))
    if not found:
        nvml.close()
    return found, "" if found else reason


def _joules(nvml: Nvml, gpu: Gpu) -> float | None:
    millijoules = nvml.ask(nvml.functions.nvmlDeviceGetTotalEnergyConsumption, gpu.handle)
    return None if millijoules is None else int(millijoules) / 1e3
