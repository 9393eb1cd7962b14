"""Name -> "module:Class". Adding a strategy, a collector or a model family is one line here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from andromeda_scale.errors import UserError

# Importing one of these modules never imports torch: `plan` and `list` run on a login node.
STRATEGIES = {
    "single": "andromeda_scale.strategies.single:Single",
    "ddp": "andromeda_scale.strategies.ddp:Ddp",
    "fsdp2": "andromeda_scale.strategies.fsdp2:Fsdp2",
    "hsdp": "andromeda_scale.strategies.hsdp:Hsdp",
    "fsdp1": "andromeda_scale.strategies.fsdp1:Fsdp1",
    "zero1": "andromeda_scale.strategies.zero:Zero1",
    "zero2": "andromeda_scale.strategies.zero:Zero2",
    "zero3": "andromeda_scale.strategies.zero3:Zero3",
}

# Who wraps a strategy; `native` is nobody.
DRIVERS = {
    "accelerate": "andromeda_scale.strategies.accelerated:Accelerated",
}

COLLECTORS = {
    "ablation": "andromeda_scale.collectors.ablation:Ablation",
    "communication": "andromeda_scale.collectors.communication:Communication",
    "energy": "andromeda_scale.collectors.energy:Energy",
    "memory": "andromeda_scale.collectors.memory:Memory",
    "snapshot": "andromeda_scale.collectors.snapshot:AllocatorSnapshot",
    "system": "andromeda_scale.collectors.system:System",
}

# A model family's torch-free configuration; its modules lie in the file beside it.
MODELS = {
    "andromeda": "andromeda_scale.models.andromeda:AndromedaConfig",
    "llama": "andromeda_scale.models.llama:LlamaConfig",
    "huggingface": "andromeda_scale.models.huggingface:HuggingFaceConfig",
    "custom": "andromeda_scale.models.custom:CustomConfig",
}

KINDS = {
    "strategy": STRATEGIES,
    "driver": DRIVERS,
    "collector": COLLECTORS,
    "model family": MODELS,
}


_CALLABLE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_callable_name(text: str) -> bool:
    """Whether `text` has the form package.module:callable."""
    return _CALLABLE.fullmatch(text) is not None


def load(kind: str, name: str) -> Any:
    """The class registered as `name` under `kind` (a key of KINDS).

    Raises UserError with the known names when there is none.
    """
    known = KINDS[kind]
    if name not in known:
        raise UserError(f"unknown {kind} {name!r}; known: {', '.join(sorted(known))}")
    module, _, attribute = known[name].partition(":")
    return getattr(import_module(module), attribute)


def model_config(model: Mapping[str, Any]) -> Any:
    """A case's model, {"family": ..., options}, as its family's torch-free configuration.

    Raises UserError for an unknown family, ValueError for options that it does not take.
    """
    options = {key: value for key, value in model.items() if key != "family"}
    return load("model family", str(model.get("family")))(**options)
