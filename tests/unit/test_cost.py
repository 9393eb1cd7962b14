"""Closed forms against published numbers, built models and torch's own counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_shapes import SMALL, SMALL_ANDROMEDA, SMALL_LLAMA, materialised, shape_of, shipped
from torch.utils.flop_counter import FlopCounterMode

from andromeda_scale.cost import comm
from andromeda_scale.cost.hardware import peak_flops
from andromeda_scale.cost.layout import Collective, Traffic
from andromeda_scale.cost.model import (
    CONVENTIONS,
    DEFAULT_CONVENTION,
    attention_flops_per_token,
    flops_per_token,
    linear_flops_per_token,
    mfu,
    num_parameters,
)
from andromeda_scale.models.andromeda import AndromedaConfig
from andromeda_scale.models.factory import ModelFactory
from andromeda_scale.models.llama import LlamaConfig
from andromeda_scale.suite.training import Train


@pytest.mark.parametrize(
    ("convention", "percent"),
    [
        ("6n", 32.5),
        ("6n_noemb+causal", 34.7),
        ("6n_noemb+dense", 39.0),
        ("6n+dense", 41.2),
        ("hfu", 52.1),
    ],
)
def test_conventions_give_the_known_shares_for_llama_8b(convention: Any, percent: float) -> None:
    # torchtitan's Llama-3.1-8B on H100s: 6,667 tokens/s/GPU at T = 8192, peak 989e12.
    per_token = flops_per_token(shape_of(shipped("llama-3.1-8b")), 8192, "train_step", convention)
    assert 100 * mfu(6667 * 8, per_token, 8, 989e12) == pytest.approx(percent, abs=0.051)


def test_every_convention_is_described_and_the_default_is_one() -> None:
    assert set(CONVENTIONS) == {"6n", "6n_noemb+causal", "6n_noemb+dense", "6n+dense", "hfu"}
    assert DEFAULT_CONVENTION == "6n_noemb+causal"


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_forward_is_a_third_of_a_step_and_recomputes_nothing(convention: Any) -> None:
    shape = shape_of(shipped("llama-3.1-8b"))
    forward = flops_per_token(shape, 512, "forward", convention)
    step = flops_per_token(shape, 512, "train_step", convention)
    assert step == pytest.approx(forward * (4 if convention == "hfu" else 3))
    assert flops_per_token(shape, 512, "forward_backward", convention) == step


@pytest.mark.parametrize(
    ("name", "linear", "attention"),
    [
        ("andromeda-default", 4.70, 3.22),
        ("andromeda-3b", 4.46, 1.21),
        ("andromeda-7b", 10.21, 2.15),
    ],
)
def test_forward_gflops_per_token_of_andromeda(name: str, linear: float, attention: float) -> None:
    # 2 per matmul weight, 4 L h dh T: counted by hand from the published shapes, T = 8192.
    shape = shape_of(shipped(name))
    assert linear_flops_per_token(shape) / 1e9 == pytest.approx(linear, abs=0.005)
    assert attention_flops_per_token(shape, 8192) / 1e9 == pytest.approx(attention, abs=0.005)


@pytest.mark.parametrize("model", SMALL.values(), ids=SMALL)
def test_torch_counts_the_same_flops_in_a_built_model(model: dict[str, Any]) -> None:
    """FlopCounterMode counts mm, addmm and bmm: all products, no norm, softmax or activation."""
    batch, seq_len = 2, 24
    module = materialised(model, attention="naive", seq_len=seq_len)
    tokens = torch.randint(257, (batch, seq_len))
    shape = shape_of(model)
    dense = linear_flops_per_token(shape) + attention_flops_per_token(shape, seq_len)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        module(tokens, tokens)
    assert forward.get_total_flops() == dense * batch * seq_len
    with FlopCounterMode(display=False) as step:
        module(tokens, tokens)[0].backward()
    assert step.get_total_flops() == 3 * dense * batch * seq_len


@pytest.mark.parametrize("model", SMALL.values(), ids=SMALL)
def test_block_checkpointing_recomputes_the_blocks_and_no_more(model: dict[str, Any]) -> None:
    module = materialised(model, attention="naive", activation_checkpointing="block", seq_len=24)
    tokens = torch.randint(257, (2, 24))
    shape = shape_of(model)
    with FlopCounterMode(display=False) as step:
        module(tokens, tokens)[0].backward()
    linear, attention = linear_flops_per_token(shape), attention_flops_per_token(shape, 24)
    # Not the head, and not the last product of a block: nothing after it needs its result.
    head = 2 * shape.vocab_size * shape.d_model
    last = 2 * shape.num_layers * shape.d_ff * shape.d_model
    assert step.get_total_flops() == 48 * (4 * (linear + attention) - head - last)


@settings(deadline=None, max_examples=60)
@given(
    d=st.integers(1, 64),
    depth=st.integers(1, 4),
    kv=st.integers(1, 4),
    group=st.integers(1, 4),
    dh=st.integers(8, 20).map(lambda x: 4 * x),
    vocab=st.integers(1, 500),
)
def test_parameters_follow_the_written_sums(
    d: int, depth: int, kv: int, group: int, dh: int, vocab: int
) -> None:
    h = kv * group
    andromeda = AndromedaConfig(
        vocab_size=vocab,
        d_model=d,
        num_layers=depth,
        num_heads=h,
        num_kv_heads=kv,
        head_dim=dh,
        alibi_num_heads=h // 2,
    )
    block = 2 * d * h * dh + 2 * d * kv * dh + 2 * dh + 8 * d * d + 5 * d + 4 * d
    expected = depth * block + 2 * d + 2 * vocab * d + vocab
    assert num_parameters(andromeda.shape()) == expected
    options = {"vocab_size": vocab, "d_model": d, "d_ff": 3 * d, "num_layers": depth}
    for tied, tables in ((False, 2), (True, 1)):
        llama = LlamaConfig(**options, num_heads=h, num_kv_heads=kv, head_dim=dh, tied_head=tied)
        block = 2 * d * h * dh + 2 * d * kv * dh + 9 * d * d + 2 * d
        assert num_parameters(llama.shape()) == depth * block + d + tables * vocab * d


@pytest.mark.parametrize("change", [{"deepnorm": True}, {"num_kv_heads": 6}, {"head_dim": 64}])
def test_built_andromedas_agree_with_the_closed_form(change: dict[str, Any]) -> None:
    model = {**SMALL_ANDROMEDA, **change}
    built = ModelFactory(model, Train(), 0).build()
    assert sum(p.numel() for p in built.parameters()) == num_parameters(shape_of(model))


@pytest.mark.parametrize("change", [{"tied_head": True}, {"num_kv_heads": 6}, {"head_dim": 64}])
def test_built_llamas_agree_with_the_closed_form(change: dict[str, Any]) -> None:
    model = {**SMALL_LLAMA, **change}
    built = ModelFactory(model, Train(), 0).build()
    assert sum(p.numel() for p in built.parameters()) == num_parameters(shape_of(model))


def test_ddp_sends_2p_and_zero3_3p_over_a_ring() -> None:
    # Rajbhandari et al., ZeRO (arXiv:1910.02054), section 7: 2 Psi and 3 Psi, times (n - 1) / n.
    ddp = Traffic((Collective("all_reduce", 1.0, 4),))
    sent = comm.bytes_per_step(ddp, 1000, 4, grad_accum=5)
    assert sent.payload == {"all_reduce": 4000}
    assert sent.total_wire == 2 * 4000 * 3 / 4
    sharded = Traffic(
        (
            Collective("all_gather", 2.0, 2, per="micro_batch"),
            Collective("reduce_scatter", 1.0, 4),
        )
    )
    sent = comm.bytes_per_step(sharded, 1000, 8, grad_accum=1)
    assert sent.payload == {"all_gather": 4000, "reduce_scatter": 4000}
    assert sent.total_wire == (2 * 2 + 4) * 1000 * 7 / 8
    assert comm.bytes_per_step(sharded, 1000, 8, grad_accum=3).payload["all_gather"] == 12000
    doubled = comm.bytes_per_step(sharded, 1000, 8, grad_accum=1, backend="gloo")
    assert doubled.wire["reduce_scatter"] == 2 * 4000 * 7 / 8


def test_a_group_smaller_than_the_world_sends_by_its_own_size() -> None:
    traffic = Traffic((Collective("all_gather", 1.0, 4, over=2),))
    assert comm.bytes_per_step(traffic, 1000, 8, grad_accum=1).total_wire == 4000 / 2
    assert comm.bytes_per_step(traffic, 1000, 8, grad_accum=1).payload == {"all_gather": 4000}


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("A100-SXM4-40GB", "bf16", 312e12),  # as drivers before 470 call it
        ("nvidia a100-sxm4-80gb", "fp32", 19.5e12),
        ("Tesla V100-SXM2-16GB", "fp16", 125e12),
    ],
)
def test_a_known_device_has_its_dense_peak_and_a_source(
    name: str, precision: str, peak: float
) -> None:
    found = peak_flops(name, precision)
    assert found is not None
    assert found.flops_per_s == peak
    assert found.source


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16"),  # a seventh of a device
        ("NVIDIA H100", "bf16"),  # which one?
        ("Tesla V100-SXM2-16GB", "bf16"),  # has none
        ("NVIDIA H100 80GB HBM3", "fp7"),
        ("Intel(R) Xeon(R) Processor", "fp32"),
        ("", "fp32"),
    ],
)
def test_an_unknown_device_or_precision_has_no_peak(name: str, precision: str) -> None:
    assert peak_flops(name, precision) is None
