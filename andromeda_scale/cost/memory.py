"""Peak memory of one rank in closed form: states, activations, logits, buffers. No torch.

It counts what a training step allocates, not the process around it (interpreter, libraries, CUDA
context). Legend as in `cost.model`; n tokens of a micro-batch, c bytes of a compute element.
"""

from __future__ import annotations

from dataclasses import dataclass

from andromeda_scale.cost.layout import StateLayout, Traffic
from andromeda_scale.cost.model import (
    Shape,
    block_parameters,
    matmul_weights,
    num_parameters,
    root_parameters,
)
from andromeda_scale.training import Train

_FP32 = 4


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one rank. `total` is the larger of the peaks below, and less than the sum:
    gradients grow while activations shrink.
    """

    states: int  # parameters, gradients, master copy, optimizer state
    activations: int  # saved for backward by blocks and final norm, weights cast by autocast too
    logits: int  # logits, their log-softmax and its gradient
    buffers: int  # communication, gathered weights, position tables
    total: int


@dataclass(frozen=True)
class _Bytes:
    """What decides the width of an element."""

    compute: int  # matrix products
    residual: int  # residual stream: fp32 under autocast
    autocast: bool  # fp32 weights are cast per step, and each product casts its own input


def estimate(
    shape: Shape, train: Train, layout: StateLayout, traffic: Traffic, world_size: int
) -> MemoryEstimate:
    """Peak bytes per rank of one step under a strategy's layout and traffic."""
    widths = _widths(train, layout)
    parameters = num_parameters(shape)
    tokens = train.micro_batch_size * train.seq_len
    training = train.mode != "forward"
    gradients = layout.gradients.per_rank * parameters if training else 0.0
    optimizer = layout.optimizer_state.per_rank if train.mode == "train_step" else 0.0
    kept = (layout.parameters.per_rank + layout.master.per_rank + optimizer) * parameters
    buffers = _buffer_bytes(shape, train, layout, traffic, widths)
    saved = tokens * _saved_per_token(shape, train, widths) + _cast_weight_bytes(
        shape, train, widths
    )
    # Logits, log-softmax and one gradient, all fp32; without backward the first two.
    logits = tokens * shape.vocab_size * _FP32 * (3 if training else 2)
    working = tokens * _working_per_token(shape, train, widths)

    # Gradients live from the first micro-batch of a step on; before that there are none.
    early = 0.0
    if train.grad_accum > 1 and training:
        early = _accumulated_per_parameter(layout, traffic) * parameters
    head = gradients * shape.vocab_size * shape.d_model / parameters
    twice = head if shape.tied_head else 0.0  # the table's gradients as input and as head
    peaks = (
        early + saved + logits,  # the loss
        max(early, head) + saved + logits / 2,  # the head's backward
        early + saved + working,  # the last block, with its scores or its recomputation
        max(early, gradients) + twice + working,  # end of backward
    )
    return MemoryEstimate(
        states=round(kept + gradients),
        activations=round(saved),
        logits=round(logits),
        buffers=round(buffers),
        total=round(kept + buffers + max(peaks)),
    )


def _accumulated_per_parameter(layout: StateLayout, traffic: Traffic) -> float:
    """Bytes of gradients held between micro-batches: whole ones where a step reduces them once."""
    once = any(c.op != "all_gather" and c.per == "step" for c in traffic.collectives)
    return layout.gradients.bytes_per_parameter if once else layout.gradients.per_rank


def _widths(train: Train, layout: StateLayout) -> _Bytes:
    if train.precision == "fp32":
        return _Bytes(_FP32, _FP32, autocast=False)
    # Whole fp32 parameters compute in bf16 through autocast; sharded ones are gathered in bf16.
    whole = layout.parameters.shards == 1 and layout.parameters.bytes_per_parameter == _FP32
    return _Bytes(2, _FP32 if whole else 2, autocast=whole)


