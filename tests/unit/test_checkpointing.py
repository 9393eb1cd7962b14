"""Activation checkpointing: the same gradients from fewer saved bytes, and what ran again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from model_shapes import SMALL_ANDROMEDA, SMALL_LLAMA, materialised
from torch.autograd.profiler import profile

from andromeda_scale.models.checkpointing import Recomputation
from andromeda_scale.rank.readback import num_to_recompute
from andromeda_scale.suite.training import Train, recomputed

KINDS: dict[str, Any] = {
    "none": "none",
    "selective": "selective",
    "every 2": {"every": 2},
    "every 3": {"every": 3},
    "block": "block",
    "segment 2": {"segment": 2},
    "segment 3": {"segment": 3},
}
NUM_BLOCKS = 4
RUN_AGAIN = dict(zip(KINDS, (0, 4, 2, 2, 4, 4, 4), strict=True))
Found = tuple[float, list[torch.Tensor], int, dict[str, Any]]


def _step(model: dict[str, Any], kind: Any, *, compiled: bool = False, **train: Any) -> Found:
    """Loss, gradients, bytes that forward left allocated, and what is read back."""
    model = {**model, "num_layers": NUM_BLOCKS}
    settings = {"activation_checkpointing": kind, "compile": compiled, "seq_len": 32, **train}
    module = materialised(model, **settings)
    tokens = torch.randint(257, (2, 32), generator=torch.Generator().manual_seed(0))
    if compiled:
        for block in module.blocks:  # what of it is saved is decided before C++ is written
            block.forward = torch.compile(block.forward, backend="aot_eager_decomp_partition")
        module(tokens, tokens)[0].backward()
        module.zero_grad()
    gc.collect()
    gc.disable()  # what an earlier step left must not be freed while this one is counted
    with profile(use_kineto=True, profile_memory=True) as allocations:
        loss, _ = module(tokens, tokens)
    gc.enable()
    events = allocations.kineto_results.events()
    left = sum(event.nbytes() for event in events if event.name() == "[memory]")
    loss.backward()
    gradients = [parameter.grad for parameter in module.parameters()]
    return loss.item(), gradients, left, module.describe_checkpointing()


@pytest.fixture(autouse=True, scope="module")
def _small_heap() -> Iterator[None]:
    """What was imported before is not looked through at each collection."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _own_compilations() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "kernel"),
    [(SMALL_ANDROMEDA, "naive"), (SMALL_LLAMA, "sdpa_causal")],
    ids=["andromeda", "llama"],
)
def test_every_kind_gives_the_gradients_of_none_and_runs_its_blocks_again(
    model: dict[str, Any], kernel: str
) -> None:
    found = {name: _step(model, kind, attention=kernel) for name, kind in KINDS.items()}
    loss, gradients, *_ = found["none"]
    for name, (own_loss, own, _, facts) in found.items():
        assert own_loss == loss, name
        torch.testing.assert_close(own, gradients, rtol=0, atol=0)
        assert facts == {"kind": KINDS[name], "blocks_recomputed": RUN_AGAIN[name]}
    saved = {name: left for name, (_, _, left, _) in found.items()}
    for less, more in (
        ("selective", "none"),
        ("every 2", "none"),
        ("block", "every 2"),
        ("block", "selective"),
        ("segment 2", "block"),
    ):
        assert saved[less] < saved[more], (less, more, saved)
    # block keeps one input of d = 48 floats a token and block, and of every block's inside nothing.
    inputs = 2 * 32 * 48 * 4
    assert saved["block"] - saved["segment 2"] == 2 * inputs
    assert saved["segment 2"] == saved["segment 3"]  # two segments either way


def test_selective_keeps_the_products_with_weights_and_what_attention_gives() -> None:
    """Against block, in floats a token: outputs of 8 products, of attention, and its log-sum."""
    model = {**SMALL_ANDROMEDA, "num_kv_heads": 6, "alibi_num_heads": 0}
    saved = {
        kind: _step(model, kind, attention="sdpa_causal")[2] for kind in ("selective", "block")
    }
    products = 3 * 240 + 48 + 4 * 48 + 48  # q, k, v, out; up, down
    attention = 240 + 6
    floats = (saved["selective"] - saved["block"]) / (4 * 2 * 32 * NUM_BLOCKS)
    assert floats == products + attention


@pytest.mark.thorough
def test_selective_saves_memory_in_compiled_blocks_too() -> None:
    loss, gradients, whole, _ = _step(SMALL_LLAMA, "none", compiled=True)
    own_loss, own, left, facts = _step(SMALL_LLAMA, "selective", compiled=True)
    assert own_loss == loss
    torch.testing.assert_close(own, gradients, rtol=1e-5, atol=1e-7)
    assert left < 0.8 * whole
    assert facts["blocks_recomputed"] is None  # what runs again is inside the compiled graph


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_nothing_is_recomputed_or_kept_without_gradients(kind: Any) -> None:
    module = materialised(SMALL_ANDROMEDA, activation_checkpointing=kind)
    tokens = torch.randint(257, (2, 16))
    with torch.no_grad():
        loss, _ = module(tokens, tokens)
    assert not loss.requires_grad
    assert module.describe_checkpointing()["blocks_recomputed"] == 0
    assert num_to_recompute(Train(activation_checkpointing=kind, mode="forward"), 4) == 0


@pytest.mark.parametrize(
    ("kind", "num_blocks", "groups"),
    [
        ("none", 3, []),
        ("block", 2, [[0], [1]]),
        ("selective", 2, [[0], [1]]),
        ({"every": 2}, 5, [[0], [2], [4]]),
        ({"every": 9}, 3, [[0]]),
        ({"segment": 2}, 5, [[0, 1], [2, 3], [4]]),
        ({"segment": 9}, 3, [[0, 1, 2]]),
        ("block", 0, []),
    ],
)
def test_blocks_are_recomputed_in_these_groups(
    kind: Any, num_blocks: int, groups: list[list[int]]
) -> None:
    train = Train(activation_checkpointing=kind)
    found = recomputed(train.activation_checkpointing, num_blocks)
    assert [list(group) for group in found] == groups
    assert num_to_recompute(train, num_blocks) == sum(map(len, groups))


@pytest.mark.parametrize("kind", ["block", "selective"])
def test_blocks_of_others_draw_the_same_numbers_again(kind: str) -> None:
    gradients = []
    for checkpointing in ("none", kind):
        torch.manual_seed(0)
        block = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5))
        recomputation = Recomputation(Train(activation_checkpointing=checkpointing), [block])
        recomputation.replace_calls([block])
        block(torch.randn(4, 8)).square().sum().backward()
        gradients.append(block[0].weight.grad)
    assert torch.equal(*gradients)
    assert recomputation.describe([block])["blocks_recomputed"] == 1
