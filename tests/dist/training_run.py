"""A few steps of one case on real ranks, and everything that claims about a strategy need."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from group import Group, tiny_case
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from andromeda_scale import registry
from andromeda_scale.contracts.planned import RankSpec
from andromeda_scale.data.batches import Batches
from andromeda_scale.models.factory import ModelFactory
from andromeda_scale.rank import runtime
from andromeda_scale.rank.train_step import TrainStep

STEPS = 3

Trace = dict[str, Any]


def full_parameters(state: Any) -> dict[str, torch.Tensor]:
    """The whole float32 masters, on every rank."""
    found = {}
    if isinstance(state.wrapped, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(state.wrapped, writeback=False):
            return {
                name.replace("_fsdp_wrapped_module.", ""): value.detach().clone()
                for name, value in state.module.named_parameters()
            }
    for name, parameter in state.module.named_parameters():
        if isinstance(parameter, DTensor):
            found[name] = parameter.full_tensor()
        elif hasattr(state.wrapped, "zero_optimization_stage"):
            from deepspeed.utils import safe_get_full_fp32_param

            found[name] = safe_get_full_fp32_param(parameter)
        else:
            found[name] = parameter.detach()
    return {name: value.detach().clone().float() for name, value in found.items()}


def make_strategy(case: Any) -> Any:
    """The case's strategy in its driver, as the worker makes it."""
    kind = registry.load("strategy", case.strategy.name)
    strategy = kind(kind.Options.model_validate(case.strategy.options), case.train)
    if case.driver != "native":
        strategy = registry.load("driver", case.driver)(strategy)
    return strategy


def built(case: Any, rt: runtime.Runtime) -> tuple[Any, Any, TrainStep]:
    """(strategy, state, step) of a case on one rank."""
    strategy = make_strategy(case)
    factory = ModelFactory(case.model, case.train, case.seed)
    state = strategy.build(factory, rt)
    batches = Batches(
        case.data,
        vocab_size=factory.config.vocab_size,
        seq_len=case.train.seq_len,
        micro_batch_size=case.train.micro_batch_size,
        grad_accum=case.train.grad_accum,
        rank=rt.rank,
        world_size=rt.world_size,
        seed=case.seed,
    )
    return strategy, state, TrainStep(strategy, state, batches, case.train, rt)


def train(spec: RankSpec, out: str, first_scale: float | None = None) -> None:
    """Build, take STEPS steps, and save weights, losses, norms before clipping, what was read.

    `first_scale`: the loss scale of DeepSpeed's first step, to see it overflow.
    """
    case = spec.case
    rt = runtime.start(spec)
    runtime.init_process_group(spec, rt)
    strategy, state, step = built(case, rt)
    trace: Trace = {"weights": full_parameters(state), "norms": [], "losses": [], "read": []}

    def before_update() -> None:
        if case.train.mode != "forward":
            trace["norms"].append(float(strategy.gradient_norm(state)))
        trace["read"].append(strategy.describe(state))

    if first_scale is not None:
        state.optimizer.loss_scaler.cur_scale = first_scale
    trace |= {"scales": [], "moved": []}
    for index in range(STEPS):
        loss_sum, tokens = step(index, before_update=before_update)
        trace["losses"].append((float(loss_sum), tokens))
        if first_scale is not None:
            trace["scales"].append(strategy.describe(state)["loss_scale"])
            trace["moved"].append(largest_difference(full_parameters(state), trace["weights"]))
    trace["trained"] = full_parameters(state)
    trace["after"] = strategy.describe(state)
    trace["expects"] = strategy.expects()
    trace["threads"] = torch.get_num_threads()
    torch.save(trace, f"{out}-{rt.rank}")


def runner(group: Group, directory: Path) -> Callable[..., list[Trace]]:
    """run(strategy, precision, ranks, grad_accum, ...) -> what each rank saved; each run once.

    The global batch is 8 sequences whatever the ranks and micro-batches.
    """

    @cache
    def run(
        strategy: str,
        precision: str = "fp32",
        ranks: int = 2,
        grad_accum: int = 1,
        driver: str = "native",
        options: tuple[tuple[str, Any], ...] = (),
        first_scale: float | None = None,
        **train_settings: Any,
    ) -> list[Trace]:
        settings = {
            "precision": precision,
            "micro_batch_size": 8 // ranks // grad_accum,
            "grad_accum": grad_accum,
            "grad_clip": 0.5,  # below the norms of the first steps
        }
        case = tiny_case(
            {"name": strategy, "options": dict(options)},
            train=settings | train_settings,
            driver=driver,
        )
        specs = group.specs(case, ranks)
        out = directory / specs[0].store_prefix.replace("/", "-")
        group.run(train, [(spec, str(out), first_scale) for spec in specs])
        return [torch.load(f"{out}-{rank}") for rank in range(ranks)]

    return run


def mean_losses(ranks: list[Trace]) -> list[float]:
    """Of the global batch, step by step."""
    return [
        sum(loss for loss, _ in step) / sum(tokens for _, tokens in step)
        for step in zip(*(rank["losses"] for rank in ranks), strict=True)
    ]


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Between two sets of the same parameters."""
    assert list(a) == list(b)
    return max(float((a[name] - b[name]).abs().max()) for name in a)
