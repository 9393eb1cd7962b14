"""The seam of strategies: how the model is spread over ranks. Importing this imports no torch."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from andromeda_scale.config import Schema

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from andromeda_scale.config import Train
    from andromeda_scale.cost.layout import StateLayout, Traffic
    from andromeda_scale.models.factory import ModelFactory
    from andromeda_scale.runtime import Runtime


class NoOptions(Schema):
    """A strategy without options."""


@dataclass
class TrainState:
    """What a strategy built. `wrapped` is what forward calls, `module` the bare model in it."""

    wrapped: Any
    module: nn.Module
    optimizer: Any
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Unavailable:
    """Why something cannot be had here."""

    reason: str


class Strategy(Protocol):
    """How the model is spread over ranks. One instance serves one repeat in one rank.

    The class attributes and class methods are torch-free: `plan` and `list` use them.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Schema]]
    distributed: ClassVar[bool]  # False: one rank only (single)
    requires: ClassVar[tuple[str, ...]]  # packages; a missing one makes the case `unavailable`
    fused: ClassVar[frozenset[str]]  # parts that cannot be timed apart: "forward", "update", ...

    def __init__(self, options: Any, train: Train) -> None: ...

    @classmethod
    def layout(cls, options: Any, precision: str, num_ranks: int) -> StateLayout:
        """Bytes of parameters, gradients, optimizer state per parameter and how each is sharded."""
        ...

    @classmethod
    def traffic(cls, options: Any, precision: str, num_ranks: int) -> Traffic:
        """Elements communicated per rank and step, by collective, in units of P."""
        ...

    def build(self, factory: ModelFactory, rt: Runtime) -> TrainState:
        """Model on meta, wrapped, materialised with the seed's weights, compiled; optimizer."""
        ...

    def forward(
        self, s: TrainState, tokens: Tensor, labels: Tensor, *, last_micro_batch: bool = True
    ) -> tuple[Tensor, int]:
        """(summed loss, number of tokens) of one micro-batch: tokens, labels are (B, T) int64."""
        ...

    def backward(self, s: TrainState, loss: Tensor, *, last_micro_batch: bool) -> None:
        """Backward of a scaled loss. Gradients end as the mean over ranks of sums over
        micro-batches, so `train_step` scales loss by num_ranks / tokens of the global batch."""
        ...

    def update(self, s: TrainState) -> torch.Tensor | None:
        """Clip, step, zero gradients; the gradient norm before clipping where it is known."""
        ...

    def discard(self, s: TrainState) -> None:
        """Drop the gradients without an update: the end of a step of mode forward_backward."""
        ...

    def states(self, s: TrainState) -> dict[str, list[Tensor]]:
        """What this rank holds now, as local tensors: parameters, gradients, master (empty where
        the parameters are it), optimizer_state. Complete between a backward and its update."""
        ...

    def expects(self) -> dict[str, Any]:
        """What describe() must read back: wrapper, and dtypes of the precision policy."""
        ...

    def without_communication(self, s: TrainState) -> AbstractContextManager[None] | Unavailable:
        """Steps inside communicate no gradients or parameters: the ablation of METRICS."""
        ...

    def describe(self, s: TrainState) -> dict[str, Any]:
        """What really happened, read from live objects: wrapper (class name, null for a
        bare module), world_size, dtypes (parameters, master, gradients, optimizer_state,
        reduction), bytes (of states), buckets or units. Never what was asked."""
        ...
