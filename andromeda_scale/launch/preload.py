"""What a forkserver imports before it forks. These imports may import, and nothing else.

A matrix product here would leave OpenMP threads that no forked child has, and hang every rank; a
CUDA call would make the device unusable in all of them.
"""

from __future__ import annotations

import gc
from importlib import import_module

# Each is imported where it is installed; without one, the cases that need it say `unavailable`.
MODULES = (
    "torch",
    "torch.distributed",
    "torch.distributed.fsdp",
    "torch.nn.parallel",
    "torch.profiler",
    "torch._dynamo",
    "deepspeed",
    "deepspeed.runtime.zero.stage3",  # these two are imported by every rank that builds an engine
    "deepspeed.runtime.zero.muon.muon_optimizer",  # seconds: it compiles at import
    "accelerate",
)


def import_all(worker: str) -> dict[str, str]:
    """Import MODULES and the worker's module; returns module -> error of those that failed."""
    failed = {}
    for module in (*MODULES, worker.partition(":")[0]):
        try:
            import_module(module)
        except Exception as error:  # a broken optional package may raise anything
            failed[module] = f"{type(error).__name__}: {error}"
    gc.collect()
    gc.freeze()  # a collection in a rank would otherwise copy the pages that all ranks share
    return failed
