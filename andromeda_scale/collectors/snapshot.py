"""The CUDA allocator's own history of a step, as a file for torch's viewer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from andromeda_scale.collectors.base import Collector, Context
from andromeda_scale.contracts.records import Phase
from andromeda_scale.errors import CollectorUnavailable

_MAX_EVENTS = 50_000  # allocations and releases, the last; an entry with its stack takes KBs


class AllocatorSnapshot(Collector):
    """A file a rank beside its record: every allocation of an inspected step with its Python stack.

    Open it in pytorch.org/memory_viz. Values of `inspect`: file, its name; bytes, its size.
    """

    phases: frozenset[Phase] = frozenset({"inspect"})

    def start(self, phase: Phase, context: Context) -> None:
        if context.runtime.device.type != "cuda":
            raise CollectorUnavailable("torch's allocator on a CPU keeps no history")
        import torch

        self._device = context.runtime.device
        self._path = context.directory / f"allocator-rank-{context.runtime.rank}.pickle"
        # No stack of what is freed: an exception on its way (checkpointing ends a recomputed block
        # with one) would be lost where its unwinding frees, and the step would crash.
        torch.cuda.memory._record_memory_history(
            context="alloc", max_entries=_MAX_EVENTS, stacks="python", device=self._device
        )

    def stop(self, phase: Phase) -> Mapping[str, Any]:
        import torch

        try:
            torch.cuda.memory._dump_snapshot(str(self._path))
        finally:
            torch.cuda.memory._record_memory_history(enabled=None, device=self._device)
        return {"file": self._path.name, "bytes": self._path.stat().st_size}
