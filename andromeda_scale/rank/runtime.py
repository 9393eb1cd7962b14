"""Device, process group, threads, seeds of one rank."""

from __future__ import annotations

import gc
import os
import pickle
import random
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from andromeda_scale.rank.failures import UnavailableHere
from andromeda_scale.suite.precision import POLICIES

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

    from andromeda_scale.contracts.planned import RankSpec
    from andromeda_scale.suite.world import World

# Left behind by launchers and by accelerate; they would silently configure another strategy.
_SCRUBBED = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_")


@dataclass(frozen=True)
class Runtime:
    """Where one rank runs. The world is all data-parallel ranks of the case."""

    device: torch.device
    backend: str  # gloo or nccl
    rank: int
    local_rank: int
    world_size: int
    world: World  # the same ranks, by node
    threads: int  # intra-op CPU threads of this rank


@dataclass(frozen=True)
class Control:
    """Exchanges between the ranks outside timed windows, on a gloo group of their own.

    A group apart keeps them off the accelerator and out of the strategies' own collectives.
    """

    group: ProcessGroup | None  # None: a world of one rank
    rank: int
    world_size: int

    def gather(self, value: Any) -> list[Any]:
        """One picklable value of every rank, in rank order, on every rank."""
        import torch.distributed as dist

        if self.group is None:
            return [pickle.loads(pickle.dumps(value))]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def from_rank_0(self, value: Any) -> Any:
        """Rank 0's value on every rank: whatever data decides, one rank decides."""
        import torch.distributed as dist

        if self.group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def barrier(self) -> None:
        """Wait for every rank."""
        import torch.distributed as dist

        if self.group is not None:
            dist.barrier(group=self.group)


def set_environment(spec: RankSpec) -> None:
    """The environment of this rank: the case's variables, and what libraries read from it.

    DeepSpeed and NCCL read theirs when they are imported or when the group is made, so this
    comes first.
    """
    for name in [n for n in os.environ if n.startswith(_SCRUBBED)]:
        del os.environ[name]
    os.environ.update(
        RANK=str(spec.rank),
        LOCAL_RANK=str(spec.local_rank),
        WORLD_SIZE=str(spec.world_size),
        LOCAL_WORLD_SIZE=str(spec.case.world.ranks_per_node),
        MASTER_ADDR=spec.store_host,
        MASTER_PORT=str(spec.store_port),
        DS_ACCELERATOR=spec.item.device,
    )
    if spec.compile_cache is not None:  # not the user's, in which earlier runs left theirs
        os.environ.update(
            TORCHINDUCTOR_CACHE_DIR=spec.compile_cache,
            TRITON_CACHE_DIR=os.path.join(spec.compile_cache, "triton"),
        )
    os.environ.update(spec.case.env)


def start(spec: RankSpec) -> Runtime:
    """Set environment, threads, seeds and device of this rank. Makes no process group."""
    set_environment(spec)
    import numpy as np
    import torch

    torch.set_num_threads(spec.item.threads_per_rank)
    torch.set_float32_matmul_precision(POLICIES[spec.case.train.precision].matmul)
    random.seed(spec.case.seed)
    np.random.seed(spec.case.seed % 2**32)  # noqa: NPY002  libraries read the global generator
    torch.manual_seed(spec.case.seed)
    if spec.item.device == "cuda":
        device = torch.device("cuda", spec.local_rank)
        torch.cuda.set_device(device)
        if spec.case.train.precision == "tf32" and torch.cuda.get_device_capability(device) < (
            8,
            0,
        ):
            raise UnavailableHere(
                f"train.precision: {torch.cuda.get_device_name(device)} has no TF32; use fp32"
            )
    else:
        device = torch.device("cpu")
    _order_attention(spec.case.train.attention_backend, device)
    return Runtime(
        device=device,
        backend="nccl" if device.type == "cuda" else "gloo",
        rank=spec.rank,
        local_rank=spec.local_rank,
        world_size=spec.world_size,
        world=spec.case.world,
        threads=torch.get_num_threads(),
    )


_HELD = ExitStack()  # what is set for as long as this process lives


def _order_attention(backend: str, device: torch.device) -> None:
    """The backends that torch's fused attention may take, the first that can being taken."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    flash, cudnn = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
    efficient, math = SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH
    named = {"flash": flash, "cudnn": cudnn, "efficient": efficient, "math": math}
    _HELD.close()
    if backend != "auto":
        _HELD.enter_context(sdpa_kernel([named[backend]]))
    elif device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0):
        order = [cudnn, flash, efficient, math]
        _HELD.enter_context(sdpa_kernel(order, set_priority=True))


def identity(spec: RankSpec, rt: Runtime) -> dict[str, Any]:
    """The fields of a rank's start line."""
    import torch

    cuda = rt.device.type == "cuda"
    return {
        "host": socket.gethostname(),
        "local_rank": spec.local_rank,
        "node_rank": spec.node_rank,
        "world_size": spec.world_size,
        "device": torch.cuda.get_device_name(rt.device) if cuda else rt.device.type,
        "device_uuid": _device_uuid(rt.device),
        "threads": rt.threads,
        "pid": os.getpid(),
        "unix_time_s": time.time(),
    }


def _device_uuid(device: torch.device) -> str | None:
    """The GPU by the name the driver's counters have for it; None for a CPU."""
    import torch

    if device.type != "cuda":
        return None
    found = str(torch.cuda.get_device_properties(device).uuid)
    return found if found.startswith(("GPU-", "MIG-")) else f"GPU-{found}"


def init_process_group(spec: RankSpec, rt: Runtime) -> Control:
    """Join the repeat's process group under its prefix of the agents' store."""
    import torch.distributed as dist
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # no stubs

    timeout = timedelta(seconds=spec.case.limits.timeout_s)
    client = TCPStore(spec.store_host, spec.store_port, is_master=False, timeout=timeout)
    store = PrefixStore(f"{spec.store_prefix}/group", client)
    dist.init_process_group(
        rt.backend,
        store=store,
        rank=rt.rank,
        world_size=rt.world_size,
        timeout=timeout,
        device_id=rt.device if rt.device.type == "cuda" else None,
    )
    group = dist.new_group(backend="gloo", timeout=timeout) if rt.world_size > 1 else None
    return Control(group=group, rank=rt.rank, world_size=rt.world_size)


@contextmanager
def uncollected() -> Iterator[None]:
    """Python collects garbage afterwards, not within, where a pass would fall into a timed step."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
    gc.collect()


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
