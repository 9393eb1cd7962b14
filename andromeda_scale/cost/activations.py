"""What autograd keeps of a forward, in bytes per token: blocks, final norm, logits. No torch.

A model of torch's operators, not a bound: each term is a tensor that an operator of the shipped
blocks saves for its backward. Legend as in `cost.model`; c bytes of a compute element, s bytes of
an element of the residual stream.
"""

from __future__ import annotations

from dataclasses import dataclass

from andromeda_scale.cost.model import Shape
from andromeda_scale.suite.precision import POLICIES, element_bytes
from andromeda_scale.suite.schema import Device
from andromeda_scale.suite.training import Train, loss_chunks, recomputed

_FP32 = 4

# Tensors as wide as the FFN that an activation saves, its result left out. Names are transformers';
# what it writes as products and sums saves the factors of each.
ACTIVATION_SAVES = {
    "gelu": 1,
    "gelu_fast": 7,
    "gelu_new": 4,
    "gelu_pytorch_tanh": 1,
    "quick_gelu": 2,
    "relu": 0,
    "silu": 1,
    "swish": 1,
}


@dataclass(frozen=True)
class Widths:
    """What decides how many bytes an operator saves."""

    compute: int  # bytes of an element of a matrix product
    stream: int  # of the residual stream: fp32 under autocast
    autocast: bool  # fp32 weights are cast per use, and each product casts its own input
    device: Device


def widths(train: Train, device: Device, *, autocast: bool) -> Widths:
    """`autocast`: whether the strategy keeps fp32 parameters under torch.autocast."""
    policy = POLICIES[train.precision]
    compute = element_bytes(policy.compute)
    low = autocast and policy.mixed
    return Widths(compute, _FP32 if low else compute, low, device)


def kernel(shape: Shape, train: Train) -> str:
    """The attention that runs."""
    return train.attention or shape.attention


def saved(shape: Shape, train: Train, w: Widths) -> float:
    """Bytes per token that blocks and final norm save for backward, when the loss is computed."""
    final = _norm_bytes(shape, w) + w.compute * shape.d_model  # and the head's input
    if train.mode == "forward":
        return w.stream * shape.d_model
    stream, block = w.stream * shape.d_model, block_bytes(shape, train, w)
    if train.activation_checkpointing == "selective":
        return shape.num_layers * _selected_bytes(shape, train, w) + final
    groups = recomputed(train.activation_checkpointing, shape.num_layers)
    kept = shape.num_layers - sum(len(group) for group in groups)
    return kept * block + len(groups) * stream + final


def deepest(shape: Shape, train: Train, w: Widths) -> float:
    """Bytes per token beyond `saved` when a backward is deepest: what it has recomputed, less what
    it has freed; and the scores of naive attention."""
    if train.mode == "forward":
        ffn = w.compute * (3 if shape.gated_ffn else 2) * shape.d_ff
        inner = _score_bytes(shape, train, w) + attention_bytes(shape, train, w)
        return w.stream * shape.d_model + max(ffn, inner)
    scores = _scores_beyond_ffn(shape, train, w)
    block = block_bytes(shape, train, w)
    if train.activation_checkpointing == "selective":
        return scores + block - _selected_bytes(shape, train, w)
    groups = recomputed(train.activation_checkpointing, shape.num_layers)
    freed, most = 0.0, 0.0
    last = shape.num_layers
    for group in reversed(groups):
        freed += (last - group.stop) * block
        most = max(most, len(group) * block - freed)
        freed += w.stream * shape.d_model
        last = group.start
    return scores + most


def first_block(shape: Shape, train: Train, w: Widths) -> float:
    """Bytes per token while the first block runs backward, the last to do so."""
    if train.mode == "forward":
        return 0.0
    groups = recomputed(train.activation_checkpointing, shape.num_layers)
    blocks = len(groups[0]) if groups else 1
    return blocks * block_bytes(shape, train, w) + _scores_beyond_ffn(shape, train, w)


