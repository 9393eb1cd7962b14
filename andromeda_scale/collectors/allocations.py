"""What a step allocates on the CPU: every byte that torch's allocator holds, at its most.

CUDA's allocator keeps this count itself. The CPU's has none, but tells the profiler of each
allocation; what was alive before is found among the tensors of the process.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

_MARK = "andromeda::"  # of the worker's ranges, and then the part


class Allocated(NamedTuple):
    """Bytes of torch's allocator while it was watched."""

    peak: int
    at_start: int
    parts: dict[str, int]  # the peak within each of the worker's ranges, by name


class CpuAllocations:
    """Watches the allocations of what happens between `start` and `stop`; slows it several times.

    Each event tells the allocator's total, which also knows what threads without a profiler free:
    gloo's are often the last to let go of what they sent.
    Exact but for two things: storages that were there before and that no Python object shows
    (`hidden`: the caller knows them), and the moment at which a storage is freed that is older than
    the first of these in a process. It counts as freed before the peak.
    """

    def __init__(self) -> None:
        _count_on_every_thread()

    @staticmethod
    def alive_bytes() -> int:
        """Bytes of all tensors on the CPU that Python shows now."""
        gc.collect()
        return sum(size for _, size in _alive())

    def start(self) -> None:
        from torch.autograd.profiler import profile

        self._before = _alive()
        # Not torch.profiler: nothing but Kineto's own tree of events is wanted.
        self._profiler = profile(use_kineto=True, profile_memory=True)
        self._profiler.__enter__()
        _tell_total()

    def stop(self, hidden: int = 0) -> Allocated:
        """The most bytes that were held at once, those alive at the start included."""
        times, above, ranges = self._trace()
        change = int(above[-1])
        kept = sum(size for storage, size in self._before if not storage.expired())
        freed = sum(size for _, size in self._before) - kept
        # Of what was freed the profiler reports what was counted when it came.
        alive = sum(size for _, size in _alive())
        reported = min(max(alive - kept - change, 0), freed)
        always = hidden + kept + reported
        parts: dict[str, int] = {}
        for name, start, end in ranges:
            first, last = np.searchsorted(times, (start, end))
            most = always + int(above[first - 1 : last].max())  # with what was held when it began
            parts[name] = max(parts.get(name, 0), most)
        return Allocated(
            peak=always + int(above.max()),
            at_start=hidden + kept + freed,
            parts=parts,
        )

    def _trace(self) -> tuple[np.ndarray, np.ndarray, list[tuple[str, int, int]]]:
        """Times of the start and every allocation and release, bytes held after each above those at
        the start, and the worker's ranges: (part, start, end) in the same nanoseconds."""
        from torch._C._profiler import _EventType

        _tell_total()
        self._profiler.__exit__(None, None, None)
        result: Any = self._profiler.kineto_results
        del self._profiler
        found: list[tuple[int, int, int]] = []
        ranges: list[tuple[str, int, int]] = []
        events = list(result.experimental_event_tree())
        while events:
            event = events.pop()
            events.extend(event.children)
            if event.tag == _EventType.Allocation:
                told = event.extra_fields
                if told.device.type == "cpu":
                    found.append((event.start_time_ns, told.total_allocated, told.alloc_size))
            elif event.name.startswith(_MARK):
                part = event.name.removeprefix(_MARK)
                ranges.append((part, event.start_time_ns, event.end_time_ns))
        _, first_total, first_size = min(found)
        at_start = (0, first_total - first_size, 0)
        times, totals, _ = np.array([at_start, *sorted(found)], np.int64).T
        return times, totals - at_start[1], ranges


def _count_on_every_thread() -> None:
    """Have torch's allocator keep its total on all threads, from now on.

    By itself it does so only where a profiler runs. The switch is c10's own, of the command line of
    programs in C++ (c10/core/CPUAllocator.cpp). Where a build of torch hides it, what gloo's
    threads free stays counted.
    """
    import torch

    try:
        library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libc10.so"))
        switch = ctypes.c_bool.in_dll(library, "FLAGS_caffe2_report_cpu_memory_usage")
    except (OSError, ValueError):
        return
    switch.value = True


def _tell_total() -> None:
    """Cause an event, and with it the allocator's total of now."""
    import torch

    torch.empty(1)


def _alive() -> list[tuple[Any, int]]:
    """(weak reference, bytes) of the storages of all tensors on the CPU, each once.

    The collector of garbage knows all tensors but frozen ones. What is garbage since long is a
    matter of the caller: to look for it among a rank's libraries takes longer than a step.
    Storages that torch did not allocate (NumPy's) are counted too: batches are small.
    """
    import torch
    from torch.multiprocessing.reductions import StorageWeakRef

    gc.collect(1)
    found: dict[int, tuple[Any, int]] = {}
    objects = gc.get_objects()
    tensors = {kind for kind in set(map(type, objects)) if issubclass(kind, torch.Tensor)}
    for one in objects:
        if type(one) in tensors:
            for storage in _storages(one):
                if storage.data_ptr() not in found:
                    reference = StorageWeakRef(storage)
                    found[storage.data_ptr()] = (reference, storage.nbytes())
    return list(found.values())


def _storages(tensor: torch.Tensor) -> Iterator[torch.UntypedStorage]:
    """The memory of a tensor and of its gradient; nothing for one without memory on the CPU."""
    import torch
    from torch._subclasses import FakeTensor

    for one in (tensor, tensor.grad if tensor.is_leaf else None):
        if one is None or isinstance(one, FakeTensor) or one.device.type != "cpu":
            continue
        try:
            storage = torch.Tensor.untyped_storage(one)
            address = storage.data_ptr()
        except RuntimeError:
            # Torch's only word for it: a sparse tensor (NotImplementedError, which is one), or a
            # wrapper around others, has no memory of its own.
            continue
        if address:
            yield storage
