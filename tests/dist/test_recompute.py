"""Activation checkpointing on two real ranks: every kind, every strategy, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from group import Group, tiny_case
from training_run import make_strategy

from andromeda_scale import runtime
from andromeda_scale.data import Batches
from andromeda_scale.models.factory import ModelFactory
from andromeda_scale.planned import RankSpec
from andromeda_scale.train_step import TrainStep

MODEL = {
    "family": "andromeda",
    "vocab_size": 256,
    "d_model": 32,
    "num_layers": 3,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 32,
    "alibi_num_heads": 1,
}
KINDS: dict[str, Any] = {
    "selective": "selective",  # first: DeepSpeed replaces torch's linear function for good
    "none": "none",
    "block": "block",
    "every 2": {"every": 2},
    "segment 2": {"segment": 2},
}
RUN_AGAIN = {"selective": 3, "none": 0, "block": 3, "every 2": 2, "segment 2": 3}
STRATEGIES = ("ddp", "fsdp2", "hsdp", "fsdp1", "zero1", "zero2", "zero3")
STEPS = 2


def train(spec: RankSpec, out: str) -> None:
    """Train the case STEPS steps under every kind, one after the other; save what each showed."""
    if spec.case.train.compile:  # captured and cut as for C++, of which none is compiled
        compile_graph = torch.compile
        torch.compile = lambda f: compile_graph(f, backend="aot_eager_decomp_partition")  # type: ignore[assignment]
    rt = runtime.start(spec)
    runtime.init_process_group(spec, rt)
    found = {}
    for name, kind in KINDS.items():
        settings = spec.case.train.model_copy(update={"activation_checkpointing": "none"})
        settings = type(settings)(**settings.model_dump() | {"activation_checkpointing": kind})
        case = spec.case.model_copy(update={"train": settings})
        strategy = make_strategy(case)
        factory = ModelFactory(case.model, settings, case.seed)
        state = strategy.build(factory, rt)
        batches = Batches(
            case.data,
            vocab_size=256,
            seq_len=settings.seq_len,
            micro_batch_size=settings.micro_batch_size,
            grad_accum=settings.grad_accum,
            rank=rt.rank,
            world_size=rt.world_size,
            seed=case.seed,
        )
        step = TrainStep(strategy, state, batches, settings, rt)
        norms: list[float] = []
        losses = [
            float(
                step(i, before_update=lambda: norms.append(float(strategy.gradient_norm(state))))[0]
            )  # noqa: B023
            for i in range(STEPS)
        ]
        facts = state.module.describe_checkpointing()
        found[name] = {"losses": losses, "norms": norms, **facts}
        torch._dynamo.reset()
    torch.save(found, f"{out}-{rt.rank}")


Run = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def run(group: Group, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """run(strategy): by kind, what rank 0 saw; all kinds in one group of two ranks."""
    directory = tmp_path_factory.mktemp("kinds")

    @cache
    def run(strategy: str, compiled: bool = False) -> dict[str, dict[str, Any]]:
        case = tiny_case(strategy, model=MODEL, train={"grad_accum": 2, "compile": compiled})
        specs = group.specs(case, 2)
        out = directory / f"{strategy}-{compiled}"
        group.run(train, [(spec, str(out)) for spec in specs])
        return torch.load(f"{out}-0")  # type: ignore[no-any-return]

    return run


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_kind_trains_as_none_does(run: Run, strategy: str) -> None:
    found = run(strategy)
    for name, one in found.items():
        assert one["losses"] == pytest.approx(found["none"]["losses"], rel=1e-6), name
        assert one["norms"] == pytest.approx(found["none"]["norms"], rel=1e-5), name
        assert one["kind"] == KINDS[name]
        assert one["blocks_recomputed"] == RUN_AGAIN[name], name


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_kind_trains_as_none_does_when_compiled(run: Run, strategy: str) -> None:
    eager, found = run(strategy), run(strategy, compiled=True)
    for name, one in found.items():
        assert one["losses"] == pytest.approx(eager["none"]["losses"], rel=1e-5), name
        assert one["norms"] == pytest.approx(eager["none"]["norms"], rel=1e-4), name
        assert one["blocks_recomputed"] in (RUN_AGAIN[name], None if name == "selective" else 0)
