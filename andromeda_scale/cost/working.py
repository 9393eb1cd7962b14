"""What strategies hold beside their states while a step runs, by mechanism. No torch.

Sizes and times are those of torch 2.13 and DeepSpeed 0.19, read in their sources and measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from andromeda_scale.cost.layout import blocks_per_unit
from andromeda_scale.cost.model import (
    Shape,
    block_matrices,
    block_parameters,
    num_parameters,
    root_parameters,
)
from andromeda_scale.suite.precision import POLICIES, element_bytes
from andromeda_scale.suite.schema import Device as Device  # strategies have it from here
from andromeda_scale.suite.training import Train

_FP32 = 4


@dataclass(frozen=True)
class Sizes:
    """Elements of the parameters that strategies treat apart."""

    parameters: int
    block: int  # of one block
    root: int  # outside the blocks
    table: int  # the embedding's, and the head's matrix: the largest tensors
    num_blocks: int
    tied: bool  # both are one parameter, whose gradient then comes in two parts
    matrices: tuple[int, ...]  # of each tensor but scales and biases

    @classmethod
    def of(cls, shape: Shape) -> Sizes:
        """The sizes of a model."""
        return cls(
            parameters=num_parameters(shape),
            block=block_parameters(shape),
            root=root_parameters(shape),
            table=shape.vocab_size * shape.d_model,
            num_blocks=shape.num_layers,
            tied=shape.tied_head,
            matrices=(
                *(shape.num_layers * block_matrices(shape)),
                *((1 if shape.tied_head else 2) * (shape.vocab_size * shape.d_model,)),
                shape.num_positions * shape.d_model,
            ),
        )

    def in_small_tensors(self, most: int) -> int:
        """Elements in scales, biases, and matrices of at most so many."""
        return self.parameters - sum(size for size in self.matrices if size > most)


@dataclass(frozen=True)
class Working:
    """Bytes beside parameters, master and optimizer state, at five moments of a step.

    Gradients are counted here, in the form they have at that moment. `on_host`: the part of
    `update` that lies on the host where the states do.
    """

    autocast: bool = False  # fp32 parameters under torch.autocast
    loss: float = 0.0  # forward has ended: weights gathered, gradients of earlier micro-batches
    head: float = 0.0  # the head's gradient exists
    block: float = 0.0  # the last block's gradients exist
    end: float = 0.0  # the last backward has ended, or an earlier one that holds more
    update: float = 0.0  # the optimizer begins
    # Elements whose temporaries an update makes at once: of this rank's, all by default.
    updated_at_once: float | None = None
    on_host: float = 0.0  # gradients and buffers that lie on the host, all the time


def whole_gradients(s: Sizes, train: Train) -> Working:
    """fp32 gradients of whole parameters, one by one: torch's own accumulation."""
    earlier = _FP32 * s.parameters if _accumulates(train) else 0
    table = _FP32 * s.table
    twice = table if s.tied or earlier else 0  # one more part of it, to be added
    all_of_them = _FP32 * s.parameters
    return Working(
        autocast=True,
        loss=earlier,
        head=earlier + table,
        block=max(earlier, table) + _FP32 * s.block,
        end=all_of_them + twice,
        update=all_of_them,
    )


def bucketed_gradients(s: Sizes, train: Train, *, views: bool, compressed: int) -> Working:
    """DDP: buckets of all gradients, made once; `views`: the gradients themselves.

    A gradient is a tensor of its own until its hook has copied it into its bucket.
    `compressed`: bytes of an element on its way, 0 for the bucket itself.
    """
    plain = whole_gradients(s, train)
    buckets, copies = _FP32 * s.parameters, compressed * s.parameters
    own = plain.end if _accumulates(train) or not views else _FP32 * s.table
    return Working(
        autocast=True,
        loss=buckets + plain.loss,
        head=buckets + plain.head,
        block=buckets + plain.block,
        end=buckets + max(own, copies if views else own + copies),
        update=buckets + (0 if views else plain.update),
    )


def sharded_units(
    s: Sizes,
    train: Train,
    *,
    shards: int,
    kept: bool,
    flat: bool,
    device: Device,
    offloaded: bool = False,
    ahead: int = 0,
    early: bool = False,
    together: int | None = 1,
    reduced: str = "float32",
) -> Working:
    """FSDP: a unit at a time and the root are gathered, and reduced when their backward ends.

    `kept`: forward leaves the blocks gathered; `flat`: a unit is one parameter (FSDP1), whose
    gradient is put together beside its parts; `ahead`: units gathered before they are used, and
    `early` those that forward begins with, during the update;
    `together`: blocks of a unit (blocks_per_unit); `reduced`: the dtype of reduced gradients.
    """
    gathered = element_bytes(POLICIES[train.precision].compute)
    reduced_bytes = element_bytes(reduced)
    in_unit = blocks_per_unit(together, s.num_blocks, s.block) * s.block
    root, unit = gathered * s.root, gathered * in_unit
    all_blocks = gathered * (s.parameters - s.root)
    blocks = all_blocks if kept else 0
    # Between micro-batches gradients stay whole and unreduced; FSDP1's in the compute dtype.
    earlier = (gathered if flat else reduced_bytes) * s.parameters if _accumulates(train) else 0
    # gloo's threads keep what they sent last, the CPU cuts gradients into copies, and gloo
    # all-reduces a copy of a reduce-scatter's input.
    gloo = device == "cpu" and shards > 1
    copies = 2 if gloo else 1
    if flat:
        cast = reduced_bytes if reduced_bytes != gathered else 0
        ways = (
            3 * gathered,  # the weights, the parts of the gradient, the gradient
            gathered
            + cast
            + (copies - 1 + 1 / shards) * reduced_bytes,  # it, its cast, what is sent
        )
    else:
        ways = (gathered + copies * reduced_bytes, (copies + 1 / shards) * reduced_bytes)
    reducing = max(ways)
    offloaded = offloaded and device == "cuda"
    shard = 0.0 if offloaded else _FP32 / shards
    # FSDP2's embedding is the last to be reduced, and what is behind the blocks the first.
    split = not (flat or s.tied)
    last, first = (s.table, s.root - s.table) if split else (s.root, 0)
    ends = [shard * (s.parameters - last) + reducing * last + (unit if gloo else 0)]
    if earlier:
        whole = earlier + root + max(root + 3 * unit, (2 if flat else 1) * root)
        ends.append(whole)  # the root is gathered again, flat and then as weights
    kept_last = 0 if flat else unit
    held = blocks or min((1 + ahead) * unit, all_blocks)
    of_head = max(gathered * s.table, reducing * first)
    under_way = (shard + (0 if gloo else reduced_bytes)) * first if split else gathered * s.table
    return Working(
        loss=root + earlier + (blocks or kept_last or (unit if gloo else 0)),
        head=root + (blocks or unit) + earlier + of_head,
        block=root + held + under_way + earlier + reducing * in_unit,
        end=max(ends),
        update=shard * s.parameters + (gathered * last + unit if early else 0),
        on_host=_FP32 * s.parameters / shards if offloaded else 0.0,
    )


def _accumulates(train: Train) -> bool:
    return train.grad_accum > 1 and train.mode != "forward"
