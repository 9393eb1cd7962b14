"""Memory of one rank: what a phase needed at most, on the device and on the host."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from andromeda_scale.collectors import step_memory
from andromeda_scale.collectors.base import Collector, Context
from andromeda_scale.contracts.records import Phase
from andromeda_scale.hardware.machine import host_memory_bytes, process_bytes

_CLEAR_REFS = Path("/proc/self/clear_refs")


class Memory(Collector):
    """Peaks of each phase, reset at its start; all bytes.

    Values of each phase:
        peak_memory_bytes   CUDA: device.peak_allocated_bytes; CPU: host.peak_rss_bytes
        host:    rss_bytes, uss_bytes at the end of the phase; peak_rss_bytes, peak_since
                 ("phase", or "start" of the process where the kernel cannot reset it),
                 capacity_bytes (of the node, by its ranks)
        device:  null on CPU, or peak_allocated_bytes, peak_reserved_bytes, allocated_bytes,
                 reserved_bytes, retries, ooms (in this phase), outside_allocator_bytes (used on
                 the device by this and other processes, less what this one reserved),
                 capacity_bytes; peak_allocated_bytes with what CUDA graphs keep to replay into
                 (in `warmup` an upper bound: what is recorded is also allocated once)
    and of `inspect`, in one more step, of torch's allocator (on a CPU, which keeps no count of what
    it allocates, from a trace of it: `allocations`):
        peak_allocated_bytes   the most it held
        parts    {start, forward, backward, update}: what it held before the step, and the most
                 within each part; one that the mode lacks is absent
        communication_buffers   {name: bytes} of the strategy's at their fullest, states left out

    What is counted on the host: RSS is everything resident, also the libraries' code and the
    pages a rank shares with the process it was forked from, so ranks' RSS must not be added up.
    USS is what would be freed if this rank alone ended. The exact bytes of parameters, gradients,
    master and optimizer state are in the strategy's `describe`, read between backward and update.
    """

    phases: frozenset[Phase] = frozenset({"setup", "warmup", "measure", "inspect"})

    def start(self, phase: Phase, context: Context) -> None:
        self._context = context
        self._device = context.runtime.device
        self._on_cuda = self._device.type == "cuda"
        if self._on_cuda:
            import torch

            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_stats(self._device)
        self._was_reset = _reset_peak()

    def stop(self, phase: Phase) -> Mapping[str, Any]:
        if phase == "inspect":
            gc.collect()
            gc.unfreeze()  # the worker froze what it built, and what is alive is counted
            return step_memory.of_one_step(self._context)
        host = self._host()
        device = self._cuda() if self._on_cuda else None
        peak = host["peak_rss_bytes"] if device is None else device["peak_allocated_bytes"]
        return {"peak_memory_bytes": peak, "host": host, "device": device}

    def _host(self) -> dict[str, Any]:
        import psutil

        # Since the start, or the reset; first, for reading the rest takes memory too.
        peak = process_bytes("VmHWM")
        now = psutil.Process().memory_full_info()
        return {
            "rss_bytes": now.rss,
            "uss_bytes": now.uss,
            "peak_rss_bytes": peak if peak is not None else now.rss,
            "peak_since": "phase" if self._was_reset else "start",
            "capacity_bytes": host_memory_bytes() // self._context.case.world.ranks_per_node,
        }

    def _cuda(self) -> dict[str, int]:
        import torch

        stats = torch.cuda.memory_stats(self._device)
        free, capacity = torch.cuda.mem_get_info(self._device)
        reserved = stats.get("reserved_bytes.all.current", 0)

        def during(counter: str) -> int:
            return int(stats.get(counter, 0) - self._before.get(counter, 0))

        return {
            "peak_allocated_bytes": stats.get("allocated_bytes.all.peak", 0)
            + step_memory.held_by_graphs(self._context),
            "peak_reserved_bytes": stats.get("reserved_bytes.all.peak", 0),
            "allocated_bytes": stats.get("allocated_bytes.all.current", 0),
            "reserved_bytes": reserved,
            "retries": during("num_alloc_retries"),
            "ooms": during("num_ooms"),
            "outside_allocator_bytes": capacity - free - reserved,
            "capacity_bytes": capacity,
        }


def _reset_peak() -> bool:
    """Make the kernel count this process's peak from now on (proc_pid_clear_refs(5), value 5)."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True
