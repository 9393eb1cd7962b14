"""Positions: rotary tables with xPos, ALiBi, and the causal mask in the form a kernel needs.

Legend: T tokens, h query heads, dh head width, R rotated dimensions of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from andromeda_scale.cost.model import Shape
from andromeda_scale.models import xpos
from andromeda_scale.suite.precision import POLICIES
from andromeda_scale.suite.training import Train

BLOCK = 128  # queries, and keys, of a block of FlexAttention's mask
ROTARY_THETA = 1e4


def alibi_slopes(num_heads: int) -> list[float]:
    """Slopes 2^(-8k/n), k = 1..n; between powers of two interpolated as in arXiv:2108.12409."""
    if num_heads & (num_heads - 1) == 0:
        return [2.0 ** (-8 * k / num_heads) for k in range(1, num_heads + 1)]
    power = 1 << (num_heads.bit_length() - 1)
    return alibi_slopes(power) + alibi_slopes(2 * power)[::2][: num_heads - power]


class PositionTables(nn.Module):
    """What attention knows of positions at one sequence length, shared by all blocks.

    rotary_q, rotary_k: (2, T, R / 2) cosine and sine, scaled by xPos. slopes: of ALiBi, one a head
    that the kernel gives a bias: h of them (0 where a head has no ALiBi), the ALiBi heads'
    (sdpa_causal), a single 0 (all heads share a bias that only masks), or none.
    bias: (slopes, T, T), -inf above the diagonal. flex has none: it adds `slopes` to the scores
    itself, under `block_mask`, which holds per block of the scores whether it is masked.
    """

    rotary_q: Tensor
    rotary_k: Tensor
    slopes: Tensor
    bias: Tensor

    def __init__(
        self, shape: Shape, train: Train, kernel: str, theta: float, *, xpos: bool
    ) -> None:
        super().__init__()
        self.theta = theta
        self.xpos = xpos
        self.block_mask: BlockMask | None = None
        self._flex = kernel == "flex"
        self._slopes = _slopes(shape, kernel)
        # The bias has the dtype of the products, or every layer would copy it.
        self._bias_dtype = getattr(torch, POLICIES[train.precision].compute)
        seq_len, num_biases = train.seq_len, 0 if self._flex else len(self._slopes)
        for name, size, dtype in (
            ("rotary_q", (2, seq_len, shape.rotary_dim // 2), torch.float32),
            ("rotary_k", (2, seq_len, shape.rotary_dim // 2), torch.float32),
            ("slopes", (len(self._slopes),), torch.float32),
            ("bias", (num_biases, seq_len, seq_len), self._bias_dtype),
        ):
            self.register_buffer(name, torch.empty(size, dtype=dtype), persistent=False)
        self.compute()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PositionTables:
        # Moving off the meta device leaves garbage, and module.bfloat16() rounds cosines:
        # whatever happened to the tables, they are computed again.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # a method of nn.Module
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
            power = (position - seq_len // 2) / xpos.SCALE_BASE
            scale = ((share + xpos.OFFSET) / (1 + xpos.OFFSET)) ** power[:, None]
        self.rotary_q, self.rotary_k = rotary * scale, rotary / scale
        self.slopes = torch.tensor(self._slopes, dtype=torch.float32, device=device)
        if self._flex:
            self.block_mask = _causal_blocks(seq_len, device)
            return
        distance = position[None, :] - position[:, None]
        bias = self.slopes[:, None, None] * distance
        self.bias = bias.masked_fill_(distance > 0, -math.inf).to(self._bias_dtype)


def _slopes(shape: Shape, kernel: str) -> list[float]:
    if not shape.alibi_num_heads:
        return [0.0] if kernel in ("naive", "sdpa_bias") else []
    plain = shape.num_heads - shape.alibi_num_heads if kernel != "sdpa_causal" else 0
    return alibi_slopes(shape.alibi_num_heads) + [0.0] * plain


def _causal_blocks(seq_len: int, device: torch.device) -> BlockMask | None:
    """Of each row of blocks those before the diagonal are whole, and the diagonal's is cut.

    In a last row that is not full all blocks are cut, by the end of the queries. torch's
    create_block_mask finds that out from all T^2 elements: 128 GiB at T = 131072.
    """
    if device.type == "meta":
        return None
    rows = torch.arange(-(-seq_len // BLOCK), device=device)
    cut, whole = rows[:, None] == rows, rows[:, None] > rows
    if seq_len % BLOCK:
        cut[-1], whole[-1] = True, False
    return BlockMask.from_kv_blocks(
        *_listed(cut),
        *_listed(whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=lambda batch, head, query, key: query >= key,
        seq_lengths=(seq_len, seq_len),
    )


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """(blocks chosen in each row, (1, 1, rows); all blocks, those first, (1, 1, rows, rows)).

    Order and strides are torch's own: the kernel reads both lists by the strides of the first.
    """
    counts, order = chosen.sum(-1), chosen.int().argsort(stable=True, descending=True)
    return counts.int()[None, None], order.int()[None, None]


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn the first R dimensions of x (B, heads, T, dh) by table (2, T, R / 2), in fp32.

    Dimension i is paired with i + R / 2.
    """
    cos, sin = table[:, : x.shape[-2]]
    pairs = cos.shape[-1]
    first, second = x[..., :pairs].float(), x[..., pairs : 2 * pairs].float()
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat((*turned, x[..., 2 * pairs :].float()), dim=-1)
