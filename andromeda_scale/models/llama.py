"""Configuration of the Llama family, which holds the CS336 shapes too. No torch.

The modules lie in `llama_net.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator

from andromeda_scale.cost.model import Shape
from andromeda_scale.models.family import Family
from andromeda_scale.suite.kernels import MIN_FLEX_HEAD_DIM
from andromeda_scale.suite.schema import Layers, Width
from andromeda_scale.suite.training import Train

if TYPE_CHECKING:
    from torch import nn


class LlamaConfig(Family):
    """Decoder-only, pre-norm RMSNorm, SwiGLU, rotary positions, no biases."""

    vocab_size: Width
    d_model: Width
    d_ff: Width
    num_layers: Layers
    num_heads: Width
    num_kv_heads: Width | None = None  # null: num_heads
    head_dim: Width | None = None  # null: d_model / num_heads
    tied_head: bool = False
    rope_theta: Annotated[float, Field(gt=0, le=1e12)] = 1e4
    norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-5

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.head_dim is None and self.d_model % self.num_heads:
            raise ValueError(
                f"num_heads: {self.num_heads} does not divide d_model {self.d_model}; "
                "use a divisor, or give head_dim"
            )
        if self.num_kv_heads is not None and self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads: {self.num_kv_heads} does not divide num_heads {self.num_heads}; "
                "use a divisor, such as 1 or num_heads"
            )
        if self.shape().head_dim % 2:
            raise ValueError(
                f"head_dim: {self.shape().head_dim} is odd, and rotary positions turn pairs of "
                "dimensions; use an even number"
            )
        return self

    def shape(self) -> Shape:
        """What the closed forms need."""
        head_dim = self.head_dim or self.d_model // self.num_heads
        return Shape(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads or self.num_heads,
            head_dim=head_dim,
            d_ff=self.d_ff,
            gated_ffn=True,
            layer_norm=False,
            tied_head=self.tied_head,
            rotary_dim=head_dim,
        )

    def refuses(self, train: Train) -> str | None:
        head_dim = self.shape().head_dim
        if train.attention == "flex" and head_dim < MIN_FLEX_HEAD_DIM:
            return (
                f"train.attention: flex needs heads of {MIN_FLEX_HEAD_DIM} dimensions or more, and "
                f"this model's have {head_dim}; use another kernel, or wider heads"
            )
        return None

    def build(self, train: Train) -> nn.Module:
        """The module on torch's current default device."""
        from andromeda_scale.models.llama_net import Llama

        return Llama(self, train)
