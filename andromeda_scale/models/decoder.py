"""What every family is: embedding, blocks, final norm, head, next-token loss.

Legend: B sequences, T tokens, d width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from andromeda_scale.cost.model import Shape
from andromeda_scale.models.attention import Attention
from andromeda_scale.models.layers import Linear
from andromeda_scale.training import Train


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
        if self.head is None:
            return F.linear(x, self.embedding.weight)
        scores: Tensor = self.head(x)
        return scores

    def forward(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """(summed cross entropy in fp32, number of tokens); tokens, labels are (B, T) int64."""
        logits = self.logits(tokens).flatten(0, 1).float()
        return F.cross_entropy(logits, labels.flatten(), reduction="sum"), labels.numel()

    def describe_attention(self) -> dict[str, Any]:
        """The kernel asked for, and the operators that the first eager call of each block ran.

        `ops` is null before the first forward, and under torch.compile, which replaces them.
        """
        layers = [layer for layer in self.modules() if isinstance(layer, Attention)]
        seen = [layer.ops for layer in layers if layer.ops is not None]
        ops = sorted({op for ops in seen for op in ops}) if seen else None
        return {"kernel": layers[0].kernel, "ops": ops}
