"""The compared steps of one rank: their learning rate, losses and gradient norms.

`parity.py` holds the rule. Norms are taken in warm-up alone: they would slow a measured step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from andromeda_scale.contracts import parity

if TYPE_CHECKING:
    from torch import Tensor

    from andromeda_scale.contracts.planned import RankSpec
    from andromeda_scale.contracts.records import Phase
    from andromeda_scale.strategies.base import Strategy, TrainState


class FirstSteps:
    """The first PARITY_STEPS steps; `gather` exchanges one object with every rank.

    Losses are gathered of all later windows too, because one that is not finite ends the repeat.
    """

    def __init__(
        self,
        spec: RankSpec,
        strategy: Strategy,
        state: TrainState,
        num_parameters: int,
        gather: Callable[[Any], list[Any]],
    ) -> None:
        self._spec, self._train = spec, spec.case.train
        self._strategy, self._state = strategy, state
        self._gather = gather
        dtypes = strategy.expects()["dtypes"].values()
        self._rounding = parity.rounding(self._train.precision, dtypes)
        self._compared = spec.case.parity != "off" or spec.item.role != "measure"
        self._taken: list[Tensor] = []  # norms of the window under way, on the device
        self._losses: list[float] = []  # of the global batch, from step 0
        self._norms: list[float | None] = []
        self._odd: list[int] = []  # ranks whose own loss is not finite in the first such step
        if self._compared:
            rate = parity.learning_rate(num_parameters, self._train.optimizer.name)
            self._set_learning_rate(rate)

    def prepare(self, step: int, phase: Phase) -> Callable[[], None] | None:
        """Give `step` its learning rate; returns what is to be done before its update."""
        if self._compared and step == parity.PARITY_STEPS:
            self._set_learning_rate(self._train.learning_rate)
        among = self._compared and step < parity.PARITY_STEPS
        return self._take if among and phase == "warmup" and self._train.mode != "forward" else None

    def keep(
        self, values: dict[str, Any], loss_sums: Sequence[Tensor], tokens: Sequence[int]
    ) -> None:
        """Read a window's losses and norms; add to the phase's values what is compared of them."""
        mine = {
            "loss_sum": torch.stack(list(loss_sums)).tolist(),
            "tokens": list(tokens),
            "gradient_norm": torch.stack(self._taken).tolist() if self._taken else [],
        }
        self._taken.clear()
        everyone = self._gather(mine)
        self._odd = self._odd or parity.not_finite(everyone)
        left = max(parity.PARITY_STEPS - len(self._losses), 0)
        self._losses += parity.mean_losses(everyone)
        self._norms += parity.norms(everyone)
        if left:
            kept = values.setdefault("losses", {name: [] for name in mine})
            for name, of_steps in mine.items():
                kept[name] += of_steps[:left]
            values["parity"] = self._difference()

    def mismatch(self) -> parity.Mismatch | None:
        """The first step that is not the reference's, or not finite; the same on every rank."""
        found = parity.compare(
            parity.Seen(self._losses, self._norms),
            self._spec.reference,
            self._train.precision,
            judged_as=self._rounding,
            world_size=self._spec.world_size,
            grad_accum=self._train.grad_accum,
        )
        if found is not None and not found.remark and self.odd_ranks:
            return replace(found, remark=f"that of rank {', '.join(map(str, self.odd_ranks))}")
        return found

    @property
    def odd_ranks(self) -> list[int]:
        """Ranks whose own loss is the one that is not finite, where other ranks' losses are."""
        return self._odd if len(self._odd) < self._spec.world_size else []

    def _difference(self) -> dict[str, Any]:
        """How far the steps up to now are from the reference's, and by what they are judged."""
        reference = self._spec.reference or parity.First(losses=())
        steps = parity.PARITY_STEPS
        return {
            "rounding": self._rounding,
            "steps_compared": min(len(reference.losses), len(self._losses), steps),
            "norms_compared": min(len(reference.norms), len(self._norms)),
            "loss_difference": parity.largest_difference(self._losses, reference.losses),
            "norm_difference": parity.largest_difference(self._norms, reference.norms),
            "skipped_steps": parity.skipped_steps(self._norms),
        }

    def _take(self) -> None:
        self._taken.append(self._strategy.gradient_norm(self._state).detach().float())

    def _set_learning_rate(self, rate: float) -> None:
        for group in self._state.optimizer.param_groups:
            group["lr"] = rate
