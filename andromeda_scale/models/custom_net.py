"""A user's own module under ours. Its configuration lies in `custom.py`."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from andromeda_scale.models.adopted import Adopted, in_words, parameters_on_meta
from andromeda_scale.models.custom import CustomConfig
from andromeda_scale.rank.failures import Invalid
from andromeda_scale.suite.training import Train

_CONTRACT = "return (the summed loss in float32, labels.numel())"


class Custom(Adopted):
    """What the callable returned, held to its contract in every forward, by types alone."""

    def __init__(self, config: CustomConfig, train: Train) -> None:
        model = _build(config)
        super().__init__(model, _blocks(config, model), train)
        self._name = config.callable

    def forward(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """(summed loss in fp32, number of tokens); tokens, labels are (B, T) int64."""
        found = self.model(tokens, labels)
        if problem := _problem(found, labels):
            what = f"forward of {self._name} returned {problem}"
            raise Invalid(f"model.callable: {what}; {_CONTRACT}")
        return found[0], found[1]


def _problem(found: Any, labels: Tensor) -> str | None:
    """What is not as the contract says, in words; nothing here waits for the device."""
    if not isinstance(found, tuple | list) or len(found) != 2:
        return f"{_kind(found)}, not a pair"
    loss, count = found
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        return f"{_kind(loss)} as its loss, not a scalar tensor"
    if loss.dtype != torch.float32:
        return f"a loss in {str(loss.dtype).removeprefix('torch.')}, which loses digits of a sum"
    if torch.is_grad_enabled() and not loss.requires_grad:
        return "a loss without a gradient"
    if not isinstance(count, int) or isinstance(count, bool):
        return f"{_kind(count)} as its number of tokens, not an integer"
    if count != labels.numel():
        return f"{count} as its number of tokens for labels of {labels.numel()}"
    return None


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _build(config: CustomConfig) -> nn.Module:
    """Import, call, look at what came; raises Invalid in words."""
    module, _, attribute = config.callable.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        make = attrgetter(attribute)(import_module(module))
    except Exception as error:  # the user's code may raise anything
        raise _invalid(config, "cannot be imported", error) from error
    try:
        with parameters_on_meta():
            model = make(**config.kwargs)
    except Exception as error:  # so may it here
        shown = ", ".join(f"{key}={value!r}" for key, value in config.kwargs.items())
        raise _invalid(config, f"failed when called with ({shown})", error) from error
    if not isinstance(model, nn.Module):
        raise Invalid(
            f"model.callable: {config.callable} returned {_kind(model)}; return a torch.nn.Module"
        )
    if next(model.parameters(), None) is None:
        raise Invalid(f"model.callable: {config.callable} returned a module without parameters")
    return model.train()


def _blocks(config: CustomConfig, model: nn.Module) -> list[nn.Module]:
    if config.blocks is None:
        return []
    try:
        found = list(attrgetter(config.blocks)(model))
    except (AttributeError, TypeError) as error:
        raise _invalid(config, f"has no list of modules at {config.blocks}", error) from error
    if not found or not all(isinstance(block, nn.Module) for block in found):
        raise Invalid(f"model.blocks: {config.blocks} of {config.callable} lists no modules")
    if len({id(block) for block in found}) < len(found):
        raise Invalid(
            f"model.blocks: {config.blocks} of {config.callable} lists a module twice; list each "
            "once, or leave model.blocks out"
        )
    return found


def _invalid(config: CustomConfig, what: str, error: Exception) -> Invalid:
    return Invalid(f"model.callable: {config.callable} {what}: {in_words(error)}")
