"""Layers the families share, and the decoder they are stacked into.

Legend: B sequences, T tokens, d width, L blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from andromeda_scale.config import Train
from andromeda_scale.cost.model import Shape

INIT_STD = 0.02


class Linear(nn.Linear):
    """A linear layer that says how its weight is drawn: N(0, init_std^2)."""

    init_std: float = INIT_STD


class QkNorm(nn.Module):
    """Unit-length queries and keys with learned scales per dimension, which the heads share."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.q_scale = nn.Parameter(torch.empty(head_dim))
        self.k_scale = nn.Parameter(torch.empty(head_dim))

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        # In fp32: a length rounded to 8 bits would scale all logits of a row.
        q, k = F.normalize(q.float(), dim=-1), F.normalize(k.float(), dim=-1)
        return q * self.q_scale, k * self.k_scale


class GeluFfn(nn.Module):
    """d -> d_ff -> d with GELU and biases."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.up = Linear(shape.d_model, shape.d_ff)
        self.down = Linear(shape.d_ff, shape.d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class SwiGlu(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate = Linear(shape.d_model, shape.d_ff, bias=False)
        self.up = Linear(shape.d_model, shape.d_ff, bias=False)
        self.down = Linear(shape.d_ff, shape.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


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
        return x + self.ffn(self.ffn_norm(x))


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
        self.embedding = nn.Embedding(shape.vocab_size, shape.d_model)
        self.tables = tables
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.head = (
            None
            if shape.tied_head
            else Linear(shape.d_model, shape.vocab_size, bias=shape.head_bias)
        )
        self.checkpoint_blocks = train.activation_checkpointing == "block"

    def logits(self, tokens: Tensor) -> Tensor:
        """Scores of the next token, (B, T) to (B, T, V)."""
        x = self.embedding(tokens)
        for block in self.blocks:
            if self.checkpoint_blocks and torch.is_grad_enabled():
                # No layer draws random numbers: saving the generators would be for nothing.
                x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x)
        x = self.norm(x)
        return F.linear(x, self.embedding.weight) if self.head is None else self.head(x)

    def forward(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """(summed cross entropy in fp32, number of tokens); tokens, labels are (B, T) int64."""
        logits = self.logits(tokens).flatten(0, 1).float()
        return F.cross_entropy(logits, labels.flatten(), reduction="sum"), labels.numel()

    def describe_attention(self) -> dict[str, Any]:
        """The kernel asked for, and the operators that the first eager call of each block ran.

        `ops` is null before the first forward, and under torch.compile, which replaces them.
        """
        attention = [block.attention for block in self.blocks]
        seen = {layer.ops for layer in attention} - {None}
        ops = sorted({op for ops in seen for op in ops}) if seen else None
        return {"kernel": attention[0].kernel, "ops": ops}
