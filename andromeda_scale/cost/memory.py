"""Peak memory of one rank in closed form: states, activations, logits, buffers. No torch.

It counts what a training step allocates, not the process around it (interpreter, libraries, CUDA
context, what the allocator reserves and does not use). States are exact up to padding; what a
strategy holds beside them and what autograd saves are models, see `working` and `activations`.
"""

from __future__ import annotations

from dataclasses import dataclass

from andromeda_scale.cost import activations
from andromeda_scale.cost.activations import Widths
from andromeda_scale.cost.layout import StateLayout
from andromeda_scale.cost.model import Shape, matmul_weights
from andromeda_scale.cost.working import Sizes, Working
from andromeda_scale.suite.optimizers import temporary_bytes
from andromeda_scale.suite.schema import Device
from andromeda_scale.suite.training import Train

_FP32 = 4
# cuBLAS keeps a workspace for each thread that calls it, forward's and backward's: 4096 KiB * 8
# on Hopper (ATen/cuda/CUDABlas, getChosenWorkspaceSize); smaller, 8.1 MiB, before it.
_CUBLAS_BYTES = 2 * 32 * 2**20


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one rank on its device at the fullest moment of a step: `total`, in four parts.

    `host`: what lies on the host; on a CPU, where both are one memory, `total` holds it already.
    """

    moment: str  # loss, head, backward, end, update
    states: int  # parameters, master copy, optimizer state
    activations: int  # saved for backward, recomputed, and weights cast by autocast
    logits: int  # logits, their log-softmax and its gradient
    buffers: int  # gradients, gathered weights, communication, temporaries, position tables
    host: int

    @property
    def total(self) -> int:
        return self.states + self.activations + self.logits + self.buffers

    @property
    def largest(self) -> str:
        """The name of the largest part."""
        parts = ("states", "activations", "logits", "buffers")
        return max(parts, key=lambda name: int(getattr(self, name)))


def estimate(
    shape: Shape, train: Train, layout: StateLayout, working: Working, device: Device
) -> MemoryEstimate:
    """Peak bytes per rank of one step under a strategy's layout and what it holds beside."""
    w = activations.widths(train, device, autocast=working.autocast)
    sizes, tokens = Sizes.of(shape), train.micro_batch_size * train.seq_len
    on_device, on_host = (_kept(layout, train, place) * sizes.parameters for place in _PLACES)
    host = on_host + working.on_host
    resting = _table_bytes(shape, train, w) + (_CUBLAS_BYTES if device == "cuda" else 0)
    if device == "cpu":
        on_device, resting = on_device + on_host, resting + working.on_host
    fullest = max(
        _moments(shape, train, layout, working, w, tokens),
        key=lambda moment: sum(moment[1:]),
    )
    name, saved, logits, buffers = fullest
    return MemoryEstimate(
        moment=name,
        states=round(on_device),
        activations=round(saved),
        logits=round(logits),
        buffers=round(buffers + resting),
        host=round(host),
    )


_PLACES = ("device", "host")
_Moment = tuple[str, float, float, float]  # name; activations, logits, buffers


def _kept(layout: StateLayout, train: Train, place: str) -> float:
    """Bytes per parameter of the states that live from step to step, gradients left out."""
    parts = [layout.parameters, layout.master]
    if train.mode == "train_step":
        parts.append(layout.optimizer_state)
    return sum(part.per_rank for part in parts if part.on == place)


def _moments(
    shape: Shape, train: Train, layout: StateLayout, holds: Working, w: Widths, tokens: int
) -> list[_Moment]:
    """What a rank holds beside its states, at each moment that may be its fullest."""
    casts = _cast_weight_bytes(shape, train, w)
    saved = tokens * activations.saved(shape, train, w) + casts
    logits = activations.logits(shape, train, w)
    deepest = tokens * activations.deepest(shape, train, w)
    if train.mode == "forward":
        return [("loss", saved, logits, holds.loss), ("block", saved + deepest, 0, holds.loss)]
    gradient = activations.logit_gradient(shape, train, w)
    first = tokens * activations.first_block(shape, train, w)
    moments: list[_Moment] = [
        ("loss", saved, logits, holds.loss),
        ("head", saved, gradient, holds.head),
        ("backward", saved + deepest, 0, holds.block),
        ("end", first, 0, holds.end),
    ]
    if train.mode == "train_step":
        updated = holds.updated_at_once
        if updated is None:
            updated = Sizes.of(shape).parameters / layout.optimizer_state.shards
        temporaries = updated * temporary_bytes(
            train.optimizer.name,
            fused=train.optimizer.is_fused,
            decays=train.weight_decay > 0,
        )
        moments.append(("update", 0, 0, holds.update + temporaries))
    return moments


def _cast_weight_bytes(shape: Shape, train: Train, w: Widths) -> float:
    """Weights that autocast has cast and that backward will need; checkpointing casts again."""
    if not w.autocast:
        return 0.0
    head = shape.vocab_size * shape.d_model
    whole = train.mode != "forward" and train.activation_checkpointing == "none"
    return w.compute * (matmul_weights(shape) if whole else head)


def _table_bytes(shape: Shape, train: Train, w: Widths) -> float:
    """Rotary tables, and the bias of kernels that take one."""
    used = activations.kernel(shape, train)
    heads = 0 if used in ("sdpa_causal", "flex") else 1
    if shape.alibi_num_heads and used != "flex":
        heads = shape.alibi_num_heads if used == "sdpa_causal" else shape.num_heads
    rotary = 2 * _FP32 * shape.rotary_dim * train.seq_len
    return rotary + heads * train.seq_len**2 * w.compute
