"""Ranks that run the worker with a wrong training step: what parity has to find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from group import no_beat

from andromeda_scale import worker
from andromeda_scale.contracts.planned import RankSpec
from andromeda_scale.data.batches import Batches
from andromeda_scale.models.factory import ModelFactory
from andromeda_scale.strategies.ddp import Ddp
from andromeda_scale.strategies.native import Native

WRONG_RANK = 1


def gradients_not_reduced(spec: RankSpec) -> None:
    Ddp.accumulating = lambda self, s, **_: s.wrapped.no_sync()


def gradients_times(factor: float) -> Callable[[RankSpec], None]:
    """Every gradient is `factor` times too large."""

    def plant(spec: RankSpec) -> None:
        backward = Native.backward

        def scaled(self: Any, s: Any, loss: Any, **kwargs: Any) -> None:
            backward(self, s, loss * factor, **kwargs)

        Native.backward = scaled

    return plant


def batch_duplicated(spec: RankSpec) -> None:
    """Every rank reads rank 0's share of the batch."""
    _change(Batches, rank=0)


def weights_of_another_seed(spec: RankSpec) -> None:
    """One rank starts from other weights."""
    if spec.rank == WRONG_RANK:
        _change(ModelFactory, seed=spec.case.seed + 1)


def mask_shifted(by: int) -> Callable[[RankSpec], None]:
    """Each token attends to one token more or less than it should."""

    def plant(spec: RankSpec) -> None:
        import torch
        import torch.nn.functional as F

        attention = F.scaled_dot_product_attention

        def shifted(q: Any, k: Any, v: Any, is_causal: bool = False, **kwargs: Any) -> Any:
            keep = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril(by)
            keep[0, 0] = True
            return attention(q, k, v, attn_mask=keep, **kwargs)

        F.scaled_dot_product_attention = shifted

    return plant


FAULTS: dict[str, Callable[[RankSpec], None]] = {
    "not reduced": gradients_not_reduced,
    "twice": gradients_times(2.0),
    "half": gradients_times(0.5),
    "1 % too large": gradients_times(1.01),
    "overflow": gradients_times(1e4),
    "batch duplicated": batch_duplicated,
    "other weights": weights_of_another_seed,
    "mask + 1": mask_shifted(1),
    "mask - 1": mask_shifted(-1),
}


def run(spec: RankSpec, fault: str) -> None:
    """The worker with a fault."""
    FAULTS[fault](spec)
    worker.main(spec, no_beat)


def ddp_twice(spec: RankSpec, beat: Callable[[str, int, int], None]) -> None:
    """A launcher's worker whose DDP, and nothing else, has gradients of twice the size."""
    if spec.case.strategy.name == "ddp":
        FAULTS["twice"](spec)
    worker.main(spec, beat)


def _change(cls: Any, **overrides: Any) -> None:
    """Build `cls` with other arguments than it is given."""
    init = cls.__init__

    def changed(self: Any, *args: Any, **kwargs: Any) -> None:
        import inspect

        given = inspect.signature(init).bind(self, *args, **kwargs)
        given.arguments.update(overrides)
        init(*given.args, **given.kwargs)

    cls.__init__ = changed
