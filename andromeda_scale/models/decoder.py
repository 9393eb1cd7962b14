"""What every family is: embedding, blocks, final norm, head, next-token loss.

Legend: B sequences, T tokens, d width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from andromeda_scale.cost.model import Shape
from andromeda_scale.models.attention import Attention
from andromeda_scale.models.checkpointing import Recomputation
from andromeda_scale.models.layers import Embedding
from andromeda_scale.models.loss import Head, NextTokenLoss
from andromeda_scale.suite.training import Train, loss_chunks


class PreNormBlock(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x))."""

    def __init__(self, attention: nn.Module, ffn: nn.Module, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.attention_norm = norm()
        self.attention = attention
        self.ffn_norm = norm()
        self.ffn = ffn

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        x = x + self.ffn(self.ffn_norm(x))
        return x


class Unit(nn.Module):
    """Several blocks as one module."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Decoder(nn.Module):
    """Embedding, blocks, final norm, head, next-token loss."""

    def __init__(
        self,
        shape: Shape,
        train: Train,
        tables: nn.Module,
        blocks: list[nn.Module],
        norm: nn.Module,
    ) -> None:
        super().__init__()
        self.embedding = Embedding(shape.vocab_size, shape.d_model)
        self.tables = tables
        self.blocks = nn.ModuleList(blocks)
        self.units: nn.ModuleList | None = None
        self.norm = norm
        by_itself = train.compiling is not None and not train.compiling.whole
        self.loss = NextTokenLoss(loss_chunks(train, shape.vocab_size), compiled=by_itself)
        self.head = None if shape.tied_head else Head(shape, self.loss)
        self._recomputation = Recomputation(train, blocks)

    @property
    def ends(self) -> list[list[nn.Module]]:
        """What is before the blocks and what is after them, where no parameter is in both."""
        return [] if self.head is None else [[self.embedding], [self.norm, self.head]]

    def call_in_units(self, together: int) -> None:
        """From now on forward calls `units`, modules of so many blocks, for what hooks modules.

        The names of parameters stay those within `blocks`, and no block is to run again from
        outside.
        """
        blocks = list(self.blocks)
        starts = range(0, len(blocks), together)
        self.units = nn.ModuleList(Unit(blocks[first : first + together]) for first in starts)

    def forward(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """(summed cross entropy in fp32, number of tokens); tokens, labels are (B, T) int64."""
        x = self._final(tokens)
        if self.head is None:
            loss = self.loss(x, self.embedding.weight, None, labels)
        else:
            loss = self.head(x, labels)
        return loss, labels.numel()

    def logits(self, tokens: Tensor) -> Tensor:
        """Scores of the next token, (B, T) to (B, T, V); training computes them with their loss."""
        head = self.embedding if self.head is None else self.head
        return F.linear(self._final(tokens), head.weight, getattr(head, "bias", None))

    def _final(self, tokens: Tensor) -> Tensor:
        """What the head projects, (B, T) to (B, T, d)."""
        called = self.blocks if self.units is None else self.units
        # A ModuleList has no type of its items.
        x: Tensor = self.norm(self._recomputation(called, self.embedding(tokens)))  # type: ignore[arg-type]
        return x

    def describe_attention(self) -> dict[str, Any]:
        """The kernel that the blocks call; which operators it turns into is read from a profile."""
        kernels = {layer.kernel for layer in self.modules() if isinstance(layer, Attention)}
        return {"kernel": "+".join(sorted(kernels))}

    def describe_loss(self) -> dict[str, Any]:
        """How many parts the last loss took."""
        return self.loss.describe()

    def describe_checkpointing(self) -> dict[str, Any]:
        """The kind of checkpointing, and how many blocks backward has run again."""
        # No type of its items.
        return self._recomputation.describe(self.blocks)  # type: ignore[arg-type]
