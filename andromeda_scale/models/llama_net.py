"""The modules of the Llama family. Its configuration lies in `llama.py`."""

from __future__ import annotations

import math

from torch import nn

from andromeda_scale.models.attention import Attention
from andromeda_scale.models.decoder import Decoder, PreNormBlock
from andromeda_scale.models.layers import INIT_STD, SwiGlu
from andromeda_scale.models.llama import LlamaConfig
from andromeda_scale.models.positions import PositionTables
from andromeda_scale.suite.training import Train


class Llama(Decoder):
    """Pre-norm RMSNorm, SwiGLU, rotary positions, grouped queries."""

    def __init__(self, config: LlamaConfig, train: Train) -> None:
        shape = config.shape()
        kernel = train.attention or shape.attention
        tables = PositionTables(shape, train, kernel, config.rope_theta, xpos=False)

        def norm() -> nn.Module:
            return nn.RMSNorm(shape.d_model, eps=config.norm_eps)

        def block() -> nn.Module:
            attention, ffn = Attention(shape, kernel, tables), SwiGlu(shape)
            for layer in (attention.out_proj, ffn.down):
                layer.init_std = INIT_STD / math.sqrt(2 * shape.num_layers)
            return PreNormBlock(attention, ffn, norm)

        super().__init__(shape, train, tables, [block() for _ in range(shape.num_layers)], norm())
