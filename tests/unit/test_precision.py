"""The precision policy, and what strategies say of their bytes under it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from andromeda_scale import registry
from andromeda_scale.cost.comm import bytes_per_step
from andromeda_scale.hardware import machine
from andromeda_scale.metrics import SETTINGS
from andromeda_scale.registry import STRATEGIES
from andromeda_scale.suite import precision
from andromeda_scale.suite.precision import POLICIES, element_bytes
from andromeda_scale.suite.training import Mode, Precision, Train
from andromeda_scale.suite.world import World

FOUR = World(ranks_per_node=4)


def made(name: str, **options: Any) -> tuple[Any, Any]:
    """A strategy's class, and its options."""
    kind = registry.load("strategy", name)
    return kind, kind.Options.model_validate(options)


@pytest.mark.parametrize("name", POLICIES)
def test_masters_and_optimizer_state_are_always_float32(name: str) -> None:
    assert POLICIES[name].master == "float32"
    assert POLICIES[name].optimizer_state == "float32"
    assert POLICIES[name].reduction == "float32"


def test_only_tf32_rounds_float32_products() -> None:
    assert {name for name in POLICIES if POLICIES[name].matmul != "highest"} == {"tf32"}
    assert {name for name in POLICIES if POLICIES[name].mixed} == {"bf16", "fp16"}


