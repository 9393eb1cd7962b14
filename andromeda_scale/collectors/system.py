"""The node under the ranks: CPU, memory, network, disk, GPUs, sampled by the agent."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from andromeda_scale.collectors.base import NodeCollector
from andromeda_scale.hardware.nvml import Nvml

_INFINIBAND = Path("/sys/class/infiniband")
_INFINIBAND_WORD = 4  # port_xmit_data and port_rcv_data count words of 4 bytes


class System(NodeCollector):
    """Samples one node about once a second in a thread of the agent; one sample costs < 1 ms.

    Values: start_s, the first sample on the node's monotonic clock, and, each list one number per
    sample:
        t_s                       seconds since the first sample
        cpu_share                 busy share of all cores since the sample before; null first
        load_1m                   run queue, averaged over a minute by the kernel
        memory_used_bytes         of the node: everything but what is available
        gpus: {uuid: {name, utilization_share, memory_used_bytes, power_w, temperature_c,
                      sm_clock_mhz, memory_clock_mhz, throttle_reasons}}   NVML's bit mask; all
                      null where a GPU does not say
    and as totals from the first to the last sample,
        network_bytes, infiniband_bytes: {interface: {sent, received}}, disk_bytes: {read, written}
    """

    def __init__(self, period_s: float = 1.0) -> None:
        self._period_s = period_s
        self._ended = threading.Event()
        self._error: Exception | None = None
        self._samples: dict[str, list[Any]] = {}

    def start(self) -> None:
        """Take the first sample, then go on in the background."""
        self._gpus = _Gpus()
        self._started = time.monotonic()
        self._cpu: Any = None
        self._totals = _totals()
        self._sample()
        self._thread = threading.Thread(target=self._run, name="system", daemon=True)
        self._thread.start()

    def stop(self) -> Mapping[str, Any]:
        """Take the last sample. Raises what ended the sampling early, if anything did."""
        self._ended.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
        self._sample()
        totals = _totals()
        return {
            "start_s": self._started,
            **self._samples,
            "gpus": self._gpus.close(),
            **{name: _grown(self._totals[name], totals[name]) for name in totals},
        }

    def _run(self) -> None:
        try:
            while not self._ended.wait(self._period_s):
                self._sample()
        except Exception as error:  # the thread has nobody else to tell
            self._error = error

    def _sample(self) -> None:
        before, self._cpu = self._cpu, psutil.cpu_times()
        memory = psutil.virtual_memory()
        values = {
            "t_s": time.monotonic() - self._started,
            "cpu_share": None if before is None else _busy_share(before, self._cpu),
            "load_1m": os.getloadavg()[0],
            "memory_used_bytes": memory.total - memory.available,
        }
        for name, value in values.items():
            self._samples.setdefault(name, []).append(value)
        self._gpus.sample()


def _busy_share(before: Any, after: Any) -> float:
    """Share of all cores' time that was not idle; guest time is part of user time already."""
    spent = {
        name: getattr(after, name) - getattr(before, name)
        for name in after._fields
        if not name.startswith("guest")
    }
    total = sum(spent.values())
    idle = spent["idle"] + spent.get("iowait", 0.0)
    return min(max(1 - idle / total, 0.0), 1.0) if total > 0 else 0.0


_Totals = dict[str, dict[str, Any]]


def _totals() -> _Totals:
    """Counters since boot: by interface for networks, over all disks for storage."""
    disk = psutil.disk_io_counters()
    return {
        "network_bytes": {
            name: {"sent": nic.bytes_sent, "received": nic.bytes_recv}
            for name, nic in psutil.net_io_counters(pernic=True).items()
        },
        "infiniband_bytes": _infiniband(),
        "disk_bytes": {"read": disk.read_bytes, "written": disk.write_bytes} if disk else {},
    }


def _infiniband(root: Path = _INFINIBAND) -> dict[str, Any]:
    """Bytes by device and port, which the kernel's network counters leave out."""
    found = {}
    for port in sorted(root.glob("*/ports/*")):
        with suppress(OSError, ValueError):  # a port may go, or not count
            sent, received = (
                int((port / "counters" / name).read_text()) * _INFINIBAND_WORD
                for name in ("port_xmit_data", "port_rcv_data")
            )
            found[f"{port.parent.parent.name}:{port.name}"] = {"sent": sent, "received": received}
    return found


def _grown(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What each counter gained; an interface that was not there before counts from zero."""
    return {
        name: _grown(before.get(name, {}), value)
        if isinstance(value, dict)
        else value - before.get(name, 0)
        for name, value in after.items()
    }


class _Gpus:
    """NVML's view of every GPU of the node; empty without a driver."""

    def __init__(self) -> None:
        self._nvml = Nvml()
        self._series: dict[str, dict[str, Any]] = {
            gpu.uuid: {"name": gpu.name} for gpu in self._nvml.gpus
        }

    def sample(self) -> None:
        for gpu in self._nvml.gpus:
            for name, read in self._readings().items():
                value = self._nvml.ask(read, gpu.handle)
                self._series[gpu.uuid].setdefault(name, []).append(value)

    def close(self) -> dict[str, dict[str, Any]]:
        self._nvml.close()
        return self._series

    def _readings(self) -> dict[str, Callable[[Any], float]]:
        nvml = self._nvml.functions
        return {
            "utilization_share": lambda h: nvml.nvmlDeviceGetUtilizationRates(h).gpu / 100,
            "memory_used_bytes": lambda h: int(nvml.nvmlDeviceGetMemoryInfo(h).used),
            "power_w": lambda h: nvml.nvmlDeviceGetPowerUsage(h) / 1000,
            "temperature_c": lambda h: nvml.nvmlDeviceGetTemperature(h, nvml.NVML_TEMPERATURE_GPU),
            "sm_clock_mhz": lambda h: nvml.nvmlDeviceGetClockInfo(h, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": lambda h: nvml.nvmlDeviceGetClockInfo(h, nvml.NVML_CLOCK_MEM),
            "throttle_reasons": nvml.nvmlDeviceGetCurrentClocksThrottleReasons,
        }
