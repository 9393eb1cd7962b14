"""The closed form of a rank's peak memory against a measured training step."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_shapes import shape_of
from torch.profiler import ProfilerActivity, profile

from andromeda_scale.cost import memory
from andromeda_scale.cost.layout import Part, StateLayout, Traffic
from andromeda_scale.cost.model import num_parameters
from andromeda_scale.models.factory import ModelFactory
from andromeda_scale.registry import load
from andromeda_scale.training import Train
from andromeda_scale.world import World

WHOLE = StateLayout(Part(4), Part(4), Part(0), Part(8))

ANDROMEDA = {
    "family": "andromeda",
    "vocab_size": 2000,
    "d_model": 128,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 64,
    "alibi_num_heads": 2,
}
LLAMA = {
    "family": "llama",
    "vocab_size": 2000,
    "d_model": 128,
    "d_ff": 384,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "naive": {"attention": "naive"},
    "causal": {"attention": "sdpa_causal"},
    "checkpointed": {"activation_checkpointing": "block"},
    "accumulated": {"grad_accum": 2},
    "short": {"seq_len": 32, "micro_batch_size": 1},
    "forward": {"mode": "forward"},
    "all at once": {
        "activation_checkpointing": "block",
        "attention": "naive",
        "precision": "bf16",
    },
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("model", [ANDROMEDA, LLAMA], ids=["andromeda", "llama"])
def test_the_estimate_is_within_10_percent_of_a_measured_step(
    model: dict[str, Any], setting: dict[str, Any], tmp_path: Path
) -> None:
    train = Train(**{"seq_len": 192, "micro_batch_size": 2, **setting})
    estimated = memory.estimate(shape_of(model), train, WHOLE, Traffic(), 1)
    measured = _measured_peak(model, train, tmp_path / "trace.json")
    assert estimated.total == pytest.approx(measured, rel=0.10)


def _measured_peak(model: dict[str, Any], train: Train, trace: Path) -> int:
    """Bytes of states, plus the most that the CPU allocator held above them in the second step."""
    factory = ModelFactory(model, train, 0)
    module = factory.build()
    factory.materialise(module, "cpu")
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    tokens = torch.randint(2000, (train.micro_batch_size, train.seq_len))

    def step() -> None:
        for _ in range(train.grad_accum):
            with (
                torch.set_grad_enabled(train.mode != "forward"),
                torch.autocast(
                    "cpu", torch.bfloat16, train.precision == "bf16", cache_enabled=False
                ),
            ):
                loss, num_tokens = module(tokens, tokens)
            if train.mode != "forward":
                (loss / num_tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    moments = [value for state in optimizer.state.values() for value in state.values()]
    kept = [*module.parameters(), *module.buffers(), *moments]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    profiler.export_chrome_trace(str(trace))
    events = [e for e in json.loads(trace.read_text())["traceEvents"] if e["name"] == "[memory]"]
    above = peak = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        above += event["args"]["Bytes"]
        peak = max(peak, above)
    return sum(t.numel() * t.element_size() for t in kept) + peak


def test_states_follow_the_layout_and_the_mode() -> None:
    shape = shape_of(ANDROMEDA)
    parameters = num_parameters(shape)
    sharded = StateLayout(Part(4, 4), Part(4, 4), Part(0), Part(8, 4))
    for layout, mode, per_parameter in (
        (WHOLE, "train_step", 16),
        (WHOLE, "forward_backward", 8),
        (WHOLE, "forward", 4),
        (sharded, "train_step", 4),
    ):
        train = Train(mode=mode)
        found = memory.estimate(shape, train, layout, Traffic(), 4)
        assert found.states == per_parameter * parameters


def test_sharding_saves_states_but_gathers_units() -> None:
    shape, train = shape_of(ANDROMEDA), Train()
    sharded = StateLayout(Part(4, 64), Part(4, 64), Part(0), Part(8, 64))
    whole, parts = (memory.estimate(shape, train, x, Traffic(), 64) for x in (WHOLE, sharded))
    assert parts.states < whole.states / 50
    assert parts.buffers > whole.buffers + 4 * 2 * shape.vocab_size * shape.d_model
    assert parts.total < whole.total


def test_bf16_without_autocast_halves_the_residual_stream() -> None:
    shape, train = shape_of(LLAMA), Train(precision="bf16")
    autocast = memory.estimate(shape, train, WHOLE, Traffic(), 1)
    zero = replace(WHOLE, parameters=Part(2), master=Part(4))
    assert memory.estimate(shape, train, zero, Traffic(), 1).activations < autocast.activations


def test_a_bucket_is_never_larger_than_the_model_twice() -> None:
    shape = shape_of(ANDROMEDA)
    none, some, huge = (
        memory.estimate(shape, Train(), WHOLE, Traffic(buffer_bytes=size), 2).buffers
        for size in (0, 1000, 10**12)
    )
    assert some - none == 1000
    assert huge - none == 8 * num_parameters(shape)


def test_gradients_reduced_once_a_step_are_held_whole_between_micro_batches() -> None:
    # FSDP2 without gradient sync and ZeRO-1 reduce after the last micro-batch, ZeRO-2 after each.
    shape = shape_of(ANDROMEDA)
    parameters, ranks = num_parameters(shape), 8

    def growth(name: str, world_size: int) -> float:
        strategy = load("strategy", name)
        layout = strategy.layout(strategy.Options(), Train(), World(ranks_per_node=world_size))
        traffic = strategy.traffic(strategy.Options(), Train(), World(ranks_per_node=world_size))
        once, twice = (
            memory.estimate(
                shape, Train(seq_len=16, grad_accum=n), layout, traffic, world_size
            ).total
            for n in (1, 2)
        )
        return (twice - once) / parameters

    for name in ("fsdp2", "zero1"):
        assert growth(name, ranks) > 3.0  # of the 4 bytes, less what the loss's peak hid
    assert growth("zero2", ranks) <= 4 / ranks
