"""What a rank is made of: its strategy in the hands of its driver, and its share of the data."""

from __future__ import annotations

import importlib.util
from typing import Any

from andromeda_scale import registry
from andromeda_scale.contracts.planned import RankSpec
from andromeda_scale.data.batches import Batches, Source
from andromeda_scale.data.prefetch import Prefetched
from andromeda_scale.rank import planting
from andromeda_scale.rank.failures import Invalid, UnavailableHere
from andromeda_scale.suite import faults


def make_strategy(spec: RankSpec) -> Any:
    """The case's strategy under its driver.

    Raises UnavailableHere for what is missing or refused here, Invalid for a world it cannot have.
    """
    case, device = spec.case, spec.item.device
    strategy = registry.load("strategy", case.strategy.name)
    for package in strategy.requires:
        if importlib.util.find_spec(package) is None:
            raise UnavailableHere(f"{strategy.name} needs {package}; pip install {package}")
    if not strategy.distributed and spec.world_size > 1:
        raise Invalid(f"{strategy.name} runs on one rank, not {spec.world_size}")
    options = strategy.Options.model_validate(case.strategy.options)
    reason = strategy.refuses(options, case.train, case.world, device)
    if reason is not None:
        raise UnavailableHere(reason)
    made = strategy(options, case.train)
    if case.driver == "native":
        return made
    driver = registry.load("driver", case.driver)
    reason = driver.refuses(strategy, case.train, case.world, device)
    if reason is not None:
        raise UnavailableHere(reason)
    return driver(made)


def make_batches(spec: RankSpec, vocab_size: int) -> Batches:
    """This rank's share of the global batches."""
    train = spec.case.train
    return Batches(
        spec.case.data,
        vocab_size=vocab_size,
        seq_len=train.seq_len,
        micro_batch_size=train.micro_batch_size,
        grad_accum=train.grad_accum,
        rank=spec.rank,
        world_size=spec.world_size,
        seed=spec.case.seed,
        uneven=faults.uneven(spec.case.faults, train.micro_batch_size),
    )


def make_source(spec: RankSpec, batches: Batches) -> Source:
    """Where the training step finds them: read when asked for, or ahead by a thread."""
    source, ahead = planting.slowed(batches, spec), spec.case.data.prefetch
    return Prefetched(source, ahead, spec.case.train.grad_accum) if ahead else source
