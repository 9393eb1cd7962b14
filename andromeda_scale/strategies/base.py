"""The seam of strategies: how the model is spread over ranks. Importing this imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from andromeda_scale.suite import kernels, precision
from andromeda_scale.suite.schema import Schema

if TYPE_CHECKING:
    from torch import Tensor, nn

    from andromeda_scale.cost.layout import StateLayout, Traffic
    from andromeda_scale.cost.working import Device, Sizes, Working
    from andromeda_scale.models.factory import ModelFactory
    from andromeda_scale.rank.runtime import Runtime
    from andromeda_scale.suite.training import Train
    from andromeda_scale.suite.world import World


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


class Strategy(ABC):
    """How the model is spread over ranks. One instance serves one repeat in one rank.

    The class attributes and class methods are torch-free: `plan` and `list` use them.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Schema]] = NoOptions
    distributed: ClassVar[bool] = True  # False: one rank only (single)
    requires: ClassVar[tuple[str, ...]] = ()  # packages; a missing one: the case is `unavailable`
    preload: ClassVar[tuple[str, ...]] = ()  # modules that are imported before ranks are forked
    fused: ClassVar[frozenset[str]] = frozenset()  # parts that cannot be timed apart: "update", ...
    # The kinds of device on which driver `accelerate` can wrap this strategy.
    accelerate_on: ClassVar[frozenset[str]] = frozenset()
    whole_graph: ClassVar[bool] = False  # nothing but the model's own forward runs between blocks
    prepared_on: ClassVar[str | None] = None  # where it takes the whole model; None: on the device

    def __init__(self, options: Any, train: Train) -> None:
        self.options = options
        self.train = train

    @classmethod
    def refuses(cls, options: Any, train: Train, world: World, device: str) -> str | None:
        """Why a case of these settings cannot run on this kind of device; None if it can.

        The reason starts with the key to change, such as "train.grad_accum: ...". What is said
        here holds for every strategy: those with reasons of their own ask this first.
        """
        if train.compiling and train.compiling.whole and not cls.whole_graph:
            return (
                f"train.compile: whole: true, and {cls.name} gathers weights block by block; use "
                "compile: true, or strategy single or ddp"
            )
        return precision.refusal(train.precision, device) or kernels.refusal(train, device)

    @classmethod
    def refuses_apart(cls, options: Any) -> str | None:
        """Why a model that calls its blocks one by one cannot be had; None if it can."""
        return None

    @classmethod
    @abstractmethod
    def layout(cls, options: Any, train: Train, world: World) -> StateLayout:
        """Bytes of parameters, gradients, optimizer state per parameter and how each is sharded."""

    @classmethod
    @abstractmethod
    def traffic(cls, options: Any, train: Train, world: World) -> Traffic:
        """Elements communicated per rank and step, by collective, in units of P."""

    @classmethod
    @abstractmethod
    def working(
        cls, options: Any, train: Train, world: World, sizes: Sizes, device: Device
    ) -> Working:
        """Bytes a rank holds beside the states of `layout` while a step runs."""

    @abstractmethod
    def build(self, factory: ModelFactory, rt: Runtime) -> TrainState:
        """Model on meta, wrapped, materialised with the seed's weights, compiled; optimizer."""

    def prepare(self, factory: ModelFactory, rt: Runtime) -> nn.Module:
        """The compiled module with the seed's weights that driver `accelerate` wraps: whole."""
        from andromeda_scale.strategies import common

        module = factory.build()
        factory.materialise(module, rt.device, parameters_on=self.prepared_on)
        common.compile_model(module, self.train)
        return module

    # Most need nothing here.
    def prepared(self, factory: ModelFactory, module: nn.Module) -> None:  # noqa: B027
        """Mend what a wrapper has done to the weights of the `module` it took."""

    @abstractmethod
    def forward(
        self, s: TrainState, tokens: Tensor, labels: Tensor, *, last_micro_batch: bool = True
    ) -> tuple[Tensor, int]:
        """(summed loss, number of tokens) of one micro-batch: tokens, labels are (B, T) int64."""

    @abstractmethod
    def backward(self, s: TrainState, loss: Tensor, *, last_micro_batch: bool) -> None:
        """Backward of a scaled loss. Gradients end as the mean over ranks of sums over
        micro-batches, so `train_step` scales loss by num_ranks / tokens of the global batch."""

    @abstractmethod
    def gradient_norm(self, s: TrainState) -> Tensor:
        """Euclidean norm of the whole model's gradient, reduced over ranks, before clipping.

        A collective call between the last backward and update or discard; a scalar on the device,
        the same on every rank, with the loss scale of fp16 divided out.
        """

    @abstractmethod
    def update(self, s: TrainState) -> None:
        """Clip, step, zero gradients."""

    @abstractmethod
    def discard(self, s: TrainState) -> None:
        """Drop the gradients without an update: the end of a step of mode forward_backward."""

    @abstractmethod
    def states(self, s: TrainState) -> dict[str, list[Tensor]]:
        """What this rank holds now, as local tensors: parameters, gradients, master (empty where
        the parameters are it), optimizer_state. Complete between a backward and its update."""

    def hidden_bytes(self, s: TrainState) -> int:
        """Bytes on a CPU that live from step to step and that no tensor of Python's shows."""
        return 0

    def communication_buffers(self, s: TrainState) -> dict[str, int]:
        """Bytes that live communication buffers hold now beside `states`, by name."""
        return {}

    @abstractmethod
    def expects(self) -> dict[str, Any]:
        """What describe() must read back: wrapper, and dtypes of the precision policy."""

    def without_communication(self, s: TrainState) -> AbstractContextManager[None] | Unavailable:
        """Steps inside communicate no gradients or parameters: the ablation of METRICS."""
        return Unavailable(f"{self.name} cannot compute without communication")

    @classmethod
    def as_accelerated(cls, options: Any) -> Any:
        """The options that driver `accelerate` gives effect to, where it decides one by itself."""
        return options

    def accelerator(self, rt: Runtime, num_parameters: int) -> dict[str, Any]:
        """Arguments of `accelerate.Accelerator` that make it this strategy, for `accelerate_on`."""
        raise NotImplementedError(f"{self.name} is not driven by accelerate")

    @abstractmethod
    def describe(self, s: TrainState) -> dict[str, Any]:
        """What really happened, read from live objects: wrapper (class name, null for a
        bare module), world_size, dtypes (parameters, master, gradients, optimizer_state,
        reduction), bytes (of states), buckets or units. Never what was asked."""