def logits(shape: Shape, train: Train, w: Widths) -> float:
    """Bytes of a micro-batch's logits and loss: fp32 logits and log-softmax, with a backward the
    log-softmax and two gradients.

    In parts, with a backward: of one part the logits, them in fp32, the gradient in fp32 and its
    mask (which a CPU widens); and the head's gradients of all parts, with a part's product.
    """
    tokens = train.micro_batch_size * train.seq_len
    chunks = loss_chunks(train, shape.vocab_size)
    at_once = -(-tokens // chunks) * shape.vocab_size
    if chunks == 1 or train.mode == "forward":
        return at_once * _FP32 * (3 if train.mode != "forward" else 2)
    low = w.compute if w.compute != _FP32 else 0
    table = shape.vocab_size * shape.d_model
    product = low * table if w.device == "cpu" else 0
    eager = 2 * _FP32 + 1 + (_FP32 if w.device == "cpu" else 0)
    width = low + (low or _FP32 if train.compile else eager)
    return max(at_once * width, product) + _kept_of_head(shape, train, w)


def logit_gradient(shape: Shape, train: Train, w: Widths) -> float:
    """Bytes that the head's gradients are made from: the logits', or in parts what forward kept."""
    if loss_chunks(train, shape.vocab_size) > 1:
        return _kept_of_head(shape, train, w)
    return train.micro_batch_size * train.seq_len * shape.vocab_size * w.compute


def _kept_of_head(shape: Shape, train: Train, w: Widths) -> float:
    """Bytes of the gradients that a loss in parts has made in forward."""
    of_input = train.micro_batch_size * train.seq_len * shape.d_model * w.stream
    return _FP32 * shape.vocab_size * shape.d_model + of_input


def block_bytes(shape: Shape, train: Train, w: Widths) -> float:
    """Bytes per token that one block saves without checkpointing."""
    c, d = w.compute, shape.d_model
    if train.compile:
        return _compiled_block_bytes(shape, train, w)
    # Inputs of q, k, v and of the FFN's first products: one tensor each, or a cast for each.
    inputs = (5 if shape.gated_ffn else 4) if w.autocast else 2
    ffn, attention = _ffn_bytes(shape, w), attention_bytes(shape, train, w)
    return 2 * _norm_bytes(shape, w) + inputs * c * d + attention + ffn


def _ffn_bytes(shape: Shape, w: Widths) -> float:
    """Bytes per token that an FFN saves between its first products and its last."""
    tensors = (3 if shape.gated_ffn else 1) + ACTIVATION_SAVES[shape.activation]
    widened = 0
    if shape.activation == "gelu_new" and w.autocast and w.device == "cuda":
        widened = 3 * (_FP32 - w.compute)  # autocast takes powers in fp32: what goes in, tanh, sum
    return (tensors * w.compute + widened) * shape.d_ff


def _norm_bytes(shape: Shape, w: Widths) -> float:
    """Bytes per token that a norm saves, its output left out."""
    if shape.layer_norm or w.device == "cuda":  # one kernel: its input alone
        return w.stream * shape.d_model
    return 2 * _FP32 * shape.d_model  # RMSNorm's input and the normalised input, in fp32


def _selected_bytes(shape: Shape, train: Train, w: Widths) -> float:
    """Bytes per token that a block saves where all but products and attention is recomputed."""
    c, d = w.compute, shape.d_model
    products = c * (shape.q_dim + 2 * shape.kv_dim + 2 * d)
    products += c * (2 if shape.gated_ffn else 1) * shape.d_ff
    output = 0.0 if kernel(shape, train) == "naive" else c * shape.q_dim + _FP32 * shape.num_heads
    return w.stream * d + products + output


def _compiled_block_bytes(shape: Shape, train: Train, w: Widths) -> float:
    """Bytes per token that Inductor's partitioner saves of a block.

    What products and attention give, and what products and attention take in: all are in memory
    anyway. What lies between is fused and computed again. The partitioner decides by its own costs:
    this is what it kept of Llama's and Andromeda's blocks on a GPU (torch 2.11) and a CPU (2.13).
    """
    d, q, kv = shape.d_model, shape.q_dim, shape.kv_dim
    attention = q + 2 * _heads_taken(shape, train, w) + q
    if shape.qk_norm:  # queries and keys before it as well
        attention += q + kv
    small = 0.0
    if kernel(shape, train) == "naive":
        # Scores, which a product gives, and weights, which one takes.
        attention += 2 * shape.num_heads * train.seq_len
    else:
        small = _FP32 * shape.num_heads
        if kernel(shape, train) == "flex" or w.device == "cpu" or w.compute != _FP32:
            attention += q  # its output does not lie as the next product takes it: a copy
    norms_and_product = 3 * d
    ffn = (3 if shape.gated_ffn else 2) * shape.d_ff
    return w.stream * d + w.compute * (attention + norms_and_product + ffn) + small


def _scores_beyond_ffn(shape: Shape, train: Train, w: Widths) -> float:
    """Bytes per token that naive attention's scores take beyond a whole block's saved tensors.

    While they live, forward has not reached the block's FFN, and backward has freed it.
    """
    return max(0.0, _score_bytes(shape, train, w) - _ffn_bytes(shape, w))


def _score_bytes(shape: Shape, train: Train, w: Widths) -> float:
    """Bytes per token of naive attention's scores beyond what it saves."""
    if kernel(shape, train) != "naive":
        return 0.0
    return 2 * w.compute * shape.num_heads * train.seq_len


def attention_bytes(shape: Shape, train: Train, w: Widths) -> float:
    """Bytes per token that attention saves between its projections' inputs and its output."""
    used, c = kernel(shape, train), w.compute
    q, kv = shape.q_dim, shape.kv_dim
    output = c * q
    if shape.qk_norm:
        output += 2 * _FP32 * (q + kv)  # before and after scaling by the length, in fp32
    if used == "naive":
        weights = shape.num_heads * train.seq_len * (_FP32 if c == _FP32 else _FP32 + c)
        return output + c * (q + 2 * kv) + weights
    taken = _heads_taken(shape, train, w)
    return output + c * (2 * q + 2 * taken) + _FP32 * shape.num_heads


def _heads_taken(shape: Shape, train: Train, w: Widths) -> float:
    """Width of the keys, and of the values, that attention's kernels take."""
    used, q, kv = kernel(shape, train), shape.q_dim, shape.kv_dim
    # On CUDA no fused kernel for fp32 knows groups.
    groups = not (w.device == "cuda" and w.compute == _FP32)
    if used == "naive" or (groups and used == "flex"):
        return kv
    if groups and used == "sdpa_causal":
        biased = q * shape.alibi_num_heads / shape.num_heads
        # Heads with ALiBi have keys repeated for each of them; other heads share one, or have too.
        if not biased:
            return kv
        if shape.num_kv_heads == 1 and biased < q:
            return biased + kv
    return q
