"""ZeRO on two real gloo ranks: offload, fp16, accumulation, a user's JSON, and every optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from group import Group, Line, end, of_kind, tiny_case
from training_run import Trace, largest_difference, mean_losses, runner

from andromeda_scale.cost.comm import bytes_per_step
from andromeda_scale.cost.layout import StateLayout
from andromeda_scale.hardware.machine import cpu_has_fp16
from andromeda_scale.rank.readback import unexpected
from andromeda_scale.registry import load
from andromeda_scale.suite.optimizers import OPTIMIZERS
from andromeda_scale.suite.training import Train
from andromeda_scale.suite.world import World

pytestmark = pytest.mark.thorough

STAGES = ("zero1", "zero2", "zero3")
OFFLOAD = (("offload_optimizer", True),)
BOTH = (*OFFLOAD, ("offload_parameters", True))
# 2 blocks of q, k, v, o, three of the FFN, two norms; embedding, final norm, head (group.LLAMA).
P = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32) + 2 * 256 * 32 + 32
# Of norms against single's on the same global batch: rounding of the compute dtype's sums.
NORM = {"fp32": 1e-5, "bf16": 5e-3, "fp16": 5e-4}
LOSS = {"fp32": 1e-6, "bf16": 5e-4, "fp16": 1e-5}
fp16 = pytest.mark.skipif(not cpu_has_fp16(), reason="this CPU has no float16 instructions")
LOW = ["bf16", pytest.param("fp16", marks=fp16)]


@pytest.fixture(scope="module")
def run(group: Group, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Trace]]:
    return runner(group, tmp_path_factory.mktemp("zero"))


def assert_as_single(ranks: list[Trace], single: list[Trace], precision: str) -> None:
    """The seed's weights, single's losses and norms, and everything as it was asked for."""
    assert mean_losses(ranks) == pytest.approx(mean_losses(single), rel=LOSS[precision])
    assert min(single[0]["norms"]) > 0.5, "nothing would be clipped"
    for rank in ranks:
        assert largest_difference(rank["weights"], single[0]["weights"]) == 0
        assert rank["norms"] == pytest.approx(single[0]["norms"], rel=NORM[precision])
        assert rank["norms"] == ranks[0]["norms"]
        found = {**rank["after"], "world_size": None}
        assert unexpected(found, rank["expects"]) is None


@pytest.mark.parametrize("precision", ["fp32", *LOW])
@pytest.mark.parametrize(
    ("strategy", "options"), [("zero1", OFFLOAD), ("zero2", OFFLOAD), ("zero3", BOTH)]
)
def test_offloaded_steps_are_singles(
    run: Callable[..., list[Trace]], strategy: str, options: Any, precision: str
) -> None:
    single = run("single", precision, 1, 2)
    ranks = run(strategy, precision, 2, 2, options=options)
    assert_as_single(ranks, single, precision)
    if precision == "fp32":
        moved = largest_difference(ranks[0]["trained"], ranks[0]["weights"])
        assert largest_difference(ranks[0]["trained"], single[0]["trained"]) < 0.01 * moved


def test_accumulated_gradients_of_an_offloaded_step_end_with_it(
    run: Callable[..., list[Trace]],
) -> None:
    # Gradients that nobody used must not be in the next step's sum.
    dropped = run("zero2", "fp32", 2, 2, options=OFFLOAD, mode="forward_backward")
    single = run("single", "fp32", 1, 2, mode="forward_backward")
    assert dropped[0]["norms"] == pytest.approx(single[0]["norms"], rel=1e-5)
    assert largest_difference(dropped[0]["weights"], dropped[0]["trained"]) == 0


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("strategy", STAGES)
def test_gradient_norms_of_low_precision_are_singles(
    run: Callable[..., list[Trace]], strategy: str, precision: str
) -> None:
    single = run("single", precision, 1, 2)
    for ranks in (1, 2):
        assert_as_single(run(strategy, precision, ranks, 2), single, precision)


@pytest.mark.parametrize("strategy", STAGES)
def test_one_rank_is_single(run: Callable[..., list[Trace]], strategy: str) -> None:
    assert_as_single(run(strategy, "fp32", 1), run("single", "fp32", 1), "fp32")


@fp16
@pytest.mark.parametrize("strategy", STAGES)
def test_fp16_scales_as_torchs_scaler(run: Callable[..., list[Trace]], strategy: str) -> None:
    read = run(strategy, "fp16", 2, 2)[0]["after"]
    assert read["loss_scale"] == {"scale": 2.0**12, "skipped_steps": 0}
    assert read["dtypes"]["parameters"] == "float16"
    assert read["dtypes"]["master"] == "float32"
    assert run(strategy, "bf16", 2, 2)[0]["after"]["loss_scale"] is None


@fp16
@pytest.mark.parametrize("strategy", STAGES)
def test_an_overflow_skips_one_step_halves_the_scale_and_moves_nothing(
    run: Callable[..., list[Trace]], strategy: str
) -> None:
    (trace, _) = run(strategy, "fp16", first_scale=2.0**40)
    assert trace["norms"][0] == float("inf")
    assert trace["scales"][0] == {"scale": 2.0**39, "skipped_steps": 1}
    assert trace["moved"][0] == 0


# DeepSpeed makes its own Adagrad in both of its optimizers.
UPDATES = [(name, "zero3") for name in sorted(OPTIMIZERS)] + [
    ("adagrad", "zero1"),
    ("sgd", "zero2"),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("optimizer", "strategy"), UPDATES)
def test_every_optimizer_updates_flat_pieces_as_whole_parameters(
    run: Callable[..., list[Trace]], strategy: str, optimizer: str
) -> None:
    single = run("single", "fp32", 1, optimizer=optimizer)
    ranks = run(strategy, "fp32", 2, optimizer=optimizer)
    assert_as_single(ranks, single, "fp32")
    moved = largest_difference(single[0]["trained"], single[0]["weights"])
    assert largest_difference(ranks[0]["trained"], single[0]["trained"]) < 0.02 * moved
    read = ranks[0]["after"]
    assert read["optimizer"]["class"] == OPTIMIZERS[optimizer].torch_name
    held = read["bytes"]["optimizer_state"]
    assert held == 4 * OPTIMIZERS[optimizer].states * P / 2


# Bytes of all states with Adam; what is on the host is the same number here, where both are one.
STATES = [
    ("zero1", "fp32", OFFLOAD, 1),
    ("zero2", "fp32", OFFLOAD, 2),
    ("zero2", "bf16", OFFLOAD, 1),
    ("zero2", "bf16", (("grad_accum_dtype", "float32"),), 2),
    ("zero3", "bf16", (("param_persistence_threshold", 0), *BOTH), 2),
    ("zero3", "bf16", (("param_persistence_threshold", 0), ("grad_accum_dtype", "float32")), 1),
]


@pytest.mark.parametrize(("strategy", "precision", "options", "grad_accum"), STATES)
def test_bytes_of_states_are_the_layouts(
    run: Callable[..., list[Trace]], strategy: str, precision: str, options: Any, grad_accum: int
) -> None:
    kind = load("strategy", strategy)
    train = Train(precision=precision, grad_accum=grad_accum)
    layout: StateLayout = kind.layout(kind.Options(**dict(options)), train, World(ranks_per_node=2))
    border = 4 * 32 * 64 if strategy != "zero3" else 0  # a gradient on the border is on both ranks
    for rank in run(strategy, precision, 2, grad_accum, options=options):
        found = rank["read"][-1]["bytes"]
        for state in ("parameters", "gradients", "master", "optimizer_state"):
            expected = getattr(layout, state).per_rank * P
            assert expected <= found[state] <= expected + border, state


def test_what_lies_where_is_read_back(run: Callable[..., list[Trace]]) -> None:
    where = run("zero3", "bf16", 2, 2, options=BOTH)[0]["after"]["offload"]
    assert where == {
        "parameters": "cpu",
        "gradients": "cpu",
        "master": "cpu",
        "optimizer_state": "cpu",
        "pinned": False,
    }


def test_the_rest_of_a_json_reaches_the_engine_and_is_read_back(
    run: Callable[..., list[Trace]],
) -> None:
    from andromeda_scale.strategies.zero_options import Zero3Options, Zero12Options

    said = {
        "data_types": {"grad_accum_dtype": "fp32"},
        "bf16": {"check_grad_overflow": True},
        "zero_optimization": {
            "reduce_bucket_size": 5e3,
            "overlap_comm": True,
            "reduce_scatter": False,
            "allgather_bucket_size": 4096,
            "contiguous_gradients": True,
        },
    }
    options = Zero12Options.model_validate({"config": said}).model_dump(exclude_defaults=True)
    ranks = run("zero2", "bf16", 2, 2, options=Frozen(options))
    assert_as_single(ranks, run("single", "bf16", 1, 2), "bf16")
    read = ranks[0]["read"][-1]
    assert read["buckets"] == {
        "reduce_bucket_size": 5000,
        "overlap_comm": True,
        "contiguous_gradients": True,
    }
    assert read["engine"] == {
        "optimizer": "DeepSpeedZeroOptimizer",
        "grad_accum_dtype": "float32",
        "reduce_scatter": False,
        "use_multi_rank_bucket_allreduce": True,
        "round_robin_gradients": False,
        "check_grad_overflow": True,
        "allgather_bucket_size": 4096,
    }
    assert read["dtypes"]["gradients"] == "float32"
    assert not run("zero2", "bf16", 2, 2)[0]["after"]["engine"]["check_grad_overflow"]
    said = {"zero_optimization": {"sub_group_size": 1e4, "stage3_max_reuse_distance": 0}}
    options = Zero3Options.model_validate({"config": said}).model_dump(exclude_defaults=True)
    ranks = run("zero3", "fp32", 2, 1, options=Frozen(options))
    assert_as_single(ranks, run("single", "fp32", 1), "fp32")
    engine = ranks[0]["after"]["engine"]
    assert (engine["sub_group_size"], engine["max_reuse_distance"]) == (10_000, 0)


class Frozen(tuple[Any, ...]):
    """Options as a key of a cache."""

    def __new__(cls, options: dict[str, Any]) -> Frozen:
        return super().__new__(cls, options.items())

    def __hash__(self) -> int:
        return hash(repr(tuple(self)))


@pytest.mark.parametrize(("reuse", "prefetch", "times"), [(0, 0, 2), (10**9, 0, 1), (0, 10**6, 1)])
def test_what_reuse_and_prefetching_let_go_is_gathered_twice(
    run_case: Callable[..., list[list[Line]]], reuse: int, prefetch: int, times: int
) -> None:
    options = {
        "max_reuse_distance": reuse,
        "prefetch_bucket_size": prefetch,
        "param_persistence_threshold": 0,  # no parameter is whole for being small
    }
    case = tiny_case(
        {"name": "zero3", "options": options},
        measure={"profile_steps": 3},
        collect=("communication",),
        parity="off",
    )
    lines = run_case(case, 2)[0]
    assert end(lines)["status"] == "ok", end(lines)
    found = next(x for x in of_kind(lines, "phase") if x["phase"] == "profile")
    gathered = sum(
        one["bytes_per_step"]
        for one in found["values"]["communication"]["collectives"]
        if one["op"] == "all_gather"
    )
    kind = load("strategy", "zero3")
    traffic = kind.traffic(kind.Options(**options), case.train, World(ranks_per_node=2))
    expected = bytes_per_step(traffic, P, 2, 1).payload["all_gather"]
    assert expected == 4 * P * times
    # The last module's are at hand when backward starts.
    assert gathered == pytest.approx(expected, rel=0.3)
