"""Closed forms of a decoder-only transformer: parameters, matmul weights, FLOPs. No torch.

Legend: V vocabulary, d width, L blocks, h heads, kv key-value heads, dh head width, f FFN width,
T tokens per sequence, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from andromeda_scale.suite.training import Mode

Convention = Literal[
    "6n", "6n_noemb+causal", "6n_noemb+dense", "6n+dense", "hfu"
]  # ids printed beside every MFU

DEFAULT_CONVENTION: Convention = "6n_noemb+causal"

# id -> one line for tables and docs. "noemb" leaves out the input table, a look-up without FLOPs.
CONVENTIONS: dict[Convention, str] = {
    "6n": "6 FLOPs per parameter and token; no attention",
    "6n_noemb+causal": "6 per parameter without the input table; causal half of attention",
    "6n_noemb+dense": "6 per parameter without the input table; all of attention's T x T",
    "6n+dense": "6 per parameter; all of attention's T x T",
    "hfu": "4/3 of 6n_noemb+dense: what the hardware does under full recomputation",
}


@dataclass(frozen=True)
class Shape:
    """Everything the closed forms need to know of a decoder-only transformer."""

    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    gated_ffn: bool  # SwiGLU: three matrices without bias; otherwise two with bias (GELU)
    layer_norm: bool  # LayerNorm: weight and bias; otherwise RMSNorm: weight
    qk_norm: bool = False  # learned per-dimension scales of q and k, shared by the heads
    final_norm: bool = True
    head_bias: bool = False
    qkv_bias: bool = False
    out_bias: bool = False  # of the attention's output projection
    num_positions: int = 0  # rows of a learned position table, which is only looked up
    tied_head: bool = False  # the head's matrix is the input table
    rotary_dim: int = 0  # first dimensions of each head that are rotated
    alibi_num_heads: int = 0  # first heads that carry an ALiBi bias
    activation: str = "gelu"  # the FFN's; SwiGLU's saves as much
    attention: str = "sdpa_causal"  # the family's own kernel, where train.attention is null

    @property
    def q_dim(self) -> int:
        """Width of all queries: h * dh."""
        return self.num_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of all keys, and of all values: kv * dh."""
        return self.num_kv_heads * self.head_dim


def block_matrices(shape: Shape) -> tuple[int, ...]:
    """Weights of each matrix product of one block: q, out, k, v and the FFN's."""
    query, key = shape.d_model * shape.q_dim, shape.d_model * shape.kv_dim
    ffn = (3 if shape.gated_ffn else 2) * (shape.d_model * shape.d_ff,)
    return (query, query, key, key, *ffn)


def block_matmul_weights(shape: Shape) -> int:
    """Weights of the matrix products of one block."""
    return sum(block_matrices(shape))


def block_parameters(shape: Shape) -> int:
    """Parameters of one block."""
    norm = (2 if shape.layer_norm else 1) * shape.d_model
    ffn_bias = 0 if shape.gated_ffn else shape.d_ff + shape.d_model
    qk_scales = 2 * shape.head_dim if shape.qk_norm else 0
    qkv_bias = shape.q_dim + 2 * shape.kv_dim if shape.qkv_bias else 0
    out_bias = shape.d_model if shape.out_bias else 0
    biases = qkv_bias + out_bias + ffn_bias
    return block_matmul_weights(shape) + biases + 2 * norm + qk_scales


def root_parameters(shape: Shape) -> int:
    """Parameters outside the blocks: input tables, final norm, head."""
    positions = shape.num_positions * shape.d_model
    table = shape.vocab_size * shape.d_model
    norm = (2 if shape.layer_norm else 1) * shape.d_model if shape.final_norm else 0
    bias = shape.vocab_size if shape.head_bias else 0
    return (1 if shape.tied_head else 2) * table + positions + norm + bias


def num_parameters(shape: Shape) -> int:
    """All parameters P, a tied table counted once."""
    return shape.num_layers * block_parameters(shape) + root_parameters(shape)


def num_non_embedding_parameters(shape: Shape) -> int:
    """Parameters that take part in products: P without tables that are only looked up."""
    rows = shape.num_positions + (0 if shape.tied_head else shape.vocab_size)
    return num_parameters(shape) - rows * shape.d_model


def matmul_weights(shape: Shape) -> int:
    """W: weights of all matrix products of a token, blocks and head."""
    return shape.num_layers * block_matmul_weights(shape) + shape.vocab_size * shape.d_model


def linear_flops_per_token(shape: Shape) -> int:
    """Forward FLOPs of the linear layers: 2W."""
    return 2 * matmul_weights(shape)


def attention_flops_per_token(shape: Shape, seq_len: int) -> int:
    """Forward FLOPs of dense attention: q k^T and a v, 4 L h dh T."""
    return 4 * shape.num_layers * shape.q_dim * seq_len


def flops_per_token(
    shape: Shape, seq_len: int, mode: Mode, convention: Convention = DEFAULT_CONVENTION
) -> float:
    """FLOPs per token of one step under a convention; backward counts twice forward.

    `hfu` in mode `forward` recomputes nothing and equals `6n_noemb+dense`.
    """
    counted, _, attention = convention.partition("+")
    if convention == "hfu":
        counted, attention = "6n_noemb", "dense"
    parameters = num_parameters(shape) if counted == "6n" else num_non_embedding_parameters(shape)
    share = {"": 0.0, "causal": 0.5, "dense": 1.0}[attention]
    forward = 2 * parameters + share * attention_flops_per_token(shape, seq_len)
    if mode == "forward":
        return forward
    return 3 * forward * (4 / 3 if convention == "hfu" else 1)


def mfu(
    tokens_per_s: float, flops_per_token: float, num_devices: int, peak_flops_per_s: float
) -> float:
    """Model FLOPs utilisation, a share: achieved over peak of all devices."""
    return tokens_per_s * flops_per_token / (num_devices * peak_flops_per_s)
