"""Every optimizer under torch's own strategies: the same update, clipping, and state."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from group import Group, tiny_case
from training_run import STEPS, Trace, full_parameters, largest_difference, make_strategy

from andromeda_scale.contracts.planned import RankSpec
from andromeda_scale.models.factory import ModelFactory
from andromeda_scale.rank import runtime
from andromeda_scale.suite.optimizers import OPTIMIZERS
from andromeda_scale.suite.training import OptimizerSpec, Train

pytestmark = pytest.mark.thorough

# Every optimizer by itself, and those options that change what it keeps.
SPECS = {name: {"name": name} for name in OPTIMIZERS} | {
    "sgd-nesterov": {"name": "sgd", "momentum": 0.9, "nesterov": True},
    "rmsprop-momentum": {"name": "rmsprop", "momentum": 0.5, "eps": 1e-6},
    "adamw-betas": {"name": "adamw", "betas": (0.8, 0.95)},
    "adamw-foreach": {"name": "adamw", "fused": False},
}
STRATEGIES = ("ddp", "fsdp2", "fsdp1", "hsdp")
# Clipping by SGD: Adam would hide a wrong factor, its step does not depend on the length; but with
# an eps above the roots of its second moments, which is clipped in the fused kernel itself.
PLAIN = {"optimizer": {"name": "sgd"}, "learning_rate": 1.0, "weight_decay": 0.0}
FUSED = {"optimizer": {"name": "adam", "eps": 1.0}}
TRAINED: dict[str, dict[str, Any]] = {
    **{name: {"optimizer": spec} for name, spec in SPECS.items()},
    "clipped": PLAIN | {"grad_clip": 0.01},
    "free": PLAIN | {"grad_clip": None},
    "clipped, fused": PLAIN | FUSED | {"grad_clip": 0.01},
    "free, fused": PLAIN | FUSED | {"grad_clip": None},
}
GLOBAL_BATCH = 8


def train_with_each(spec: RankSpec, out: str) -> None:
    """In one process group: for each of TRAINED a fresh model, STEPS steps, what is left."""
    rt = runtime.start(spec)
    runtime.init_process_group(spec, rt)
    traces = {}
    for name, changes in TRAINED.items():
        train = Train.model_validate(spec.case.train.model_dump() | changes)
        strategy = make_strategy(spec.case.model_copy(update={"train": train}))
        state = strategy.build(ModelFactory(spec.case.model, train, spec.case.seed), rt)
        trace: Trace = {"weights": full_parameters(state)}
        share = GLOBAL_BATCH // rt.world_size
        for step in range(STEPS):
            ids = torch.randint(
                256, (GLOBAL_BATCH, 17), generator=torch.Generator().manual_seed(step)
            )
            mine = ids[rt.rank * share : (rt.rank + 1) * share]
            loss, _ = strategy.forward(state, mine[:, :-1], mine[:, 1:])
            scale = rt.world_size / (GLOBAL_BATCH * 16)
            strategy.backward(state, loss * scale, last_micro_batch=True)
            strategy.update(state)
        trace["trained"] = full_parameters(state)
        trace["read"] = strategy.describe(state)
        traces[name] = trace
    torch.save(traces, f"{out}-{rt.rank}")


@pytest.fixture(scope="module")
def trained(
    group: Group, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, Trace]]:
    """trained(strategy): rank 0's trace of each of TRAINED, in one launch."""
    directory = tmp_path_factory.mktemp("optimizers")

    @cache
    def run(strategy: str) -> dict[str, Trace]:
        case = tiny_case(strategy, train={"learning_rate": 0.01, "grad_clip": 0.5})
        specs = group.specs(case, 1 if strategy == "single" else 2)
        out = str(directory / strategy)
        group.run(train_with_each, [(spec, out) for spec in specs])
        found: dict[str, Trace] = torch.load(f"{out}-0")
        return found

    return run


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_optimizer_leaves_the_weights_it_leaves_under_single(
    trained: Callable[[str], dict[str, Trace]], strategy: str, name: str
) -> None:
    single, found = trained("single")[name], trained(strategy)[name]
    differences = [(found["trained"][n] - w).abs() for n, w in single["trained"].items()]
    moves = [(single["trained"][n] - w).abs() for n, w in single["weights"].items()]
    # The mean: where a gradient is nearly zero, rounding decides the sign that Adam steps along.
    moved = float(torch.cat([m.flatten() for m in moves]).mean())
    apart = float(torch.cat([d.flatten() for d in differences]).mean())
    assert moved > 0
    assert apart < 1e-3 * moved


@pytest.mark.parametrize("kind", ["", ", fused"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_clipping_leaves_the_weights_that_singles_clipping_leaves(
    trained: Callable[[str], dict[str, Trace]], strategy: str, kind: str
) -> None:
    single, found = trained("single"), trained(strategy)["clipped" + kind]
    clipped, free = single["clipped" + kind], single["free" + kind]
    moved = largest_difference(clipped["trained"], clipped["weights"])
    assert largest_difference(free["trained"], free["weights"]) > 20 * moved > 0
    assert largest_difference(found["trained"], clipped["trained"]) < 1e-3 * moved


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("strategy", ["single", *STRATEGIES])
def test_optimizer_state_is_what_the_table_says(
    trained: Callable[[str], dict[str, Trace]], strategy: str, name: str
) -> None:
    read = trained(strategy)[name]["read"]
    per_parameter = OptimizerSpec.model_validate(SPECS[name]).state_bytes
    assert read["bytes"]["optimizer_state"] == per_parameter * read["bytes"]["parameters"] / 4


@pytest.mark.parametrize("name", SPECS)
def test_class_kernel_and_settings_are_read_back_alike_from_every_strategy(
    trained: Callable[[str], dict[str, Trace]], name: str
) -> None:
    known, asked = OPTIMIZERS[SPECS[name]["name"]], dict(SPECS[name])
    del asked["name"]
    fused = asked.pop("fused", known.fused)
    for strategy in ("single", *STRATEGIES):
        read: dict[str, Any] = trained(strategy)[name]["read"]["optimizer"]
        assert read["class"] == known.torch_name
        assert read["kernel"] == ("fused" if fused else "foreach")
        assert asked.items() <= read.items()


def test_names_and_options_change_the_update(
    trained: Callable[[str], dict[str, Trace]],
) -> None:
    single = trained("single")
    assert largest_difference(single["adamw"]["trained"], single["adam"]["trained"]) > 0
    assert largest_difference(single["sgd"]["trained"], single["sgd-nesterov"]["trained"]) > 0
    assert largest_difference(single["adamw"]["trained"], single["adamw-betas"]["trained"]) > 0
