"""What a rank of a trial may use of its memory, and whether it used more. Torch.

On CUDA: what the allocator reserved, and all else that lies on the device. On a CPU: the resident
set, with a limit on what the process may map, so that a size that is too large ends with a refused
allocation, and not with a machine that swaps.
"""

from __future__ import annotations

import resource
from typing import Any

import psutil
import torch

from andromeda_scale.contracts.planned import RankSpec
from andromeda_scale.hardware.machine import host_memory_bytes, process_bytes
from andromeda_scale.metrics.formats import binary
from andromeda_scale.rank.failures import DoesNotFit
from andromeda_scale.suite.micro_batch import MARGIN

GIB = 2**30
# Mapped and never touched: malloc's arenas, and a stack a thread, which its arena at most doubles.
# The kernel limits what is mapped.
_UNTOUCHED = 256 * 2**20
_STACK = 8 * 2**20  # Linux's default, where none is set


class Room:
    """The memory of this rank from now on."""

    def __init__(self, spec: RankSpec, device: torch.device) -> None:
        asked = spec.case.limits.memory_gib
        self._device = device
        self.capacity = _capacity(device, spec.case.world.ranks_per_node)
        if asked is not None:
            self.capacity = min(self.capacity, round(asked * GIB))
        if device.type == "cuda":
            total = torch.cuda.mem_get_info(device)[1]
            torch.cuda.set_per_process_memory_fraction(min(1.0, self.capacity / total), device)
        else:
            _limit_to(self.capacity)

    def values(self) -> dict[str, Any]:
        """Bytes: what this rank may use, and the most that it has used.

        Raises DoesNotFit where that leaves less than MARGIN free.
        """
        used = _used(self._device)
        if used > (1 - MARGIN) * self.capacity:
            raise DoesNotFit(
                f"used {binary(used)} of {binary(self.capacity)}, and {MARGIN:.0%} shall be free",
                used,
                self.capacity,
            )
        return {"capacity_bytes": self.capacity, "used_bytes": used, "margin": MARGIN}


def _capacity(device: torch.device, ranks_per_node: int) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    here, free = psutil.Process().memory_info().rss, psutil.virtual_memory().available
    most = host_memory_bytes() / ranks_per_node
    return round(min(most, here + free / ranks_per_node))


def _used(device: torch.device) -> int:
    """The most that this process has held at once."""
    if device.type != "cuda":
        return process_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    free, total = torch.cuda.mem_get_info(device)
    outside = total - free - torch.cuda.memory_reserved(device)
    return int(torch.cuda.max_memory_reserved(device) + outside)


def _limit_to(capacity: int) -> None:
    """Let the kernel refuse this process memory beyond what it has and `capacity` allows."""
    mapped, resident = process_bytes("VmData"), process_bytes("VmRSS")
    if mapped is None or resident is None:
        return  # no Linux: the criterion is left
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    stack = _STACK if stack == resource.RLIM_INFINITY else max(_STACK, stack)
    untouched = _UNTOUCHED + 2 * stack * torch.get_num_threads()
    most = mapped + max(0, capacity - resident) + untouched
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
