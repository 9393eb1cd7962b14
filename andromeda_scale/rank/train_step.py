"""The only micro-batch loop: one step of every strategy, in every mode."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from andromeda_scale.data.batches import Source
    from andromeda_scale.rank.planting import Planted
    from andromeda_scale.rank.runtime import Runtime
    from andromeda_scale.strategies.base import Strategy, TrainState
    from andromeda_scale.suite.training import Train

Mark = Callable[[str], AbstractContextManager[object]]


def unmarked(name: str) -> AbstractContextManager[object]:
    """The mark of timed phases: nothing."""
    return nullcontext()


def marked(name: str) -> AbstractContextManager[object]:
    """The mark of phase `profile`: a range a profiler can see."""
    return torch.profiler.record_function(f"andromeda::{name}")


class TrainStep:
    """One step: grad_accum micro-batches, then (mode train_step) clip and update.

    The gradient of a step is that of the mean loss per token of the global batch. Strategies
    average over ranks, so each micro-batch's summed loss is scaled by ranks / global tokens.
    Nothing here waits for the device. `planted`: what the suite's faults do to this rank.
    """

    def __init__(
        self,
        strategy: Strategy,
        state: TrainState,
        batches: Source,
        train: Train,
        rt: Runtime,
        planted: Planted | None = None,
    ) -> None:
        self._strategy = strategy
        self._state = state
        self._batches = batches
        self._train = train
        self._device = rt.device
        self._scale = rt.world_size / batches.global_tokens
        self._planted = planted

    def __call__(
        self,
        step: int,
        mark: Mark = unmarked,
        before_update: Callable[[], None] | None = None,
    ) -> tuple[Tensor, int]:
        """Run step `step`; returns this rank's (summed loss on the device, number of tokens).

        `before_update` is called when gradients are complete and not yet used.
        """
        with mark("step"):
            loss_sum, num_tokens = self._micro_batches(step, mark)
            if before_update is not None:
                before_update()
            if self._train.mode != "forward":
                with mark("update"):
                    if self._train.mode == "train_step":
                        self._strategy.update(self._state)
                    else:
                        self._strategy.discard(self._state)
        return loss_sum, num_tokens

    def _micro_batches(self, step: int, mark: Mark) -> tuple[Tensor, int]:
        total, num_tokens = torch.zeros((), device=self._device), 0
        for index in range(self._train.grad_accum):
            with mark("data"):
                tokens, labels = (
                    to_device(ids, self._device) for ids in self._batches.micro_batch(step, index)
                )
            last = index == self._train.grad_accum - 1
            with mark("forward"), torch.set_grad_enabled(self._train.mode != "forward"):
                if self._planted is not None and index == 0:
                    self._planted.before_forward(step)
                loss_sum, count = self._strategy.forward(
                    self._state, tokens, labels, last_micro_batch=last
                )
            if self._train.mode != "forward":
                with mark("backward"):
                    self._strategy.backward(
                        self._state, loss_sum * self._scale, last_micro_batch=last
                    )
            total += loss_sum.detach()
            num_tokens += count
        return total, num_tokens


def to_device(ids: NDArray[np.int64], device: torch.device) -> Tensor:
    """Copy a batch to the device; on CUDA through pinned memory, without waiting."""
    tensor = torch.from_numpy(ids)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor
