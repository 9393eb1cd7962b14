"""Activation checkpointing: which blocks backward runs again, and which it really did.

Whole blocks are recomputed from outside: a compiled block then runs its compiled forward once
more. What selective checkpointing keeps lies within a block, where a compiler must see it: there
the checkpoint is a part of the block's forward and is compiled with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from andromeda_scale.suite.training import Train, recomputed

_aten = torch.ops.aten
# Products with weights, and what attention's fused kernels give. Not bmm: naive's scores, as many
# as T for each output, are what checkpointing is meant to avoid.
_KEPT = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.higher_order.flex_attention,
    }
)

# No layer of ours draws random numbers: saving the generators would be for nothing.
_again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


class Recomputation:
    """Runs the blocks of a model under one kind of checkpointing.

    A block that backward has run again is marked `ran_again`.
    """

    def __init__(self, train: Train, blocks: Sequence[nn.Module]) -> None:
        self._kind = train.activation_checkpointing
        self._compiled = bool(train.compile)
        self._groups: list[range] = []
        if self._kind == "selective":
            for block in blocks:
                block.forward = MethodType(_selective_forward, block)
        else:
            self._groups = recomputed(self._kind, len(blocks))

    def __call__(self, blocks: Sequence[nn.Module], x: Tensor) -> Tensor:
        """All blocks, one after the other."""
        groups = {group.start: group for group in self._groups if torch.is_grad_enabled()}
        index = 0
        while index < len(blocks):
            if group := groups.get(index):
                x = _again(_run, [blocks[i] for i in group], x)
            else:
                x = blocks[index](x)
            index = group.stop if group else index + 1
        return x

    def replace_calls(self, blocks: Sequence[nn.Module]) -> None:
        """For a model of others, which calls its blocks itself and one by one: a call checkpoints.

        Such blocks may draw random numbers, which backward must draw again.
        """
        for block in blocks:
            block.draws_numbers = True  # type: ignore[assignment]  # no parameter
        for group in self._groups:
            assert len(group) == 1, "blocks that are called one by one have no segments"
            block = blocks[group.start]
            # Where torch's own Module.compile puts its call: around hooks and forward.
            block._compiled_call_impl = MethodType(_checkpointed_call, block)

    def describe(self, blocks: Sequence[nn.Module]) -> dict[str, Any]:
        """The kind asked for, and how many blocks backward has run again.

        Null for selective compiled blocks: what backward recomputes is then a part of its graph.
        """
        count = sum(getattr(block, "ran_again", False) for block in blocks)
        unseen = self._kind == "selective" and self._compiled and not count
        kind = self._kind if isinstance(self._kind, str) else self._kind.model_dump()
        return {"kind": kind, "blocks_recomputed": None if unseen else count}


def _run(blocks: Sequence[nn.Module], x: Tensor) -> Tensor:
    for block in blocks:
        _note(block)
        x = block(x)
    return x


def _note(block: nn.Module) -> None:
    if torch._C._current_graph_task_id() != -1:  # within a backward
        block.ran_again = True  # type: ignore[assignment]  # no parameter


def _checkpointed_call(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return block._call_impl(*args, **kwargs)
    return _again(_noted_call, block, *args, **kwargs, preserve_rng_state=True)


def _noted_call(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    _note(block)
    return block._call_impl(*args, **kwargs)


def _selective_forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The forward of a block's class, most of which backward runs again."""
    if not torch.is_grad_enabled():
        return type(block).forward(block, *args, **kwargs)
    return _again(
        _noted_forward,
        block,
        *args,
        context_fn=_selective_contexts,
        preserve_rng_state=getattr(block, "draws_numbers", False),
        **kwargs,
    )


def _noted_forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    if not torch.compiler.is_compiling():
        _note(block)
    return type(block).forward(block, *args, **kwargs)


def _selective_contexts() -> tuple[Any, Any]:
    contexts: tuple[Any, Any] = create_selective_checkpoint_contexts(_keep_products)
    return contexts


def _keep_products(
    context: SelectiveCheckpointContext, op: Any, *args: Any, **kwargs: Any
) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
