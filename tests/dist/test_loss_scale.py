"""fp16: an overflow that one rank sees stops the step of all, is counted, and halves the scale."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from group import Group, tiny_case
from training_run import Trace, full_parameters, largest_difference, make_strategy

from andromeda_scale.contracts.planned import RankSpec
from andromeda_scale.hardware.machine import cpu_has_fp16
from andromeda_scale.models.factory import ModelFactory
from andromeda_scale.rank import runtime
from andromeda_scale.strategies import common
from andromeda_scale.suite.precision import INITIAL_LOSS_SCALE

pytestmark = pytest.mark.skipif(not cpu_has_fp16(), reason="this CPU has no float16")

# adamw: the fused kernel is told on the device; sgd: torch's scaler asks on the host.
OPTIMIZERS = ("adamw", "sgd")
# Where the infinity is planted: in rank 1's loss, or in rank 1's shard of the reduced gradient.
PLANTED = {
    "single": ("loss",),
    "ddp": ("loss",),
    "fsdp2": ("loss", "shard"),
    "fsdp2-offload": ("shard",),
    "hsdp": ("loss",),
    "fsdp1": ("loss", "shard"),
}


def train(spec: RankSpec, where: str, out: str) -> None:
    """Three steps, of which the second overflows."""
    rt = runtime.start(spec)
    runtime.init_process_group(spec, rt)
    traces = {}
    for name in OPTIMIZERS:
        traces[name] = _overflow(spec, rt, where, name)
    torch.save(traces, f"{out}-{rt.rank}")


def _overflow(spec: RankSpec, rt: runtime.Runtime, where: str, name: str) -> Trace:
    settings = spec.case.train.model_dump() | {"optimizer": name}
    case = spec.case.model_copy(update={"train": type(spec.case.train)(**settings)})
    strategy = make_strategy(case)
    state = strategy.build(ModelFactory(case.model, case.train, case.seed), rt)
    trace: Trace = {"weights": [full_parameters(state)], "norms": [], "read": []}
    here = rt.rank == rt.world_size - 1
    for step in range(3):
        ids = torch.randint(256, (4, 17), generator=torch.Generator().manual_seed(step + rt.rank))
        loss, count = strategy.forward(state, ids[:, :-1], ids[:, 1:])
        bad = torch.inf if here and step == 1 else 1.0
        strategy.backward(
            state, loss / count * (bad if where == "loss" else 1.0), last_micro_batch=True
        )
        if where == "shard" and bad == torch.inf:
            common.gradients(state.module.parameters())[0].view(-1)[0] = bad
        trace["norms"].append(float(strategy.gradient_norm(state)))
        strategy.update(state)
        trace["weights"].append(full_parameters(state))
        trace["read"].append(strategy.describe(state)["loss_scale"])
    return trace


@pytest.fixture(scope="module")
def overflown(
    group: Group, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], list[dict[str, Trace]]]:
    """overflown(way, where): every rank's traces, by optimizer."""
    directory = tmp_path_factory.mktemp("overflow")

    @cache
    def run(way: str, where: str) -> list[dict[str, Trace]]:
        name, _, offload = way.partition("-")
        case = tiny_case(
            {"name": name, "options": {"cpu_offload": True} if offload else {}},
            train={"precision": "fp16", "grad_clip": 0.5, "learning_rate": 0.01},
        )
        specs = group.specs(case, 1 if way == "single" else 2)
        out = str(directory / f"{way}-{where}")
        group.run(train, [(spec, where, out) for spec in specs])
        return [torch.load(f"{out}-{spec.rank}") for spec in specs]

    return run


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("way", "where"), [(way, where) for way, places in PLANTED.items() for where in places]
)
def test_an_overflow_on_one_rank_skips_the_step_on_all(
    overflown: Callable[[str, str], list[dict[str, Trace]]], way: str, where: str, optimizer: str
) -> None:
    ranks = [rank[optimizer] for rank in overflown(way, where)]
    for rank in ranks:
        start, first, second, third = rank["weights"]
        assert largest_difference(start, first) > 0
        assert largest_difference(first, second) == 0
        assert largest_difference(second, third) > 0
        scale = INITIAL_LOSS_SCALE
        assert rank["read"] == [
            {"scale": scale, "skipped_steps": 0},
            {"scale": scale / 2, "skipped_steps": 1},
            {"scale": scale / 2, "skipped_steps": 1},
        ]
        assert largest_difference(third, ranks[0]["weights"][3]) == 0
        # The scale is divided out: a step at half of it shows a norm of the same size.
        assert not rank["norms"][1] < torch.inf
        assert rank["norms"][2] == pytest.approx(rank["norms"][0], rel=0.5)
