"""Configuration of the Andromeda family. No torch; the modules lie in `andromeda_net.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator

from andromeda_scale.cost.model import Shape
from andromeda_scale.models.family import Family
from andromeda_scale.models.xpos import distance
from andromeda_scale.suite.precision import POLICIES
from andromeda_scale.suite.schema import Layers, Width
from andromeda_scale.suite.training import Train

if TYPE_CHECKING:
    from torch import nn

MIN_ROTARY_DIM = 32


class AndromedaConfig(Family):
    """Decoder-only, grouped queries, QK-norm, partial xPos, ALiBi on the first heads, GELU.

    `deepnorm`: post-norm with scaled residuals (DeepNet, arXiv:2203.00555) instead of pre-norm.
    """

    vocab_size: Width
    d_model: Width
    num_layers: Layers
    num_heads: Width
    num_kv_heads: Width
    head_dim: Width = 128
    alibi_num_heads: Annotated[int, Field(ge=0, le=2**31)]
    deepnorm: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads: {self.num_kv_heads} does not divide num_heads {self.num_heads}; "
                "use a divisor, such as 1 or num_heads"
            )
        if self.head_dim < MIN_ROTARY_DIM or self.head_dim % 4:
            raise ValueError(
                f"head_dim: {self.head_dim} cannot hold its rotary part, max(head_dim / 2, "
                f"{MIN_ROTARY_DIM}) dimensions in pairs; use a multiple of 4 from {MIN_ROTARY_DIM}"
            )
        if self.alibi_num_heads > self.num_heads:
            raise ValueError(
                f"alibi_num_heads: {self.alibi_num_heads} is more than num_heads "
                f"{self.num_heads}; use at most that"
            )
        return self

    def shape(self) -> Shape:
        """What the closed forms need."""
        return Shape(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            d_ff=4 * self.d_model,
            gated_ffn=False,
            layer_norm=True,
            qk_norm=True,
            final_norm=not self.deepnorm,
            head_bias=True,
            rotary_dim=max(self.head_dim // 2, MIN_ROTARY_DIM),
            alibi_num_heads=self.alibi_num_heads,
            attention="sdpa_bias" if self.alibi_num_heads else "sdpa_causal",
        )

    def refuses(self, train: Train) -> str | None:
        """A length at which xPos leaves the numbers' range: losses would be NaN.

        Keys grow over half of T. Above the diagonal, which is masked by adding -inf where the
        kernel has a bias, queries grow as well: over all of T.
        """
        kernel, precision = train.attention or self.shape().attention, train.precision
        longest = keys = 2 * distance(_largest(precision))
        if kernel in ("naive", "sdpa_bias") or (kernel == "sdpa_causal" and self.alibi_num_heads):
            # Fused kernels hold scores in float32.
            longest = min(keys, distance(_largest(precision if kernel == "naive" else "fp32")))
        if train.seq_len <= longest:
            return None
        other = "attention flex, " if train.seq_len <= keys else ""
        return (
            f"train.seq_len: {train.seq_len} is beyond what xPos can express with attention "
            f"{kernel} in {precision}: its factors overflow; use at most {int(longest)}, {other}"
            "or a model without xPos, such as llama-3.2-1b"
        )

    def build(self, train: Train) -> nn.Module:
        """The module on torch's current default device."""
        from andromeda_scale.models.andromeda_net import Andromeda

        return Andromeda(self, train)


def _largest(precision: str) -> float:
    """What a factor may grow to: of unit length, keys and 10 times the scores stay finite."""
    return (65504.0 if POLICIES[precision].compute == "float16" else 3.4e38) / 16
