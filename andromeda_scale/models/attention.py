"""Causal self-attention and its kernels.

Legend: B sequences, T tokens, d width, h query heads, kv key-value heads, dh head width.

Four kernels compute the same function:

- `naive`: products and an explicit softmax; keeps B*h*T*T scores for backward.
- `sdpa_bias`: torch's fused attention with one additive bias (causal mask and ALiBi), which is
  broadcast over the batch: h*T*T elements for the whole model, or T*T without ALiBi.
- `sdpa_causal`: torch's fused attention with its built-in causal mask. Heads with ALiBi cannot use
  that; they alone go through the bias, and the rest stays causal: two calls instead of one.
- `flex`: torch's FlexAttention: ALiBi is code that the compiler puts into the kernel, blocks above
  the diagonal are left out, and nothing of size T*T exists. Only under train.compile: uncompiled it
  computes all scores. On a CPU torch gives it no backward (`kernels.py` refuses that).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from andromeda_scale.cost.model import Shape
from andromeda_scale.models.layers import Linear, QkNorm
from andromeda_scale.models.positions import PositionTables, rotate

QK_NORM_SCALE = 10.0  # logit scale of unit-length q and k (x-transformers)


def naive(q: Tensor, k: Tensor, v: Tensor, tables: PositionTables, scale: float) -> Tensor:
    """Softmax(q k^T * scale + bias) v; q (B, h, T, dh), k and v (B, kv, T, dh)."""
    batch, heads, seq_len, width = q.shape
    bias = tables.bias[:, :seq_len, :seq_len]
    # The queries of a group stand one below the other, so that k and v are not copied per head.
    grouped = q.reshape(batch, k.shape[1], -1, width)
    scores = (grouped @ k.transpose(-2, -1)).view(batch, heads, seq_len, seq_len)
    weights = torch.softmax(scores * scale + bias, dim=-1, dtype=torch.float32).to(v.dtype)
    return (weights.view(batch, k.shape[1], -1, seq_len) @ v).view(batch, heads, seq_len, width)


def sdpa_bias(q: Tensor, k: Tensor, v: Tensor, tables: PositionTables, scale: float) -> Tensor:
    """Torch's fused attention with an additive bias (1 or h, T, T), or for the ALiBi heads."""
    bias = tables.bias[None, :, : q.shape[2], : q.shape[2]]
    k, v = _repeated(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


def sdpa_causal(q: Tensor, k: Tensor, v: Tensor, tables: PositionTables, scale: float) -> Tensor:
    """Torch's fused causal attention; the first heads through a bias (ALiBi heads or 0, T, T)."""
    alibi, heads = tables.bias.shape[0], q.shape[1]
    if alibi == 0:
        return _causal(q, k, v, scale)
    if alibi == heads:
        return sdpa_bias(q, k, v, tables, scale)
    if k.shape[1] > 1:
        k, v = (x.repeat_interleave(heads // k.shape[1], dim=1) for x in (k, v))
    first = slice(None) if k.shape[1] == 1 else slice(alibi)
    rest = slice(None) if k.shape[1] == 1 else slice(alibi, None)
    with_bias = sdpa_bias(q[:, :alibi], k[:, first], v[:, first], tables, scale)
    return torch.cat((with_bias, _causal(q[:, alibi:], k[:, rest], v[:, rest], scale)), dim=1)


def flex(q: Tensor, k: Tensor, v: Tensor, tables: PositionTables, scale: float) -> Tensor:
    """Torch's FlexAttention; T is the length of the tables."""
    slopes = tables.slopes

    def alibi(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + slopes[head] * (key - query)

    out: Tensor = flex_attention(
        q,
        k,
        v,
        score_mod=alibi if len(slopes) else None,
        block_mask=tables.block_mask,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out


def _causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    # Asked for groups they do not know, fused kernels fall back to explicit scores, silently: on
    # CUDA the only one for fp32 (H100, torch 2.11).
    if q.is_cuda and q.dtype == torch.float32:
        k, v = _repeated(q, k, v)
    return F.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def _repeated(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values once per query head."""
    if (group := q.shape[1] // k.shape[1]) > 1:
        return k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    return k, v


KERNELS = {"naive": naive, "sdpa_causal": sdpa_causal, "sdpa_bias": sdpa_bias, "flex": flex}


class Attention(nn.Module):
    """Causal self-attention of one block, (B, T, d) to (B, T, d)."""

    def __init__(self, shape: Shape, kernel: str, tables: PositionTables) -> None:
        super().__init__()
        self.q_proj = Linear(shape.d_model, shape.q_dim, bias=False)
        self.k_proj = Linear(shape.d_model, shape.kv_dim, bias=False)
        self.v_proj = Linear(shape.d_model, shape.kv_dim, bias=False)
        self.out_proj = Linear(shape.q_dim, shape.d_model, bias=False)
        self.qk_norm = QkNorm(shape.head_dim) if shape.qk_norm else None
        self.scale = QK_NORM_SCALE if shape.qk_norm else shape.head_dim**-0.5
        self.head_dim = shape.head_dim
        self.kernel = kernel
        # In a tuple, so that the tables, which all blocks share, are registered only once.
        self._tables = (tables,)

    def forward(self, x: Tensor) -> Tensor:
        batch, seq_len, _ = x.shape
        q, k, v = (
            proj(x).view(batch, seq_len, -1, self.head_dim).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.qk_norm is not None:
            q, k = self.qk_norm(q, k)
        tables = self._tables[0]
        q, k = rotate(q, tables.rotary_q).to(v.dtype), rotate(k, tables.rotary_k).to(v.dtype)
        heads = KERNELS[self.kernel](q, k, v, tables, self.scale)
        out: Tensor = self.out_proj(heads.transpose(1, 2).flatten(2))
        return out
