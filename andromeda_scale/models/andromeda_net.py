"""The modules of Andromeda. Its configuration lies in `andromeda.py`."""

from __future__ import annotations

import math

from torch import Tensor, nn

from andromeda_scale.models.andromeda import AndromedaConfig
from andromeda_scale.models.attention import Attention
from andromeda_scale.models.decoder import Decoder, PreNormBlock
from andromeda_scale.models.layers import INIT_STD, GeluFfn, Linear
from andromeda_scale.models.positions import ROTARY_THETA, PositionTables
from andromeda_scale.suite.training import Train


class DeepNormBlock(nn.Module):
    """norm(alpha x + attention(x)), then norm(alpha x + ffn(x)) (arXiv:2203.00555)."""

    def __init__(self, attention: Attention, ffn: GeluFfn, d_model: int, num_layers: int) -> None:
        super().__init__()
        self.alpha = (2 * num_layers) ** 0.25
        self.attention = attention
        self.attention_norm = nn.LayerNorm(d_model)
        self.ffn = ffn
        self.ffn_norm = nn.LayerNorm(d_model)
        beta = (8 * num_layers) ** -0.25
        for layer in (attention.v_proj, attention.out_proj, ffn.up, ffn.down):
            layer.init_std = _xavier_std(layer, beta)
        for layer in (attention.q_proj, attention.k_proj):
            layer.init_std = _xavier_std(layer, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention_norm(self.alpha * x + self.attention(x))
        x = self.ffn_norm(self.alpha * x + self.ffn(x))
        return x


def _xavier_std(layer: Linear, gain: float) -> float:
    return gain * math.sqrt(2 / (layer.in_features + layer.out_features))


class Andromeda(Decoder):
    """Grouped queries, QK-norm, partial xPos, ALiBi on the first heads, GELU, LayerNorm."""

    def __init__(self, config: AndromedaConfig, train: Train) -> None:
        shape = config.shape()
        kernel = train.attention or shape.attention
        tables = PositionTables(shape, train, kernel, ROTARY_THETA, xpos=True)

        def block() -> nn.Module:
            attention, ffn = Attention(shape, kernel, tables), GeluFfn(shape)
            if config.deepnorm:
                return DeepNormBlock(attention, ffn, shape.d_model, shape.num_layers)
            for layer in (attention.out_proj, ffn.down):
                layer.init_std = INIT_STD / math.sqrt(2 * shape.num_layers)
            return PreNormBlock(attention, ffn, lambda: nn.LayerNorm(shape.d_model))

        blocks = [block() for _ in range(shape.num_layers)]
        norm = nn.LayerNorm(shape.d_model) if shape.final_norm else nn.Identity()
        super().__init__(shape, train, tables, blocks, norm)
