"""What torch's own strategies share: one way of forward, backward, clipping and update."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from andromeda_scale.strategies import common
from andromeda_scale.strategies.base import Strategy, TrainState

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.distributed import ProcessGroup


class Native(Strategy):
    """A wrapped module, a torch optimizer and a loss scaler, which does nothing but under fp16."""

    # Whether low precision comes from torch.autocast; False: the wrapper casts its parameters.
    autocasts: ClassVar[bool] = False

    def state(
        self,
        wrapped: Any,
        module: nn.Module,
        device: torch.device,
        *,
        sharded_over: ProcessGroup | None = None,
        first: Collection[nn.Parameter] = (),
    ) -> TrainState:
        """Add optimizer and scaler; `sharded_over`: the ranks whose shards make the gradient.

        The parameters `first`, which are not all, are a group of their own, updated before the
        others.
        """
        import torch

        from andromeda_scale.strategies import scaling

        parameters = list(module.parameters())  # no walk in every step
        updated = common.local_parameters(parameters)
        optimizer = common.optimizer(updated, self.train)
        scaler = scaling.LossScaler(self.train.precision, device, sharded_over)
        on_gpu = all(p.is_cuda for p in updated) and optimizer.defaults.get("fused")
        halves = bool(on_gpu and self.train.update_streams == 2 and not scaler.is_enabled())
        early = {id(p) for p in first}
        pairs = zip(parameters, updated, strict=True)
        common.update_in_parts(optimizer, [u for p, u in pairs if id(p) in early], halves=halves)
        extra = {"device": device, "scaler": scaler, "sharded_over": sharded_over}
        extra |= {"parameters": parameters, "updated": updated}
        extra["beside"] = torch.cuda.Stream(device) if halves else None
        return TrainState(wrapped, module, optimizer, extra)

    def accumulating(self, s: TrainState, *, last_micro_batch: bool) -> AbstractContextManager[Any]:
        """Around forward and around backward: only the last micro-batch reduces gradients."""
        return nullcontext()

    def forward(
        self, s: TrainState, tokens: Tensor, labels: Tensor, *, last_micro_batch: bool = True
    ) -> tuple[Tensor, int]:
        low = common.autocast(s.extra["device"], self.train.precision, enabled=self.autocasts)
        with self.accumulating(s, last_micro_batch=last_micro_batch), low:
            loss_sum, num_tokens = s.wrapped(tokens, labels)
        return loss_sum, num_tokens

    def backward(self, s: TrainState, loss: Tensor, *, last_micro_batch: bool) -> None:
        with self.accumulating(s, last_micro_batch=last_micro_batch):
            s.extra["scaler"].scale(loss).backward()

    def gradient_norm(self, s: TrainState) -> Tensor:
        norm: Tensor = self.norm(s) / s.extra["scaler"].current()
        return norm

    def norm(self, s: TrainState) -> Tensor:
        """Norm of the gradients as they are: whole here, or one part of them on every rank."""
        found = common.gradients(s.extra["parameters"])
        return common.total_norm(found, s.extra["device"], s.extra["sharded_over"])

    def clip(self, s: TrainState, max_norm: float) -> None:
        """Scale gradients to `max_norm`, in the update itself where its kernel takes a scale."""
        import torch

        parameters = [p for p in s.extra["updated"] if p.grad is not None]
        norm = self.norm(s)
        if parameters and s.optimizer.defaults.get("fused") and not s.extra["scaler"].is_enabled():
            # A fused kernel divides by it: one pass over the gradients less than torch's clipping,
            # of which this is the reciprocal factor.
            scale = ((norm + 1e-6) / max_norm).clamp(min=1.0).to(parameters[0].device)
            s.optimizer.grad_scale = scale
        else:
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)

    def update(self, s: TrainState) -> None:
        scaler = s.extra["scaler"]
        common.hand_over(s.extra["parameters"], s.extra["updated"])
        scaler.unscale_(s.optimizer)
        if self.train.grad_clip is not None:
            self.clip(s, self.train.grad_clip)
        self.step(s)
        scaler.update()
        self.discard(s)

    def step(self, s: TrainState) -> None:
        """The optimizer's step, of gradients that are clipped or about to be.

        On a GPU in two halves, side by side: each launch of torch's fused kernel ends with a part
        of the GPU idle. Under fp16 it is one, and alone may wait for the device: torch's scaler
        asks whether to skip it, unless the optimizer's kernel can be told on the device.
        """
        if (scaler := s.extra["scaler"]).is_enabled():
            scaler.step(s.optimizer)
        else:
            common.step_groups(s.optimizer, s.optimizer.param_groups, s.extra["beside"])

    def discard(self, s: TrainState) -> None:
        s.optimizer.grad_scale = None
        s.optimizer.zero_grad(set_to_none=True)
        for parameter in s.extra["parameters"]:  # of which the optimizer may hold parts
            parameter.grad = None

    def states(self, s: TrainState) -> dict[str, list[Tensor]]:
        parameters = self.parameters(s)
        return {
            "parameters": [common.local(p) for p in parameters],
            "gradients": common.gradients(parameters),
            "master": [],
            "optimizer_state": list(common.optimizer_tensors(s.optimizer.state)),
        }

    def parameters(self, s: TrainState) -> list[Any]:
        """What the optimizer updates, with the gradients on it."""
        return list(s.module.parameters())

    def describe(self, s: TrainState) -> dict[str, Any]:
        wrapper = self.wrapper(s)
        if wrapper != self.expects()["wrapper"]:  # which is then `invalid`
            return {"wrapper": wrapper}
        return {
            "wrapper": wrapper,
            **common.read_states(self.states(s), self.reduction(s)),
            "optimizer": common.optimizer_facts(s.optimizer),
            "loss_scale": s.extra["scaler"].describe(),
            "gradient_clipping": self.train.grad_clip or "none",  # what update() clips to
            "update": {"streams": 1 if s.extra.get("beside") is None else 2, **self.early(s)},
            **self.facts(s),
        }

    def early(self, s: TrainState) -> dict[str, bool]:
        """What of an update is begun before its turn, and whether it is."""
        return {}

    def wrapper(self, s: TrainState) -> str | None:
        """The class around the model; None for the bare module."""
        return common.wrapper_name(s)

    @abstractmethod
    def reduction(self, s: TrainState) -> str | None:
        """The dtype in which gradients cross the network, from live objects; None: they do not."""

    @abstractmethod
    def facts(self, s: TrainState) -> dict[str, Any]:
        """`world_size`, and what else describe() reads back of this strategy alone."""
