"""Layers the families share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from andromeda_scale.cost.model import Shape

INIT_STD = 0.02


class Linear(nn.Linear):
    """A linear layer that says how its weight is drawn: N(0, init_std^2)."""

    init_std: float = INIT_STD


class Embedding(nn.Embedding):
    """Rows of a table, (B, T) to (B, T, d), whose gradients are added up in float32 or better.

    On a CPU torch adds them in the table's own dtype, one by one: in bfloat16, 4,096 tokens of 256
    kinds lost a tenth of the gradient's norm. On CUDA it adds in float32 by itself.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        table: Tensor = self.weight
        if table.device.type == "cpu" and table.dtype != torch.float32:
            return F.embedding(tokens, table.float()).to(table.dtype)
        return F.embedding(tokens, table)


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
        out: Tensor = self.down(F.gelu(self.up(x)))
        return out


class SwiGlu(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate = Linear(shape.d_model, shape.d_ff, bias=False)
        self.up = Linear(shape.d_model, shape.d_ff, bias=False)
        self.down = Linear(shape.d_ff, shape.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out
