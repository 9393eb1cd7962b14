"""The loss scale of fp16: one rule for whole gradients and for gradients in shards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from andromeda_scale.strategies import common
from andromeda_scale.suite.precision import GROWTH_INTERVAL, INITIAL_LOSS_SCALE

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


class LossScaler(torch.amp.GradScaler):
    """torch's GradScaler that also counts, and that asks every rank before it takes a step.

    Enabled under fp16 alone; otherwise every method passes through what it is given. `group` is
    the ranks that hold shards of the gradient, None where each rank holds all of it: an overflow
    that one shard shows must stop all of them, or the replicas part.
    """

    def __init__(self, precision: str, device: torch.device, group: ProcessGroup | None) -> None:
        super().__init__(
            device.type,
            init_scale=INITIAL_LOSS_SCALE,
            growth_interval=GROWTH_INTERVAL,
            enabled=precision == "fp16",
        )
        self._group = group
        self._one = torch.ones((), device=device)
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)

    def current(self) -> Tensor:
        """The scale now, a scalar on the device: 1 if disabled."""
        return self.scale(self._one)

    def update(self, new_scale: float | Tensor | None = None) -> None:
        before = self.current()
        super().update(new_scale)
        # The scale falls after a skipped step and at no other time; nothing waits for the answer.
        self._skipped += self.current() < before

    def describe(self) -> dict[str, Any] | None:
        """Scale and number of skipped steps; None if disabled."""
        if not self.is_enabled():
            return None
        return {"scale": float(self.current()), "skipped_steps": int(self._skipped)}

    def _unscale_grads_(
        self,
        optimizer: torch.optim.Optimizer,
        inv_scale: Tensor,
        found_inf: Tensor,
        allow_fp16: bool,
    ) -> dict[torch.device, Tensor]:
        # torch's own cannot: it sees one rank, or (DTensors) reduces on the gradients' device,
        # where a group of GPUs has no backend for gradients that were offloaded to the host.
        if self._group is None:
            return super()._unscale_grads_(optimizer, inv_scale, found_inf, allow_fp16)
        grads = common.gradients(p for group in optimizer.param_groups for p in group["params"])
        if grads:
            place = grads[0].device
            here = found_inf.to(place)
            torch._amp_foreach_non_finite_check_and_unscale_(grads, here, inv_scale.to(place))
            found_inf = here.to(inv_scale.device)
            if place != inv_scale.device:
                # A fused step would copy found_inf to the host without waiting for it.
                # Set by torch alone, and nowhere declared.
                optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        dist.all_reduce(found_inf, op=dist.ReduceOp.MAX, group=self._group)
        return {found_inf.device: found_inf}
