"""Device, process group, threads, seeds of one rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Runtime:
    """Where one rank runs. The world is all data-parallel ranks of the case."""

    device: torch.device
    backend: str  # gloo or nccl
    rank: int
    local_rank: int
    node_rank: int
    world_size: int
    threads: int  # intra-op CPU threads of this rank
    seed: int
