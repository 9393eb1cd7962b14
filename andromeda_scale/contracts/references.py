"""What a case's first steps are compared with: the cases launched for parity alone. No torch."""

from __future__ import annotations

from typing import Any

from andromeda_scale.registry import model_config
from andromeda_scale.suite.config import Case, Measure, StrategySpec
from andromeda_scale.suite.schema import Device
from andromeda_scale.suite.world import World


class NoShallowForm(ValueError):
    """A model that cannot be had with fewer layers; its text says why."""


def is_own_reference(case: Case) -> bool:
    """Whether a case runs the program of references: one process without a wrapper."""
    return (case.strategy.name, case.driver) == ("single", "native")


def reference_of(case: Case, device: Device) -> Case:
    """The single process whose first losses and gradient norms this case must show.

    Same model, data, seed and global batch, the batch by accumulation; always on the same kind of
    device. It measures nothing, so cases that differ only in what is measured share it, and those
    that differ only in when their update runs (`update_streams`). Under
    `parity: cross` it is not launched: cases that would share it must agree with each other.
    """
    grad_accum = case.global_batch_size // case.train.micro_batch_size
    return Case(
        model_name=case.model_name,
        model=case.model,
        data=case.data.model_copy(update={"prefetch": 0}),
        train=case.train.model_copy(
            update={
                "grad_accum": grad_accum,
                "compile": bool(case.train.compile),
                "update_streams": 1,
            }
        ),
        seed=case.seed,
        env=case.env,
        threads_per_rank=case.threads_per_rank,
        strategy=StrategySpec(name="single"),
        world=World(),
        device=device,
        limits=case.limits,
        collect=(),
        parity="off",
    )


def shallow_of(case: Case, device: Device) -> Case:
    """The case on a model of the same widths with two layers, of which only first steps are run.

    Cases that differ only in what is measured share it. Raises NoShallowForm.
    """
    config = model_config(case.model)
    try:
        model: dict[str, Any] = {"family": case.model["family"], **config.shallow()}
    except ValueError as error:
        raise NoShallowForm(str(error)) from error
    changes: dict[str, Any] = {
        "model_name": f"{case.model_name}-shallow",
        "model": model,
        "measure": Measure(),
        "collect": (),
        "device": device,
        "fallback": "none",
        "regime": "weak",
        "parity": "off",
        "data": case.data.model_copy(update={"prefetch": 0}),
        "faults": (),
    }
    return case.model_copy(update=changes)
