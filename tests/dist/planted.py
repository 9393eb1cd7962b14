"""Ranks that run the worker with something planted in a library."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from group import no_beat

from andromeda_scale import worker
from andromeda_scale.collectors.witness import Witness
from andromeda_scale.contracts.planned import RankSpec
from andromeda_scale.strategies.ddp import Ddp

PLANTED_BYTES = 256 * 2**20  # far above what first steps leave behind


def memory() -> None:
    """PLANTED_BYTES touched and given back."""
    import torch

    torch.ones(PLANTED_BYTES, dtype=torch.uint8)


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


def blind(spec: RankSpec) -> None:
    """The worker; rank 1 cannot read what its connections received."""

    def refused(self: Witness) -> None:
        raise PermissionError("/proc/net/tcp")

    if spec.rank == 1:
        Witness.start = refused
    worker.main(spec, no_beat)


def unprofiled(spec: RankSpec) -> None:
    """The worker; a range that DeepSpeed announces to Nsight ends it."""
    from deepspeed.accelerator import get_accelerator

    def announced(name: str) -> None:
        raise AssertionError(f"a range named {name}")

    get_accelerator().range_push = announced
    worker.main(spec, no_beat)


def _run(spec: RankSpec, around: Callable[[Any], AbstractContextManager[None]]) -> None:
    original = Ddp.forward

    def forward(self: Ddp, s: Any, *args: Any, **kwargs: Any) -> Any:
        with around(s.wrapped):
            return original(self, s, *args, **kwargs)

    Ddp.forward = forward
    worker.main(spec, no_beat)
