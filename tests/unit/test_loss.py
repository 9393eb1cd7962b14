"""The head's loss in parts against the loss of whole logits: losses, gradients, what is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from andromeda_scale.analysis.fairness_rules import rule_of
from andromeda_scale.collectors.allocations import CpuAllocations
from andromeda_scale.models.loss import NextTokenLoss
from andromeda_scale.registry import load
from andromeda_scale.suite.training import Train, loss_chunks

B, T, D, V = 2, 37, 24, 501  # 74 tokens: not a multiple of the parts
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SCALE = 3 / 74  # what training multiplies a summed loss by
# Of a gradient's norm. The largest of 20 seeds on a CPU: 4.5e-7 and 3.7e-3.
CLOSE = {torch.float32: 1.5e-6, torch.bfloat16: 1.5e-2}


def _inputs(dtype: torch.dtype, device: str, *, biased: bool) -> list[Any]:
    torch.manual_seed(0)
    x = torch.randn(B, T, D, device=device).to(dtype)
    weight = (torch.randn(V, D, device=device) / D**0.5).to(dtype)
    bias = torch.randn(V, device=device).to(dtype) if biased else None
    labels = torch.randint(V, (B, T), device=device)
    return [*(t if t is None else t.requires_grad_() for t in (x, weight, bias)), labels]


def _trained(loss: NextTokenLoss, inputs: list[Any]) -> tuple[Tensor, list[Tensor]]:
    leaves = [t for t in inputs[:3] if t is not None]
    for leaf in leaves:
        leaf.grad = None
    found = loss(*inputs)
    (found * SCALE).backward()
    return found.detach(), [leaf.grad for leaf in leaves]


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("chunks", [2, 3, 74])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", list(CLOSE))
def test_a_loss_in_parts_and_its_gradients_are_those_of_whole_logits(
    device: str, chunks: int, biased: bool, dtype: torch.dtype
) -> None:
    inputs = _inputs(dtype, device, biased=biased)
    whole, expected = _trained(NextTokenLoss(1, compiled=False), inputs)
    parts = NextTokenLoss(chunks, compiled=False)
    found, gradients = _trained(parts, inputs)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(whole.item(), rel=1e-6)
    for gradient, of_whole in zip(gradients, expected, strict=True):
        assert gradient.dtype == of_whole.dtype
        assert _distance(gradient, of_whole) < CLOSE[dtype]
    assert (parts.describe(), parts.product_dtype) == ({"chunks": chunks}, dtype)


def test_under_autocast_parts_multiply_in_the_low_dtype_and_keep_float32_gradients() -> None:
    inputs = _inputs(torch.float32, "cpu", biased=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole, expected = _trained(NextTokenLoss(1, compiled=False), inputs)
        parts = NextTokenLoss(4, compiled=False)
        found, gradients = _trained(parts, inputs)
    assert parts.product_dtype == torch.bfloat16
    assert found.item() == pytest.approx(whole.item(), rel=1e-6)
    for gradient, of_whole in zip(gradients, expected, strict=True):
        assert gradient.dtype == torch.float32
        assert _distance(gradient, of_whole) < CLOSE[torch.bfloat16]


def test_many_parts_sum_the_weights_gradient_in_float32() -> None:
    inputs = _inputs(torch.bfloat16, "cpu", biased=False)
    exact = [t if t is None else t.detach().double().requires_grad_() for t in inputs[:3]]
    _, expected = _trained(NextTokenLoss(1, compiled=False), [*exact, inputs[3]])
    errors = [
        _distance(_trained(NextTokenLoss(chunks, compiled=False), inputs)[1][1], expected[1])
        for chunks in (1, 74)
    ]
    assert errors[1] < 1.2 * errors[0]


def test_without_gradients_nothing_but_a_sum_is_left_of_the_parts() -> None:
    inputs = _inputs(torch.float32, "cpu", biased=True)
    with torch.no_grad():
        whole = NextTokenLoss(1, compiled=False)(*inputs)
        found = NextTokenLoss(5, compiled=False)(*inputs)
    assert found.item() == pytest.approx(whole.item(), rel=1e-6)
    assert found.grad_fn is None


@pytest.mark.slow
def test_logits_are_never_whole_in_memory() -> None:
    x, weight = torch.randn(1, 1024, 8, requires_grad=True), torch.randn(4000, 8)
    labels = torch.randint(4000, (1, 1024))
    logits, parts = 4 * 1024 * 4000, NextTokenLoss(32, compiled=False)
    watched = CpuAllocations()
    before = CpuAllocations.alive_bytes()
    watched.start()
    parts(x, weight.requires_grad_(), None, labels).backward()
    assert watched.stop().peak - before < logits / 4


@pytest.mark.parametrize(
    ("given", "vocab_size", "chunks"),
    [
        ({"seq_len": 8192}, 128256, 4),  # 3.9 GiB
        ({"seq_len": 8192, "micro_batch_size": 2}, 128256, 8),
        ({"seq_len": 1024, "micro_batch_size": 8}, 10000, 1),  # 0.3 GiB
        ({"seq_len": 2**18}, 1024, 1),  # 1 GiB exactly
        ({"seq_len": 16, "loss_chunks": 4}, 256, 4),
        ({"seq_len": 2, "loss_chunks": 4}, 256, 2),
    ],
)
def test_auto_takes_as_few_parts_as_stay_below_a_gibibyte(
    given: dict[str, Any], vocab_size: int, chunks: int
) -> None:
    assert loss_chunks(Train(**given), vocab_size) == chunks


def test_a_head_that_does_more_than_a_product_is_refused_parts_and_has_none_by_itself() -> None:
    asked, auto = Train(loss_chunks=4), Train(seq_len=2**20)
    for family, options in (
        ("custom", {"callable": "a:b", "vocab_size": 10**6}),
        ("huggingface", {"config": {"model_type": "gemma2", "vocab_size": 10**6}}),
    ):
        config = load("model family", family)(**options)
        reason = config.refuses(asked)
        assert reason is not None
        assert reason.startswith("train.loss_chunks: 4 ")
        assert reason.endswith("use auto")
        assert (config.refuses(auto), config.loss_chunks(auto)) == (None, 1)


def test_parts_are_a_lever_of_the_fairness_table() -> None:
    assert rule_of("loss.chunks").flag == "differs"