def _saved_per_token(shape: Shape, train: Train, widths: _Bytes) -> float:
    """Bytes per token saved for backward, all blocks and the final norm."""
    stream = widths.residual * shape.d_model
    final = 2 * stream + widths.compute * shape.d_model
    if train.mode == "forward":
        return final
    if train.activation_checkpointing == "block":
        return shape.num_layers * stream + final
    return shape.num_layers * _block_bytes(shape, train, widths) + final


def _cast_weight_bytes(shape: Shape, train: Train, widths: _Bytes) -> float:
    """Weights that autocast has cast and that backward will need; checkpointing casts again."""
    if not widths.autocast:
        return 0.0
    head = shape.vocab_size * shape.d_model
    whole = train.mode != "forward" and train.activation_checkpointing == "none"
    return widths.compute * (matmul_weights(shape) if whole else head)


def _working_per_token(shape: Shape, train: Train, widths: _Bytes) -> float:
    """Bytes per token that live only while one block runs."""
    c, stream = widths.compute, widths.residual * shape.d_model
    scores = 2 * c * shape.num_heads * train.seq_len if _kernel(shape, train) == "naive" else 0
    if train.mode == "forward":
        ffn = c * (3 if shape.gated_ffn else 2) * shape.d_ff
        return stream + max(ffn, scores + _attention_bytes(shape, train, c))
    recomputed = train.activation_checkpointing == "block"
    return scores + (_block_bytes(shape, train, widths) if recomputed else 0)


def _block_bytes(shape: Shape, train: Train, widths: _Bytes) -> float:
    """Bytes per token that one block saves for backward."""
    c, d = widths.compute, shape.d_model
    casts = (5 if shape.gated_ffn else 4) if widths.autocast else 2
    norms = 2 * widths.residual * d + casts * c * d
    if not shape.layer_norm:
        norms += 2 * widths.residual * d  # RMSNorm keeps its input and the normalised input
    ffn = (4 if shape.gated_ffn else 2) * c * shape.d_ff
    return norms + _attention_bytes(shape, train, c) + ffn


def _attention_bytes(shape: Shape, train: Train, c: int) -> float:
    """Bytes per token that attention saves between its projections' inputs and its output."""
    kernel = _kernel(shape, train)
    q, kv = shape.q_dim, shape.kv_dim
    output = c * q
    if shape.qk_norm:
        output += 2 * _FP32 * (q + kv)  # before and after scaling by the length, in fp32
    if kernel == "naive":
        weights = shape.num_heads * train.seq_len * (_FP32 if c == _FP32 else _FP32 + c)
        return output + c * (q + 2 * kv) + weights
    expanded = q  # keys and values repeated for every head
    if kernel == "sdpa_causal" and not shape.alibi_num_heads:
        expanded = kv
    return output + c * (2 * q + 2 * expanded) + _FP32 * shape.num_heads


def _kernel(shape: Shape, train: Train) -> str:
    return train.attention or shape.attention


def _buffer_bytes(
    shape: Shape, train: Train, layout: StateLayout, traffic: Traffic, widths: _Bytes
) -> float:
    kernel = _kernel(shape, train)
    heads = 1 if kernel != "sdpa_causal" else 0
    if shape.alibi_num_heads:
        heads = shape.alibi_num_heads if kernel == "sdpa_causal" else shape.num_heads
    tables = 2 * _FP32 * shape.rotary_dim * train.seq_len
    tables += heads * train.seq_len**2 * widths.compute
    block, root = block_parameters(shape), root_parameters(shape)
    weights = 0.0
    if layout.parameters.shards > 1:  # the root stays gathered, the next block is under way
        weights = widths.compute * (root + min(2, shape.num_layers) * block)
    if layout.gradients.shards > 1 and train.mode != "forward":
        weights += _FP32 * max(block, root)  # a unit's gradients on their way to their shards
    # A bucket's size is a bound, and no bucket is larger than the model; two may be in flight.
    buckets = min(traffic.buffer_bytes, 2 * _FP32 * num_parameters(shape))
    return tables + weights + buckets
