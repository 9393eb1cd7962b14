"""Shipped models by name, and small ones of both families, for tests."""

from __future__ import annotations

from typing import Any

import torch

from andromeda_scale.cost.model import Shape
from andromeda_scale.models.factory import ModelFactory
from andromeda_scale.registry import model_config
from andromeda_scale.suite import resources, safe_yaml
from andromeda_scale.suite.training import Train

# Tiny products on several threads wait more than they compute.
torch.set_num_threads(1)

# ALiBi on half the heads, a rotary part smaller than a head, groups of 3, an odd vocabulary.
SMALL_ANDROMEDA = {
    "family": "andromeda",
    "vocab_size": 257,
    "d_model": 48,
    "num_layers": 2,
    "num_heads": 6,
    "num_kv_heads": 2,
    "head_dim": 40,
    "alibi_num_heads": 3,
}
SMALL_LLAMA = {
    "family": "llama",
    "vocab_size": 257,
    "d_model": 48,
    "d_ff": 80,
    "num_layers": 2,
    "num_heads": 6,
    "num_kv_heads": 2,
}
SMALL = {"andromeda": SMALL_ANDROMEDA, "llama": SMALL_LLAMA}


def shipped(name: str) -> dict[str, Any]:
    """The mapping in configs/models/<name>.yaml."""
    model: dict[str, Any] = safe_yaml.read(resources.find("models", name))[0]
    return model


def shape_of(model: dict[str, Any]) -> Shape:
    """What the closed forms are given for a model."""
    shape: Shape = model_config(model).shape()
    return shape


def materialised(model: dict[str, Any], seed: int = 0, **train: Any) -> Any:
    """A module on the CPU with the seed's weights."""
    factory = ModelFactory(model, Train(**{"seq_len": 16, **train}), seed)
    module = factory.build()
    factory.materialise(module, "cpu")
    return module
