"""What one step of a rank holds: peaks by part, and communication buffers beside the states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from andromeda_scale.collectors.allocations import CpuAllocations
from andromeda_scale.collectors.base import Context

if TYPE_CHECKING:
    import torch

PARTS = ("forward", "backward", "update")  # of the worker's marks


def of_one_step(context: Context) -> dict[str, Any]:
    """Take one step and say what it held: see `collectors.memory` for the values.

    The step is run whatever fails: the other ranks run it too.
    """
    from andromeda_scale.rank.train_step import unmarked

    on_cuda = context.runtime.device.type == "cuda"
    device = context.runtime.device
    peaks = _CudaPeaks(device, held_by_graphs(context)) if on_cuda else _CpuPeaks()
    if not on_cuda:
        # The allocator tells the release of what it has counted: of all that a step leaves to the
        # next, from one step on.
        context.step(unmarked)
    buffers = _Buffers(context)
    mark: Callable[[str], AbstractContextManager[object]] = unmarked
    try:
        buffers.start()
        mark = peaks.start()
    finally:
        context.step(mark)
        buffers.stop()
    hidden = context.strategy.hidden_bytes(context.state)
    return {**peaks.stop(hidden), "communication_buffers": buffers.fullest}


def graph_pool_bytes(segments: Iterable[Mapping[str, Any]], device: int) -> int:
    """Bytes that CUDA graphs keep for what they replay into, of torch.cuda.memory_snapshot().

    They lie in private pools. The allocator counts what is in them only until it is recorded, and
    nobody else can have it.
    """
    return sum(
        int(segment["total_size"]) - int(segment["allocated_size"])
        for segment in segments
        if segment["device"] == device and tuple(segment["segment_pool_id"]) != (0, 0)
    )


def held_by_graphs(context: Context) -> int:
    """The same of this rank now; 0 where nothing was compiled to CUDA graphs."""
    import torch

    how, device = context.case.train.compiling, context.runtime.device
    if device.index is None or not (how and how.cuda_graphs):
        return 0
    return graph_pool_bytes(torch.cuda.memory_snapshot(), device.index)


class _CudaPeaks:
    """The allocator's own peak, reset where a part begins. It counts when the host asks for memory,
    so nothing waits for the device. `in_graphs`: bytes it does not count."""

    def __init__(self, device: torch.device, in_graphs: int) -> None:
        self._device, self._in_graphs = device, in_graphs
        self._parts: dict[str, int] = {}

    def start(self) -> Callable[[str], AbstractContextManager[object]]:
        import torch

        self._at_start = torch.cuda.memory_allocated(self._device) + self._in_graphs
        return self._mark

    @contextmanager
    def _mark(self, name: str) -> Iterator[None]:
        import torch

        if name not in PARTS:
            yield
            return
        torch.cuda.reset_peak_memory_stats(self._device)
        yield
        peak = torch.cuda.max_memory_allocated(self._device) + self._in_graphs
        self._parts[name] = max(self._parts.get(name, 0), peak)

    def stop(self, hidden: int) -> dict[str, Any]:
        return {
            "peak_allocated_bytes": max(self._at_start, *self._parts.values()),
            "parts": {"start": self._at_start, **self._parts},
        }


class _CpuPeaks:
    """The same from a trace of allocations."""

    def __init__(self) -> None:
        self._watched = CpuAllocations()

    def start(self) -> Callable[[str], AbstractContextManager[object]]:
        from andromeda_scale.rank.train_step import marked

        self._watched.start()
        return marked

    def stop(self, hidden: int) -> dict[str, Any]:
        found = self._watched.stop(hidden)
        parts = {name: found.parts[name] for name in PARTS if name in found.parts}
        return {
            "peak_allocated_bytes": found.peak,
            "parts": {"start": found.at_start, **parts},
        }


class _Buffers:
    """The strategy's communication buffers, read where a module begins and where its backward does.

    Inside what is compiled nothing is read: a hook there would compile them again.
    """

    def __init__(self, context: Context) -> None:
        self.fullest: dict[str, int] = {}
        self._strategy = context.strategy
        self._state: Any = context.state
        self._how = context.case.train.compiling
        self._hooks: list[Any] = []

    def start(self) -> None:
        module = self._state.module
        compiled = [module] if self._how and self._how.whole else list(module.blocks)
        left_alone = {
            inner
            for part in (compiled if self._how else ())
            for inner in part.modules()
            if inner is not part
        }
        for child in module.modules():
            if child not in left_alone:
                self._hooks.append(child.register_forward_pre_hook(self._read))
                self._hooks.append(child.register_forward_hook(self._watch_backward))

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _read(self, *_: Any) -> None:
        found = self._strategy.communication_buffers(self._state)
        if sum(found.values()) >= sum(self.fullest.values()):
            self.fullest = found

    def _watch_backward(self, module: Any, inputs: Any, output: Any) -> None:
        import torch

        for one in output if isinstance(output, tuple) else (output,):
            if isinstance(one, torch.Tensor) and one.requires_grad:
                one.register_hook(self._read)
