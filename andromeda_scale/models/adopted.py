"""What modules written elsewhere need to be trained like ours: `huggingface_net`, `custom_net`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from andromeda_scale.models.checkpointing import Recomputation
from andromeda_scale.rank.failures import Invalid
from andromeda_scale.suite.training import Train


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules built inside have parameters without memory and buffers with values, on the CPU.

    A parameter lives for as long as its tensor is being made; one that two modules share stays
    shared. What a constructor reads from a parameter's values is lost, and must not be needed.
    """
    on_meta: Any = WeakTensorKeyDictionary()
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            if parameter not in on_meta:
                on_meta[parameter] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
            parameter = on_meta[parameter]
        register(module, name, parameter)

    # As accelerate's init_empty_weights does: torch has no hook for it. Undone below.
    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign, assignment]
    try:
        with torch.device("cpu"):
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]  # as it was


def in_words(error: Exception) -> str:
    """What code of others raised, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 300 else f'{text[:297]}...'}"


class Adopted(nn.Module):
    """A module of others under ours, which says what its blocks are and checkpoints them."""

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module], train: Train) -> None:
        super().__init__()
        for name, buffer in model.named_buffers():
            if buffer.is_meta:
                raise Invalid(
                    f"model: buffer {name} is computed from a parameter or lies on meta, and would "
                    "have no value; compute it from numbers, or where it is used"
                )
        self.model = model
        # In a tuple, or the blocks would be registered under a second name.
        self._blocks = (list(blocks),)
        self._recomputation = Recomputation(train, blocks)
        self._recomputation.replace_calls(blocks)

    @property
    def blocks(self) -> list[nn.Module]:
        """The decoder blocks, in order; empty where the whole model is one unit."""
        return self._blocks[0]

    def describe_checkpointing(self) -> dict[str, Any]:
        """The kind of checkpointing, and how many blocks backward has run again."""
        return self._recomputation.describe(self.blocks)
