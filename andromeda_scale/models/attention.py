"""Causal self-attention: its kernels, positions, and what really ran.

Legend: B sequences, T tokens, d width, h query heads, kv key-value heads, dh head width,
R rotated dimensions of a head.

Three kernels compute the same function:

- `naive`: products and an explicit softmax; keeps B*h*T*T scores for backward.
- `sdpa_bias`: torch's fused attention with one additive bias (causal mask and ALiBi), which is
  broadcast over the batch: h*T*T elements for the whole model, or T*T without ALiBi.
- `sdpa_causal`: torch's fused attention with its built-in causal mask. Heads with ALiBi cannot use
  that; they alone go through the bias, and the rest stays causal: two calls instead of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from andromeda_scale.cost.model import Shape
from andromeda_scale.models.layers import Linear, QkNorm
from andromeda_scale.training import Train

QK_NORM_SCALE = 10.0  # logit scale of unit-length q and k (x-transformers)
XPOS_SCALE_BASE = 512.0
ROTARY_THETA = 1e4


def alibi_slopes(num_heads: int) -> list[float]:
    """Slopes 2^(-8k/n), k = 1..n; between powers of two interpolated as in arXiv:2108.12409."""
    if num_heads & (num_heads - 1) == 0:
        return [2.0 ** (-8 * k / num_heads) for k in range(1, num_heads + 1)]
    power = 1 << (num_heads.bit_length() - 1)
    return alibi_slopes(power) + alibi_slopes(2 * power)[::2][: num_heads - power]


class PositionTables(nn.Module):
    """Rotary tables and attention bias of one sequence length, shared by all blocks.

    rotary_q, rotary_k: (2, T, R / 2) cosine and sine, scaled by xPos. bias: (heads, T, T), -inf
    above the diagonal; heads is what the kernel needs: 1, h, the ALiBi heads, or 0 (no bias).
    """

    rotary_q: Tensor
    rotary_k: Tensor
    bias: Tensor

    def __init__(
        self, shape: Shape, train: Train, kernel: str, theta: float, *, xpos: bool
    ) -> None:
        super().__init__()
        self.theta = theta
        self.xpos = xpos
        self.slopes: list[float] = []
        if shape.alibi_num_heads:
            plain = shape.num_heads - shape.alibi_num_heads if kernel != "sdpa_causal" else 0
            self.slopes = alibi_slopes(shape.alibi_num_heads) + [0.0] * plain
        elif kernel != "sdpa_causal":
            self.slopes = [0.0]
        # The bias has the dtype of the products, or every layer would copy it.
        bias_dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
        seq_len = train.seq_len
        for name, size, dtype in (
            ("rotary_q", (2, seq_len, shape.rotary_dim // 2), torch.float32),
            ("rotary_k", (2, seq_len, shape.rotary_dim // 2), torch.float32),
            ("bias", (len(self.slopes), seq_len, seq_len), bias_dtype),
        ):
            self.register_buffer(name, torch.empty(size, dtype=dtype), persistent=False)
        self._bias_dtype = bias_dtype
        self.compute()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PositionTables:
        # Moving off the meta device leaves garbage, and module.bfloat16() rounds cosines:
        # whatever happened to the tables, they are computed again.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.compute()
        return self

    @torch.no_grad()
    def compute(self) -> None:
        """Fill all tables on the device they lie on, in their own dtypes."""
        device = self.rotary_q.device
        _, seq_len, pairs = self.rotary_q.shape
        position = torch.arange(seq_len, dtype=torch.float32, device=device)
        share = torch.arange(pairs, dtype=torch.float32, device=device) / pairs
        angle = torch.outer(position, self.theta**-share)
        rotary = torch.stack((angle.cos(), angle.sin()))
        scale = torch.ones_like(angle)
        if self.xpos:
            # Only i - j enters q k^T; counting from the middle keeps the powers small.
            power = (position - seq_len // 2) / XPOS_SCALE_BASE
            scale = ((share + 0.4) / 1.4) ** power[:, None]
        self.rotary_q, self.rotary_k = rotary * scale, rotary / scale
        slopes = torch.tensor(self.slopes, dtype=torch.float32, device=device)
        distance = position[None, :] - position[:, None]
        bias = slopes[:, None, None] * distance
        self.bias = bias.masked_fill_(distance > 0, -math.inf).to(self._bias_dtype)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn the first R dimensions of x (B, heads, T, dh) by table (2, T, R / 2), in fp32.

    Dimension i is paired with i + R / 2.
    """
    cos, sin = table[:, : x.shape[-2]]
    pairs = cos.shape[-1]
    first, second = x[..., :pairs].float(), x[..., pairs : 2 * pairs].float()
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat((*turned, x[..., 2 * pairs :].float()), dim=-1)


def naive(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Softmax(q k^T * scale + bias) v; q (B, h, T, dh), k and v (B, kv, T, dh)."""
    batch, heads, seq_len, width = q.shape
    # The queries of a group stand one below the other, so that k and v are not copied per head.
    grouped = q.reshape(batch, k.shape[1], -1, width)
    scores = (grouped @ k.transpose(-2, -1)).view(batch, heads, seq_len, seq_len)
    weights = torch.softmax(scores * scale + bias, dim=-1, dtype=torch.float32).to(v.dtype)
    return (weights.view(batch, k.shape[1], -1, seq_len) @ v).view(batch, heads, seq_len, width)


def sdpa_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Torch's fused attention with an additive bias (1 or h, T, T)."""
    k, v = _repeated(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None], scale=scale)


def sdpa_causal(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Torch's fused causal attention; the first heads through `bias` (ALiBi heads or 0, T, T)."""
    alibi, heads = bias.shape[0], q.shape[1]
    if alibi == 0:
        return _causal(q, k, v, scale)
    if alibi == heads:
        return sdpa_bias(q, k, v, bias, scale)
    if k.shape[1] > 1:
        k, v = (x.repeat_interleave(heads // k.shape[1], dim=1) for x in (k, v))
    first = slice(None) if k.shape[1] == 1 else slice(alibi)
    rest = slice(None) if k.shape[1] == 1 else slice(alibi, None)
    with_bias = sdpa_bias(q[:, :alibi], k[:, first], v[:, first], bias, scale)
    return torch.cat((with_bias, _causal(q[:, alibi:], k[:, rest], v[:, rest], scale)), dim=1)


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


KERNELS = {"naive": naive, "sdpa_causal": sdpa_causal, "sdpa_bias": sdpa_bias}


class _SeenOps(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the names of attention's operators below autograd: what a call turned into."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if "attention" in name or "softmax" in name or name in ("bmm", "baddbmm"):
            self.names.add(name)
        return func(*args, **(kwargs or {}))


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
        self.ops: tuple[str, ...] | None = None  # what the first eager call ran
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
        bias = tables.bias[:, :seq_len, :seq_len]
        heads = self._attend(q, k, v, bias)
        out: Tensor = self.out_proj(heads.transpose(1, 2).flatten(2))
        return out

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        run = KERNELS[self.kernel]
        if self.ops is not None or torch.compiler.is_compiling():
            return run(q, k, v, bias, self.scale)
        with _SeenOps() as seen:
            out = run(q, k, v, bias, self.scale)
        self.ops = tuple(sorted(seen.names))
        return out