def test_element_bytes_are_torchs() -> None:
    import torch

    for policy in POLICIES.values():
        for name in (policy.master, policy.compute, policy.reduction):
            assert element_bytes(name) == getattr(torch, name).itemsize


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_refuses_what_the_device_cannot(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, options = made(name)
    world = FOUR if kind.distributed else World()

    def reason(asked: str, device: str) -> str | None:
        found: str | None = kind.refuses(options, Train(precision=asked), world, device)
        return found

    monkeypatch.setattr(precision, "cpu_has_fp16", lambda: False)
    for asked in ("tf32", "fp16"):
        assert str(reason(asked, "cpu")).startswith(f"train.precision: {asked} ")
        assert reason(asked, "cuda") is None
    monkeypatch.setattr(precision, "cpu_has_fp16", lambda: True)
    assert reason("fp16", "cpu") is None
    assert reason("bf16", "cpu") is None


# Flags of an Intel Sapphire Rapids, a Sierra Forest, an AMD Zen 4 and an Arm Neoverse N1.
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags : fpu avx512f avx512_bf16 avx512_fp16 amx_tile", True),
        ("flags : fpu avx2 avx_vnni avx_ne_convert", True),
        ("flags : fpu avx2 f16c avx512f avx512_bf16", False),
        ("Features : fp asimd fphp asimdhp", True),
        ("Features : fp asimd", False),
    ],
)
def test_float16_of_a_cpu_is_read_from_its_flags(
    flags: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{flags}\n")
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    machine.cpu_has_fp16.cache_clear()
    try:
        assert machine.cpu_has_fp16() is expected
    finally:
        machine.cpu_has_fp16.cache_clear()


def test_float16_of_this_cpu_is_what_onednn_says() -> None:
    import torch

    assert machine.cpu_has_fp16() == torch.ops.mkldnn._is_mkldnn_fp16_supported()


# METRICS, states with Adam, measured: bytes per parameter on N = 4 ranks; low: bf16 and fp16.
GOLDEN_STATES = {
    ("single", "fp32"): 16,
    ("single", "low"): 16,
    ("ddp", "fp32"): 16,
    ("ddp", "low"): 16,
    ("fsdp2", "fp32"): 16 / 4,
    ("fsdp2", "low"): 16 / 4,
    ("hsdp", "fp32"): 16 / 2,
    ("hsdp", "low"): 16 / 2,
    ("fsdp1", "fp32"): 16 / 4,
    ("fsdp1", "low"): 16 / 4,
    ("zero1", "fp32"): 4 + 16 / 4,
    ("zero1", "low"): 2 + 14 / 4,
    ("zero2", "fp32"): 4 + 16 / 4,
    ("zero2", "low"): 2 + 14 / 4,
    ("zero3", "fp32"): 20 / 4,
    ("zero3", "low"): 16 / 4,
}


@pytest.mark.parametrize(("name", "width"), GOLDEN_STATES)
def test_state_bytes_per_parameter_are_the_measured_ones(name: str, width: str) -> None:
    kind, options = made(name)
    for asked in {"fp32": ("fp32", "tf32"), "low": ("bf16", "fp16")}[width]:
        layout = kind.layout(options, Train(precision=asked), FOUR)
        assert layout.bytes_per_parameter == GOLDEN_STATES[name, width]
        assert layout.bytes_on("device") == GOLDEN_STATES[name, width]


def test_state_bytes_follow_the_optimizer() -> None:
    for name in STRATEGIES:
        kind, options = made(name)
        adam, sgd = (
            kind.layout(options, Train(optimizer=o), FOUR).bytes_per_parameter
            for o in ("adamw", "sgd")
        )
        shards = kind.layout(options, Train(), FOUR).optimizer_state.shards
        assert adam - sgd == 8 / shards


@pytest.mark.parametrize("name", ["fsdp2", "hsdp"])
def test_offloaded_states_lie_on_the_host(name: str) -> None:
    kind, options = made(name, cpu_offload=True)
    layout = kind.layout(options, Train(), FOUR)
    assert layout.bytes_on("device") == 0
    assert layout.bytes_on("host") == layout.bytes_per_parameter == GOLDEN_STATES[name, "fp32"]


# METRICS, bytes on the wire per rank and step / (element bytes x (N-1)/N), in units of P, with a
# quarter of the parameters outside three blocks: 3P - P_root for FSDP1; FSDP2 keeps the last block
# too. hsdp on 4 ranks: the same over 2 shards, (3 - 1/2)/2, and the all-reduce of half of P over 2
# replicas, 1/2; over 3/4.
GOLDEN_TRAFFIC = {
    "single": 0.0,
    "ddp": 2.0,
    "fsdp2": 3 - 0.25 - 0.25,
    "hsdp": ((3 - 0.5) / 2 + 1 / 2) * 4 / 3,
    "fsdp1": 3 - 0.25,
    "zero1": 3.0,
    "zero2": 3.0,
    "zero3": 2.0,
}


@pytest.mark.parametrize("name", GOLDEN_TRAFFIC)
def test_traffic_is_the_measured_multiple_of_the_parameters(name: str) -> None:
    kind, options = made(name)
    traffic = kind.traffic(options, Train(), FOUR)
    sent = bytes_per_step(traffic, 1000, 4, 1, num_block_parameters=750, num_blocks=3)
    assert sent.total_wire == pytest.approx(GOLDEN_TRAFFIC[name] * 1000 * 4 * 3 / 4)


def test_options_change_traffic_as_they_change_the_strategy() -> None:
    def wire(name: str, asked: str = "fp32", ranks: int = 4, **options: Any) -> float:
        kind, given = made(name, **options)
        traffic = kind.traffic(given, Train(precision=asked), World(ranks_per_node=ranks))
        sent = bytes_per_step(traffic, 1000, 4, 1, num_block_parameters=750, num_blocks=3)
        return sent.total_wire / 750

    assert wire("fsdp2", reshard_after_forward=False) == 2 * 4
    # Gathered again among 2 of 4 ranks: (1/2) / (3/4) of what 4 ranks send.
    assert wire("fsdp2", reshard_after_forward=2) == pytest.approx(2 * 4 + 0.5 * 4 * 2 / 3)
    # Of three blocks in pairs the last unit, one block, is kept; all in one unit are.
    assert wire("fsdp2", blocks_per_unit=2) == wire("fsdp2")
    assert wire("fsdp2", blocks_per_unit=3) == wire("fsdp2", blocks_per_unit=9) == 2 * 4
    assert wire("fsdp1", sharding="shard_grad_op") == 2 * 4
    # hsdp keeps the last block, a quarter of P, which 2 ranks would gather again.
    again = 0.25 * 4 * (1 / 2) / (3 / 4)
    assert wire("fsdp1", sharding="hybrid_shard") == pytest.approx(wire("hsdp") + again)
    assert wire("hsdp", shard_size=1) == wire("ddp")
    assert wire("hsdp", shard_size=4) == wire("fsdp2")
    assert wire("ddp", compression="bf16") == 2 * 2
    assert wire("zero2", use_multi_rank_bucket_allreduce=False) == 2 * 4
    assert wire("zero1", "bf16") == 2 * 4 + 2  # gradients summed in float32, weights in bfloat16
    assert wire("zero1", "bf16", reduce_dtype="bfloat16") == 3 * 2
    for low in ("bf16", "fp16"):
        assert wire("fsdp2", low) == 1.5 * 2 + 4
        assert (
            wire("fsdp2", low, reduce_dtype=f"{low.replace('bf', 'bfloat').replace('fp', 'float')}")
            == 2.5 * 2
        )
        assert wire("fsdp1", low) == 1.75 * 2 + 4
    assert all(wire(name, ranks=1) == 0 for name in STRATEGIES)


def test_reduction_of_every_micro_batch_is_counted_where_it_happens() -> None:
    def times(name: str, op: str, **given: Any) -> float:
        kind, options = made(name, **given)
        traffic = kind.traffic(options, Train(), World(ranks_per_node=2))
        one = bytes_per_step(traffic, 1000, 2, 1).payload[op]
        return bytes_per_step(traffic, 1000, 2, 4).payload[op] / one

    assert times("ddp", "all_reduce") == 1
    assert times("fsdp2", "reduce_scatter") == 1
    assert times("fsdp2", "all_gather") == 4
    assert times("fsdp1", "all_gather") == 4
    assert times("fsdp1", "all_gather", sharding="shard_grad_op") == 1
    assert times("hsdp", "all_reduce") == 1
    assert times("zero1", "all_reduce") == 1
    assert times("zero2", "all_reduce") == 4
    assert times("zero3", "reduce_scatter") == 4


def test_the_columns_of_results_say_every_precision_and_mode() -> None:
    for column, values in (("precision", get_args(Precision)), ("mode", get_args(Mode))):
        assert SETTINGS[column] == f"{', '.join(values[:-1])} or {values[-1]}"
