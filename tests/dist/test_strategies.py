"""Every strategy on two real gloo ranks: weights, gradients, updates, states, read back."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from group import Group, tiny_case
from torch.distributed.tensor import DTensor

from andromeda_scale import registry, runtime
from andromeda_scale.planned import RankSpec
from andromeda_scale.data import Batches
from andromeda_scale.models.factory import ModelFactory
from andromeda_scale.train_step import TrainStep

DISTRIBUTED = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
PRECISIONS = ("fp32", "bf16")
STEPS = 3
# 2 blocks of q, k, v, o, three of the FFN, two norms; embedding, final norm, head (group.LLAMA).
P = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32) + 2 * 256 * 32 + 32

Trace = dict[str, Any]


def full_parameters(state: Any) -> dict[str, torch.Tensor]:
    """The whole float32 masters, on every rank."""
    found = {}
    for name, parameter in state.module.named_parameters():
        if isinstance(parameter, DTensor):
            found[name] = parameter.full_tensor()
        elif hasattr(state.wrapped, "zero_optimization_stage"):
            from deepspeed.utils import safe_get_full_fp32_param

            found[name] = safe_get_full_fp32_param(parameter)
        else:
            found[name] = parameter.detach()
    return {name: value.detach().clone().float() for name, value in found.items()}


def train(spec: RankSpec, out: str) -> None:
    """Build, take STEPS steps, and save what every claim below needs."""
    case = spec.case
    rt = runtime.start(spec)
    runtime.init_process_group(spec, rt)
    kind = registry.load("strategy", case.strategy.name)
    strategy = kind(kind.Options.model_validate(case.strategy.options), case.train)
    factory = ModelFactory(case.model, case.train, case.seed)
    state = strategy.build(factory, rt)
    trace: Trace = {"weights": full_parameters(state), "norms": [], "losses": []}
    update = strategy.update

    def recorded(s: Any) -> Any:
        norm = update(s)
        trace["norms"].append(None if norm is None else float(norm))
        return norm

    strategy.update = recorded
    batches = Batches(
        case.data,
        vocab_size=factory.config.shape().vocab_size,
        seq_len=case.train.seq_len,
        micro_batch_size=case.train.micro_batch_size,
        grad_accum=case.train.grad_accum,
        rank=rt.rank,
        world_size=rt.world_size,
        seed=case.seed,
    )
    step = TrainStep(strategy, state, batches, case.train, rt)
    for index in range(STEPS):
        read = index == STEPS - 1
        loss_sum, tokens = step(
            index,
            before_update=lambda: trace.update(read=strategy.describe(state)) if read else None,  # noqa: B023
        )
        trace["losses"].append((float(loss_sum), tokens))
    trace["trained"] = full_parameters(state)
    torch.save(trace, f"{out}-{rt.rank}")


@pytest.fixture(scope="module")
def traces(group: Group, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Trace]]:
    """traces(strategy, precision, micro_batch_size, grad_accum): what each rank saved, run once."""
    directory = tmp_path_factory.mktemp("traces")

    @cache
    def run(
        strategy: str,
        precision: str = "fp32",
        micro_batch_size: int = 4,
        grad_accum: int = 1,
        mode: str = "train_step",
        **options: Any,
    ) -> list[Trace]:
        world_size = 1 if strategy == "single" else 2
        case = tiny_case(
            {"name": strategy, "options": options},
            train={
                "precision": precision,
                "micro_batch_size": micro_batch_size,
                "grad_accum": grad_accum,
                "mode": mode,
                "grad_clip": 0.5,  # below the norms of the first steps
            },
        )
        specs = group.specs(case, world_size)
        out = directory / specs[0].store_prefix.replace("/", "-")
        group.run(train, [(spec, str(out)) for spec in specs])
        return [torch.load(f"{out}-{rank}") for rank in range(world_size)]

    return run


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert list(a) == list(b)
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def mean_losses(ranks: list[Trace]) -> list[float]:
    return [
        sum(loss for loss, _ in step) / sum(tokens for _, tokens in step)
        for step in zip(*(rank["losses"] for rank in ranks), strict=True)
    ]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("strategy", DISTRIBUTED)
def test_full_weights_after_build_equal_singles_exactly(
    traces: Callable[..., list[Trace]], strategy: str, precision: str
) -> None:
    expected = traces("single", "fp32", 8)[0]["weights"]
    for rank in traces(strategy, precision):
        for name, weight in expected.items():
            assert torch.equal(rank["weights"][name], weight), name


@pytest.mark.parametrize("strategy", DISTRIBUTED)
def test_gradient_norms_before_clipping_are_singles(
    traces: Callable[..., list[Trace]], strategy: str
) -> None:
    expected = traces("single", "fp32", 8)[0]["norms"]
    assert min(expected) > 0.5, "nothing would be clipped"
    for rank in traces(strategy):
        assert rank["norms"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("strategy", DISTRIBUTED)
def test_trained_weights_and_losses_are_singles(
    traces: Callable[..., list[Trace]], strategy: str
) -> None:
    single = traces("single", "fp32", 8)
    ranks = traces(strategy)
    assert mean_losses(ranks) == pytest.approx(mean_losses(single), rel=1e-6)
    for rank in ranks:
        # A step moves a weight by up to 1e-3; Adam's sign of a near-zero gradient is rounding.
        moved = largest_difference(rank["trained"], rank["weights"])
        assert largest_difference(rank["trained"], single[0]["trained"]) < 0.2 * moved
        assert moved > 1e-3


@pytest.mark.parametrize("strategy", ["single", *DISTRIBUTED])
def test_two_micro_batches_are_one_of_double_size(
    traces: Callable[..., list[Trace]], strategy: str
) -> None:
    size = 8 if strategy == "single" else 4
    once, twice = traces(strategy, "fp32", size, 1), traces(strategy, "fp32", size // 2, 2)
    assert mean_losses(twice) == pytest.approx(mean_losses(once), rel=1e-6)
    assert twice[0]["norms"] == pytest.approx(once[0]["norms"], rel=1e-5)


@pytest.mark.parametrize("strategy", DISTRIBUTED)
def test_bf16_trains_like_singles_bf16(traces: Callable[..., list[Trace]], strategy: str) -> None:
    single, ranks = traces("single", "bf16", 8), traces(strategy, "bf16")
    assert mean_losses(ranks) == pytest.approx(mean_losses(single), rel=5e-4)
    assert ranks[0]["norms"] == pytest.approx(single[0]["norms"], rel=2e-2)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("strategy", ["single", *DISTRIBUTED])
def test_dtypes_read_back_are_the_policys(
    traces: Callable[..., list[Trace]], strategy: str, precision: str
) -> None:
    read = traces(strategy, precision, 8 if strategy == "single" else 4)[0]["read"]
    low = "bfloat16" if strategy.startswith("zero") and precision == "bf16" else "float32"
    assert read["dtypes"] == {
        "parameters": low,
        "master": "float32",
        "gradients": low,
        "optimizer_state": "float32",
        "reduction": None if strategy == "single" else "float32",
    }


# METRICS, bytes per parameter with Adam; ZeRO-3 keeps parameters below its threshold whole too.
STATE_BYTES = {
    ("single", "fp32"): 16,
    ("single", "bf16"): 16,
    ("ddp", "fp32"): 16,
    ("ddp", "bf16"): 16,
    ("fsdp2", "fp32"): 8,
    ("fsdp2", "bf16"): 8,
    ("zero1", "fp32"): 12,
    ("zero1", "bf16"): 9,
    ("zero2", "fp32"): 12,
    ("zero2", "bf16"): 9,
    ("zero3", "fp32"): 10 + 4,
    ("zero3", "bf16"): 8 + 2,
}


@pytest.mark.parametrize(("strategy", "precision"), STATE_BYTES)
def test_state_bytes_read_back_are_the_layouts(
    traces: Callable[..., list[Trace]], strategy: str, precision: str
) -> None:
    # A parameter on the border of two ranks' parts has its whole gradient on both (stage 1, 2).
    border = 4 * 32 * 64 if strategy in ("zero1", "zero2") else 0
    for rank in traces(strategy, precision, 8 if strategy == "single" else 4):
        total = sum(rank["read"]["bytes"].values())
        expected = STATE_BYTES[strategy, precision] * P
        assert expected <= total <= expected + border


def test_zero3_without_whole_small_parameters_holds_20_over_n_bytes(
    traces: Callable[..., list[Trace]],
) -> None:
    read = traces("zero3", param_persistence_threshold=0)[0]["read"]
    assert sum(read["bytes"].values()) == 20 // 2 * P


@pytest.mark.parametrize("strategy", ["single", *DISTRIBUTED])
def test_forward_backward_leaves_weights_and_drops_gradients(
    traces: Callable[..., list[Trace]], strategy: str
) -> None:
    size = 8 if strategy == "single" else 4
    ranks = traces(strategy, "fp32", size // 2, 2, "forward_backward")
    for rank in ranks:
        assert largest_difference(rank["weights"], rank["trained"]) == 0
        assert rank["norms"] == []
        assert rank["read"]["bytes"]["optimizer_state"] == 0
        # The third step's gradients alone: none are left of the steps before.
        gradients = rank["read"]["bytes"]["gradients"]
        assert 0 < gradients <= 4 * P


def test_options_are_read_back_from_what_runs(traces: Callable[..., list[Trace]]) -> None:
    buckets = traces("ddp", bucket_cap_mb=0.02, gradient_as_bucket_view=False)[0]["read"]["buckets"]
    assert len(buckets["bytes"]) > 1
    assert sum(buckets["bytes"]) == 4 * P
    assert (buckets["static_graph"], buckets["gradient_as_bucket_view"]) == (False, False)
    assert traces("ddp", static_graph=True)[0]["read"]["buckets"]["static_graph"]
    kept = traces("fsdp2", reshard_after_forward=False)[0]["read"]["units"]
    freed = traces("fsdp2")[0]["read"]["units"]
    names = [unit["name"] for unit in freed]
    assert names == ["root", "blocks.0", "blocks.1"]
    assert [unit["reshard_after_forward"] for unit in freed] == [False, True, True]
    assert [unit["reshard_after_forward"] for unit in kept] == [False, False, False]
    assert sum(unit["num_parameters"] for unit in freed) == P
    zero = traces("zero2", reduce_bucket_size=5000, overlap_comm=True)[0]["read"]["buckets"]
    assert zero == {"reduce_bucket_size": 5000, "overlap_comm": True}
    low = traces("zero1", "bf16", reduce_dtype="bfloat16")[0]["read"]["dtypes"]
    assert low["reduction"] == "bfloat16"
