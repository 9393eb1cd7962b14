"""One rank, no communication: the reference of parity and the base of speed-up."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from andromeda_scale.cost import working
from andromeda_scale.cost.layout import Part, StateLayout, Traffic
from andromeda_scale.cost.working import Device, Sizes, Working
from andromeda_scale.strategies import common
from andromeda_scale.strategies.base import TrainState, Unavailable
from andromeda_scale.strategies.native import Native

if TYPE_CHECKING:
    from torch import nn

    from andromeda_scale.models.factory import ModelFactory
    from andromeda_scale.rank.runtime import Runtime
    from andromeda_scale.suite.training import Train
    from andromeda_scale.suite.world import World


class Single(Native):
    """The bare module with float32 parameters; low precision through autocast."""

    name: ClassVar[str] = "single"
    distributed: ClassVar[bool] = False
    accelerate_on: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda"})
    autocasts: ClassVar[bool] = True
    whole_graph: ClassVar[bool] = True

    @classmethod
    def layout(cls, options: Any, train: Train, world: World) -> StateLayout:
        """16 bytes per parameter with Adam: 4 + 4 + 8, under every policy."""
        return StateLayout(
            parameters=Part(4),
            gradients=Part(4),
            master=Part(0),
            optimizer_state=Part(train.optimizer.state_bytes),
        )

    @classmethod
    def traffic(cls, options: Any, train: Train, world: World) -> Traffic:
        """None."""
        return Traffic()

    @classmethod
    def working(
        cls, options: Any, train: Train, world: World, sizes: Sizes, device: Device
    ) -> Working:
        return working.whole_gradients(sizes, train)

    def build(self, factory: ModelFactory, rt: Runtime) -> TrainState:
        """Materialise, compile, wrap; the optimizer updates the float32 parameters."""
        module = factory.build()
        factory.materialise(module, rt.device)
        common.compile_model(module, self.train)
        return self.state(self.wrap(module, rt), module, rt.device)

    def wrap(self, module: nn.Module, rt: Runtime) -> Any:
        """What forward calls."""
        return module

    def accelerator(self, rt: Runtime, num_parameters: int) -> dict[str, Any]:
        return {}

    def expects(self) -> dict[str, Any]:
        dtypes = common.expected_dtypes(self.train.precision)
        del dtypes["reduction"]
        return {"wrapper": None, "dtypes": dtypes}

    def without_communication(self, s: TrainState) -> AbstractContextManager[None] | Unavailable:
        return nullcontext()

    def reduction(self, s: TrainState) -> str | None:
        return None

    def facts(self, s: TrainState) -> dict[str, Any]:
        return {"world_size": 1}
