"""What a forkserver imports before it forks. These imports may import, and nothing else.

A matrix product here would leave OpenMP threads that no forked child has, and hang every rank; a
CUDA call would make the device unusable in all of them.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Sequence
from importlib import import_module
from types import ModuleType

from andromeda_scale import registry
from andromeda_scale.registry import MODELS, STRATEGIES
from andromeda_scale.suite.config import Case

# What every rank needs; strategies, drivers and model families name theirs as `preload`.
MODULES = (
    "torch",
    "torch.distributed",
    "torch.distributed.fsdp",
    "torch.nn.parallel",
    "torch.profiler",
    "torch._dynamo",
)


def modules_of(cases: Iterable[Case]) -> tuple[str, ...]:
    """What ranks of any of these cases need beyond MODULES.

    All ranks of a sweep fork from the same imports, whichever case they run: what is imported is
    resident in each, and would otherwise differ from case to case.
    """
    needed: list[str] = []
    for case in cases:
        if case.strategy.name not in STRATEGIES:
            continue  # a probe trains nothing
        strategy = registry.load("strategy", case.strategy.name)
        needed += strategy.preload
        if case.driver != "native":
            needed += registry.load("driver", case.driver).preload_for(strategy)
        family = case.model.get("family")
        needed += registry.load("model family", family).preload if family in MODELS else ()
    return tuple(dict.fromkeys(needed))


def import_all(worker: str, modules: Sequence[str] = ()) -> dict[str, str]:
    """Import the module of `worker` ("module:function"), MODULES and `modules`; module -> error.

    Each is imported where it is installed; without one, the cases that need it say `unavailable`.
    A worker that needs other modules names them as PRELOAD in its own, and gets no others.
    """
    # DeepSpeed asks at import whether there is a GPU; torch would start the CUDA driver to answer,
    # which a fork does not survive by right, unless it may ask NVML instead.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    failed: dict[str, str] = {}
    program = _import(worker.partition(":")[0], failed)
    for name in getattr(program, "PRELOAD", (*MODULES, *modules)):
        _import(name, failed)
    gc.collect()
    gc.freeze()  # a collection in a rank would otherwise copy the pages that all ranks share
    return failed


def _import(name: str, failed: dict[str, str]) -> ModuleType | None:
    try:
        return import_module(name)
    except Exception as error:  # a broken optional package may raise anything
        failed[name] = f"{type(error).__name__}: {error}"
        return None
