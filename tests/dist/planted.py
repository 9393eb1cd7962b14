"""Ranks that run the worker with something planted in every forward of DDP."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from group import no_beat

from andromeda_scale import worker
from andromeda_scale.planned import RankSpec
from andromeda_scale.strategies.ddp import Ddp

PLANTED_S = 0.06
PLANTED_BYTES = 256 * 2**20  # far above what first steps leave behind
SLOW_RANK = 1


def compute() -> None:
    """Real matrix products for PLANTED_S."""
    import torch

    a = torch.ones(128, 128)
    end = time.perf_counter() + PLANTED_S
    while time.perf_counter() < end:
        torch.mm(a, a)


def sleep() -> None:
    """A host that is late without computing."""
    time.sleep(PLANTED_S)


def memory() -> None:
    """PLANTED_BYTES touched and given back."""
    import torch

    torch.ones(PLANTED_BYTES, dtype=torch.uint8)


def slow_rank(spec: RankSpec, plant: Callable[[], None]) -> None:
    """The worker; SLOW_RANK does `plant` in every forward."""

    def before_forward(_: Any) -> AbstractContextManager[None]:
        if spec.rank == SLOW_RANK:
            plant()
        return nullcontext()

    _run(spec, before_forward)


def first_step(spec: RankSpec, plant: Callable[[], None]) -> None:
    """The worker; every rank does `plant` in its first forward alone."""
    plants = iter([plant])

    def before_forward(_: Any) -> AbstractContextManager[None]:
        for first in plants:
            first()
        return nullcontext()

    _run(spec, before_forward)


def silent(spec: RankSpec) -> None:
    """The worker; no gradient is ever reduced."""
    _run(spec, lambda wrapped: wrapped.no_sync())


def _run(spec: RankSpec, around: Callable[[Any], AbstractContextManager[None]]) -> None:
    original = Ddp.forward

    def forward(self: Ddp, s: Any, *args: Any, **kwargs: Any) -> Any:
        with around(s.wrapped):
            return original(self, s, *args, **kwargs)

    Ddp.forward = forward  # type: ignore[method-assign]
    worker.main(spec, no_beat)
