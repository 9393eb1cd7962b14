"""What a forkserver imports before it forks. These imports may import, and nothing else.

A matrix product here would leave OpenMP threads that no forked child has, and hang every rank; a
CUDA call would make the device unusable in all of them.
"""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module
from types import ModuleType

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
    "transformers",  # accelerate's DeepSpeed plugin asks it for its own; models may be its
    "transformers.integrations.deepspeed",
)


# Seconds too, and only for cases of this family: imported before its first rank is forked.
FOR_FAMILY = {
    "huggingface": ("transformers.modeling_utils", "transformers.models.auto.modeling_auto"),
}


def import_all(worker: str) -> dict[str, str]:
    """Import the module of `worker` ("module:function") and MODULES; returns module -> error.

    A worker that needs other modules names them as PRELOAD in its own.
    """
    # DeepSpeed asks at import whether there is a GPU; torch would start the CUDA driver to answer,
    # which a fork does not survive by right, unless it may ask NVML instead.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    failed: dict[str, str] = {}
    program = _import(worker.partition(":")[0], failed)
    for name in getattr(program, "PRELOAD", MODULES):
        _import(name, failed)
    gc.collect()
    gc.freeze()  # a collection in a rank would otherwise copy the pages that all ranks share
    return failed


def import_for(family: str) -> None:
    """Import what ranks with a model of this family need beyond MODULES."""
    missing = [name for name in FOR_FAMILY.get(family, ()) if name not in sys.modules]
    for name in missing:
        _import(name, {})
    if missing:
        gc.collect()
        gc.freeze()


def _import(name: str, failed: dict[str, str]) -> ModuleType | None:
    try:
        return import_module(name)
    except Exception as error:  # a broken optional package may raise anything
        failed[name] = f"{type(error).__name__}: {error}"
        return None
