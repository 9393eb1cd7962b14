"""The precision policy, and what strategies say of their bytes under it."""

from __future__ import annotations

import pytest

from andromeda_scale import registry
from andromeda_scale.cost.comm import bytes_per_step
from andromeda_scale.precision import POLICIES, element_bytes
from andromeda_scale.training import Train
from andromeda_scale.world import World

NAMES = ("single", "ddp", "fsdp2", "zero1", "zero2", "zero3")


@pytest.mark.parametrize("precision", POLICIES)
def test_masters_and_optimizer_state_are_always_float32(precision: str) -> None:
    assert POLICIES[precision].master == "float32"
    assert POLICIES[precision].optimizer_state == "float32"
    assert POLICIES[precision].reduction == "float32"


def test_element_bytes_are_torchs() -> None:
    import torch

    for policy in POLICIES.values():
        for name in (policy.master, policy.compute, policy.reduction):
            assert element_bytes(name) == getattr(torch, name).itemsize


# METRICS, states with Adam, measured: bytes per parameter on N = 4 ranks.
GOLDEN_STATES = {
    ("single", "fp32"): 16,
    ("single", "bf16"): 16,
    ("ddp", "fp32"): 16,
    ("ddp", "bf16"): 16,
    ("fsdp2", "fp32"): 16 / 4,
    ("fsdp2", "bf16"): 16 / 4,
    ("zero1", "fp32"): 4 + 16 / 4,
    ("zero1", "bf16"): 2 + 14 / 4,
    ("zero2", "fp32"): 4 + 16 / 4,
    ("zero2", "bf16"): 2 + 14 / 4,
    ("zero3", "fp32"): 20 / 4,
    ("zero3", "bf16"): 16 / 4,
}


@pytest.mark.parametrize(("name", "precision"), GOLDEN_STATES)
def test_state_bytes_per_parameter_are_the_measured_ones(name: str, precision: str) -> None:
    kind = registry.load("strategy", name)
    layout = kind.layout(kind.Options(), Train(precision=precision), World(ranks_per_node=4))
    assert layout.bytes_per_parameter == GOLDEN_STATES[name, precision]


# METRICS, bytes on the wire per rank and step / (element bytes x (N-1)/N), in units of P, with a
# quarter of the parameters outside the blocks: 3P - P_root for FSDP2.
GOLDEN_TRAFFIC = {
    "single": 0.0,
    "ddp": 2.0,
    "fsdp2": 3 - 0.25,
    "zero1": 3.0,
    "zero2": 3.0,
    "zero3": 2.0,
}


@pytest.mark.parametrize("name", NAMES)
def test_traffic_is_the_measured_multiple_of_the_parameters(name: str) -> None:
    kind = registry.load("strategy", name)
    traffic = kind.traffic(kind.Options(), Train(), World(ranks_per_node=4))
    sent = bytes_per_step(traffic, 1000, 4, grad_accum=1, num_block_parameters=750)
    assert sent.total_wire == GOLDEN_TRAFFIC[name] * 1000 * 4 * 3 / 4


def test_options_change_traffic_as_they_change_the_strategy() -> None:
    def wire(name: str, precision: str = "fp32", ranks: int = 4, **options: object) -> float:
        kind = registry.load("strategy", name)
        traffic = kind.traffic(
            kind.Options.model_validate(options),
            Train(precision=precision),
            World(ranks_per_node=ranks),
        )
        return bytes_per_step(traffic, 1000, 4, 1, num_block_parameters=750).total_wire / 750

    assert wire("fsdp2", reshard_after_forward=False) == 2 * 4
    assert wire("zero2", use_multi_rank_bucket_allreduce=False) == 2 * 4
    assert wire("zero1", "bf16") == 2 * 4 + 2  # gradients summed in float32, weights in bfloat16
    assert wire("zero1", "bf16", reduce_dtype="bfloat16") == 3 * 2
    assert wire("fsdp2", "bf16") == 1.75 * 2 + 4
    assert all(wire(name, ranks=1) == 0 for name in NAMES)


def test_reduction_of_every_micro_batch_is_counted_where_it_happens() -> None:
    def times(name: str, op: str) -> float:
        kind = registry.load("strategy", name)
        traffic = kind.traffic(kind.Options(), Train(), World(ranks_per_node=2))
        one = bytes_per_step(traffic, 1000, 2, 1).payload[op]
        return bytes_per_step(traffic, 1000, 2, 4).payload[op] / one

    assert times("ddp", "all_reduce") == 1
    assert times("fsdp2", "reduce_scatter") == 1
    assert times("fsdp2", "all_gather") == 4
    assert times("zero1", "all_reduce") == 1
    assert times("zero2", "all_reduce") == 4
    assert times("zero3", "reduce_scatter") == 4
