"""Driver accelerate: native's weights, losses and norms, with the wrapper that was asked for.

What is asked of FSDP's plugins holds on GPUs alone: on a CPU these cases are refused.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from group import Group, Line, end, of_kind, tiny_case
from training_run import Trace, largest_difference, mean_losses, runner

from andromeda_scale.rank.readback import unexpected
from andromeda_scale.registry import STRATEGIES, load
from andromeda_scale.strategies.accelerated import Accelerated
from andromeda_scale.suite.training import Train
from andromeda_scale.suite.world import World

pytestmark = pytest.mark.thorough

# strategy -> accelerate's name of what it made of it, on a CPU.
TYPES = {
    "single": "NO",
    "ddp": "MULTI_CPU",
    "zero1": "DEEPSPEED",
    "zero2": "DEEPSPEED",
    "zero3": "DEEPSPEED",
}
ON_GPUS = ("fsdp1", "fsdp2", "hsdp")


@pytest.fixture(scope="module")
def run(group: Group, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Trace]]:
    return runner(group, tmp_path_factory.mktemp("accelerated"))


def assert_alike(driven: list[Trace], native: list[Trace], precision: str) -> None:
    """Same start, same losses and norms as native's, and what was asked for."""
    limit = {"fp32": 1e-6, "bf16": 1e-5}[precision]  # of one arithmetic; parity's is wider
    assert mean_losses(driven) == pytest.approx(mean_losses(native), rel=limit)
    for rank, other in zip(driven, native, strict=True):
        assert largest_difference(rank["weights"], other["weights"]) == 0
        assert rank["norms"] == pytest.approx(other["norms"], rel=limit)
        assert unexpected({**rank["after"], "world_size": None}, rank["expects"]) is None
        assert rank["threads"] == other["threads"] == 1
        for key in ("wrapper", "dtypes", "bytes", "optimizer", "world_size"):
            assert rank["read"][-1][key] == other["read"][-1][key], key


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("strategy", TYPES)
def test_steps_are_natives(run: Callable[..., list[Trace]], strategy: str, precision: str) -> None:
    ranks = 1 if strategy == "single" else 2
    driven = run(strategy, precision, ranks, 2, driver="accelerate")
    native = run(strategy, precision, ranks, 2)
    assert_alike(driven, native, precision)
    if precision == "fp32":  # clipped, and moved, as native's
        moved = largest_difference(native[0]["trained"], native[0]["weights"])
        assert largest_difference(driven[0]["trained"], native[0]["trained"]) < 0.01 * moved


@pytest.mark.parametrize("strategy", TYPES)
def test_the_live_accelerator_is_read_back(run: Callable[..., list[Trace]], strategy: str) -> None:
    ranks = 1 if strategy == "single" else 2
    read = run(strategy, "bf16", ranks, 2, driver="accelerate")[0]["after"]["driver"]
    assert read.pop("version").count(".") == 2
    assert read == {
        "name": "accelerate",
        "distributed_type": TYPES[strategy],
        "mixed_precision": "bf16",
        "num_processes": ranks,
    }


def test_forward_and_backward_alone_leave_the_weights(run: Callable[..., list[Trace]]) -> None:
    # accelerate's DeepSpeed would step at the end of backward.
    for strategy in ("zero2", "ddp"):
        driven = run(strategy, "fp32", driver="accelerate", mode="forward_backward")
        assert largest_difference(driven[0]["trained"], driven[0]["weights"]) == 0
        assert driven[0]["norms"] == pytest.approx(
            run(strategy, "fp32", mode="forward_backward")[0]["norms"], rel=1e-6
        )


def test_options_reach_accelerates_wrapper(run: Callable[..., list[Trace]]) -> None:
    options = (("bucket_cap_mb", 0.02), ("gradient_as_bucket_view", False), ("compression", "fp16"))
    read = run("ddp", "fp32", driver="accelerate", options=options)[0]["after"]
    assert len(read["buckets"]["bytes"]) > 1
    assert read["buckets"]["gradient_as_bucket_view"] is False
    assert read["dtypes"]["reduction"] == "float16"
    offload = (("offload_optimizer", True), ("offload_parameters", True))
    driven = run("zero3", "fp32", 2, 2, driver="accelerate", options=offload)
    assert_alike(driven, run("zero3", "fp32", 2, 2, options=offload), "fp32")


def test_a_worker_runs_a_driven_case_to_its_end(
    run_case: Callable[..., list[list[Line]]],
) -> None:
    for strategy in ("ddp", "zero1"):
        for lines in run_case(tiny_case(strategy, driver="accelerate"), 2):
            assert end(lines)["status"] == "ok", end(lines)
            (read,) = of_kind(lines, "describe")
            assert read["values"]["driver"]["distributed_type"] == TYPES[strategy]


def test_another_wrapper_than_asked_is_invalid(run: Callable[..., list[Trace]]) -> None:
    trace = run("ddp", "fp32", driver="accelerate")[0]
    asked = {**trace["expects"], "world_size": 2}
    for silent in (
        {"wrapper": None},
        {"world_size": 1},
        {"driver": {**trace["after"]["driver"], "num_processes": 1}},
        {"driver": {**trace["after"]["driver"], "mixed_precision": "bf16"}},
    ):
        assert unexpected({**trace["after"], **silent}, asked) is not None
    assert unexpected(trace["after"], asked) is None


@pytest.mark.parametrize("strategy", ON_GPUS)
def test_on_a_cpu_fsdps_plugins_are_refused_with_the_reason(
    run_case: Callable[..., list[list[Line]]], strategy: str
) -> None:
    (lines, _) = run_case(tiny_case(strategy, driver="accelerate"), 2)
    assert end(lines)["status"] == "unavailable"
    assert "trains plain DDP" in end(lines)["cause"]


def test_every_strategy_says_where_accelerate_can_wrap_it() -> None:
    train, two = Train(), World(ranks_per_node=2)
    for name in STRATEGIES:
        kind = load("strategy", name)
        assert "cuda" in kind.accelerate_on, name
        assert Accelerated.refuses(kind, train, two, "cuda") is None
        assert ("cpu" in kind.accelerate_on) == (name in TYPES)


def test_what_accelerate_ignores_is_refused() -> None:
    fp16, one = Train(precision="fp16"), World()
    ddp, zero = load("strategy", "ddp"), load("strategy", "zero2")
    assert "ignores fp16" in str(Accelerated.refuses(ddp, fp16, one, "cpu"))
    assert Accelerated.refuses(zero, fp16, one, "cpu") is None
    assert "strategy single" in str(Accelerated.refuses(ddp, Train(), one, "cuda"))
