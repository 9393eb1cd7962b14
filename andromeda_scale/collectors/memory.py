"""Memory of one rank: device, host, and the exact bytes of the training state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from andromeda_scale.collectors.base import Context
from andromeda_scale.records import Phase


class Memory:
    """Peaks of a phase and bytes of states.

    Values of each phase:
        peak_memory_bytes   CUDA: peak allocated; CPU: peak resident
        host:   {rss_bytes, uss_bytes, peak_rss_bytes}
        device: {peak_allocated_bytes, peak_reserved_bytes, retries, ooms,
                 outside_allocator_bytes, capacity_bytes} or null on CPU
        states: {parameters_bytes, gradients_bytes, master_bytes, optimizer_state_bytes,
                 total_bytes}, in the phase that walked them, between a backward and its update
    """

    where: ClassVar[Literal["rank"]] = "rank"
    phases: frozenset[Phase] = frozenset({"setup", "warmup", "measure", "profile"})

    def start(self, phase: Phase, context: Context) -> None:
        raise NotImplementedError

    def stop(self, phase: Phase) -> Mapping[str, Any]:
        raise NotImplementedError
