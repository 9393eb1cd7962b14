"""The seed's weights under DeepSpeed: partitioned from the start, unrounded in the masters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from andromeda_scale.models.factory import ModelFactory


def materialise_partitioned(
    factory: ModelFactory,
    module: nn.Module,
    device: torch.device,
    config: dict[str, Any],
    dtype: str,
) -> None:
    """Fill a meta module for stage 3, leaf by leaf, so that no rank ever holds the whole model."""
    from deepspeed import zero

    made: dict[nn.Parameter, nn.Parameter] = {}  # a parameter that modules share stays one
    for prefix, child in module.named_modules():
        parameters = dict(child.named_parameters(recurse=False))
        child.to_empty(device=device, recurse=False)
        for name, parameter in parameters.items():
            if parameter not in made:
                full_name = f"{prefix}.{name}" if prefix else name
                full = factory.full_parameter(full_name, parameter.shape, device)
                made[parameter] = nn.Parameter(full.to(getattr(torch, dtype)))
            child.register_parameter(name, made[parameter])
        if parameters and not list(child.children()):
            zero.Init(module=child, config_dict_or_path=config)
    factory.fill_buffers(module, device)


def restore_masters(factory: ModelFactory, module: nn.Module) -> None:
    """Give the float32 masters the seed's weights: DeepSpeed made them from rounded parameters."""
    from deepspeed.utils import safe_set_full_fp32_param

    for name, parameter in module.named_parameters():
        shape = getattr(parameter, "ds_shape", parameter.shape)
        safe_set_full_fp32_param(parameter, factory.full_parameter(name, shape, parameter.device))
