"""One rank, no communication: the reference of parity and the base of speed-up."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from andromeda_scale.cost.layout import Part, StateLayout, Traffic
from andromeda_scale.strategies import common
from andromeda_scale.strategies.base import Strategy, TrainState, Unavailable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from andromeda_scale.models.factory import ModelFactory
    from andromeda_scale.runtime import Runtime
    from andromeda_scale.training import Train
    from andromeda_scale.world import World


class Single(Strategy):
    """The bare module with float32 parameters; bf16 through autocast."""

    name: ClassVar[str] = "single"
    distributed: ClassVar[bool] = False

    @classmethod
    def layout(cls, options: Any, train: Train, world: World) -> StateLayout:
        """16 bytes per parameter: 4 + 4 + 8, under both policies."""
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

    def build(self, factory: ModelFactory, rt: Runtime) -> TrainState:
        """Materialise, compile, wrap; the optimizer updates the float32 parameters."""
        module = factory.build()
        factory.materialise(module, rt.device)
        if self.train.compile:
            common.compile_blocks(module)
        wrapped = self.wrap(module, rt)
        optimizer = common.adamw(module.parameters(), self.train)
        return TrainState(wrapped, module, optimizer, {"device": rt.device})

    def wrap(self, module: nn.Module, rt: Runtime) -> Any:
        """What forward calls."""
        return module

    def forward(
        self, s: TrainState, tokens: Tensor, labels: Tensor, *, last_micro_batch: bool = True
    ) -> tuple[Tensor, int]:
        with common.autocast(s.extra["device"], self.train.precision):
            loss_sum, num_tokens = s.wrapped(tokens, labels)
        return loss_sum, num_tokens

    def backward(self, s: TrainState, loss: Tensor, *, last_micro_batch: bool) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def gradient_norm(self, s: TrainState) -> Tensor:
        return common.local_norm(common.gradients(s.module.parameters()))

    def update(self, s: TrainState) -> None:
        common.clip_plain(s.module.parameters(), self.train.grad_clip)
        s.optimizer.step()
        s.optimizer.zero_grad(set_to_none=True)

    def discard(self, s: TrainState) -> None:
        s.optimizer.zero_grad(set_to_none=True)

    def states(self, s: TrainState) -> dict[str, list[Tensor]]:
        return {
            "parameters": list(s.module.parameters()),
            "gradients": common.gradients(s.module.parameters()),
            "master": [],
            "optimizer_state": list(common.optimizer_tensors(s.optimizer.state)),
        }

    def expects(self) -> dict[str, Any]:
        dtypes = common.expected_dtypes(self.train.precision)
        del dtypes["reduction"]
        return {"wrapper": None, "dtypes": dtypes}

    def without_communication(self, s: TrainState) -> AbstractContextManager[None] | Unavailable:
        return nullcontext()

    def describe(self, s: TrainState) -> dict[str, Any]:
        return {
            "wrapper": common.wrapper_name(s),
            "world_size": 1,
            **common.read_states(self.states(s), None),
        }
