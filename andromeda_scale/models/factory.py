"""Builds a model on the meta device and fills it with weights that no sharding changes."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from andromeda_scale import registry
from andromeda_scale.models.family import Family
from andromeda_scale.models.layers import INIT_STD
from andromeda_scale.rank.failures import UnavailableHere
from andromeda_scale.suite.training import Train


class ModelFactory:
    """One model of one configuration and seed.

    A parameter's value depends on (seed, its name) alone: on no rank, no order, no sharding. On
    another kind of device the same seed gives other values, as its generator differs.
    """

    def __init__(self, model: dict[str, Any], train: Train, seed: int) -> None:
        self.config = registry.model_config(model)
        _require(self.config, model["family"], train)
        self.train = train
        self.seed = seed
        module = self.build()
        self.num_parameters = sum(parameter.numel() for parameter in module.parameters())
        self._std = _init_std(module)
        self._buffers = {name: b for name, b in module.named_buffers() if not b.is_meta}

    def build(self) -> nn.Module:
        """The module on the meta device: shapes without memory."""
        with torch.device("meta"):
            module: nn.Module = self.config.build(self.train)
        return module

    def full_parameter(
        self, name: str, shape: torch.Size | tuple[int, ...], device: torch.device | str
    ) -> Tensor:
        """The whole fp32 value of the parameter called `name` in the bare model."""
        if isinstance(std := self._std[name], str):
            return torch.full(shape, {"ones": 1.0, "zeros": 0.0}[std], device=device)
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return torch.empty(shape, device=device).normal_(0.0, std, generator=generator)

    def fill_buffers(self, module: nn.Module, device: torch.device | str) -> None:
        """Give buffers that do not compute themselves the values and dtypes they were built with.

        to_empty() leaves garbage in them, and rotary frequencies cast to bf16 would be other ones.
        """
        for name, value in self._buffers.items():
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner)._buffers[leaf] = value.to(device, copy=True)

    @torch.no_grad()
    def materialise(
        self,
        module: nn.Module,
        device: torch.device | str,
        *,
        parameters_on: torch.device | str | None = None,
    ) -> None:
        """Allocate `module` (as `build` gave it, or then sharded by FSDP2) and fill it.

        One full parameter at a time exists beside the module, on `device`, whose generator draws
        it; it is kept on `parameters_on` (None: there too). Nothing is communicated.
        """
        tied = _tied(module)
        # The position tables compute themselves again, where they are used.
        module.to_empty(device=parameters_on or device)
        for child in module.modules() if parameters_on is not None else ():
            if list(child.buffers(recurse=False)) and not list(child.parameters(recurse=False)):
                child.to_empty(device=device, recurse=False)
        for name, first in tied.items():  # to_empty makes two parameters of a shared one
            set_in(module, name, module.get_parameter(first))
        self.fill_buffers(module, device)
        for name, parameter in module.named_parameters():
            full = self.full_parameter(name, parameter.shape, device)
            if isinstance(parameter, DTensor):
                parameter.to_local().copy_(_local_shard(full, parameter))
            else:
                parameter.copy_(full)


def _require(config: Family, family: str, train: Train) -> None:
    """Raise UnavailableHere where a package is missing, or the model cannot do such a step."""
    if missing := config.missing():
        raise UnavailableHere(f"model family {family} {missing}")
    if (reason := config.refuses(train)) is not None:
        raise UnavailableHere(reason)


def set_in(module: nn.Module, name: str, value: nn.Parameter) -> None:
    """Make `value` the parameter of that dotted name."""
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, value)


def _tied(module: nn.Module) -> dict[str, str]:
    """Name of a parameter -> the first name of the same one."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            tied[name] = first[id(parameter)]
    return tied


def _local_shard(full: Tensor, parameter: DTensor) -> Tensor:
    """This rank's part of `full` under the parameter's placements."""
    mesh = parameter.device_mesh
    coordinate = mesh.get_coordinate()
    assert coordinate is not None, "this rank is not in the parameter's mesh"
    for axis, placement in enumerate(parameter.placements):
        if isinstance(placement, Shard):
            chunks = full.chunk(mesh.size(axis), dim=placement.dim)
            # chunk() gives fewer chunks than ranks when rows run out: the last ranks hold none.
            index = coordinate[axis]
            full = chunks[index] if index < len(chunks) else full.narrow(placement.dim, 0, 0)
    return full


def _init_std(model: nn.Module) -> dict[str, float | str]:
    """How each parameter starts: a standard deviation, "ones" or "zeros".

    A rule by form, close to what transformers and torch's own layers start from, and the same for
    modules nobody here knows: biases are zeros, other vectors (the scales of norms) ones, and what
    has more dimensions is N(0, s^2), with s the module's `init_std` or 0.02.
    """
    std: dict[str, float | str] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            leaf = name.rpartition(".")[2]
            if leaf.startswith("bias") or leaf.endswith("bias"):
                std[name] = "zeros"
            else:
                std[name] = getattr(module, "init_std", INIT_STD) if parameter.dim() > 1 else "ones"
    return std
