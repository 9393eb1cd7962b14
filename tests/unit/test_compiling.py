"""Ways to compile: one graph of model and loss, torch.compile's modes, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from model_shapes import SMALL_ANDROMEDA, SMALL_LLAMA
from pydantic import ValidationError
from torch._dynamo.utils import counters
from torch.nn.attention import _cur_sdpa_kernel_backends

from andromeda_scale.analysis.fairness_rules import rule_of
from andromeda_scale.contracts.references import reference_of
from andromeda_scale.models.factory import ModelFactory
from andromeda_scale.rank import runtime
from andromeda_scale.rank.readback import compute_dtype
from andromeda_scale.registry import load
from andromeda_scale.strategies import common
from andromeda_scale.suite import kernels
from andromeda_scale.suite.config import Case, StrategySpec
from andromeda_scale.suite.training import Compiled, Train
from andromeda_scale.suite.world import World

WHOLE = {"mode": "default", "whole": True}


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Graphs are captured and run eagerly; the keywords of every torch.compile."""
    compile_graph, given = torch.compile, []

    def capture(function: Any, **keywords: Any) -> Any:
        given.append(keywords)
        return compile_graph(function, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", capture)
    torch._dynamo.reset()
    counters.clear()
    yield given
    torch._dynamo.reset()


def _step(model: dict[str, Any], train: Train) -> tuple[float, list[torch.Tensor], Any]:
    factory = ModelFactory(model, train, 0)
    module = factory.build()
    factory.materialise(module, "cpu")
    common.compile_model(module, train)
    tokens, labels = torch.randint(256, (2, 2, 16), generator=torch.manual_seed(0)).unbind()
    with compute_dtype(module, train) as seen:
        loss, _ = module(tokens, labels)
    loss.backward()
    return loss.item(), [p.grad for p in module.parameters() if p.grad is not None], seen()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "chunks"),
    [
        pytest.param(SMALL_LLAMA, 1, id="llama"),
        pytest.param(SMALL_ANDROMEDA, 3, id="andromeda in parts"),
        pytest.param(SMALL_LLAMA, 3, id="llama in parts", marks=pytest.mark.thorough),
        pytest.param(SMALL_ANDROMEDA, 1, id="andromeda", marks=pytest.mark.thorough),
    ],
)
def test_model_and_loss_are_one_graph_without_breaks(
    captured: list[dict[str, Any]], model: dict[str, Any], chunks: int
) -> None:
    settings: dict[str, Any] = {"seq_len": 16, "micro_batch_size": 2, "loss_chunks": chunks}
    loss, gradients, dtype = _step(model, Train(**settings))
    found, of_whole, seen = _step(model, Train(**settings, compile=WHOLE))
    assert (counters["stats"]["unique_graphs"], dict(counters["graph_break"])) == (1, {})
    assert captured == [{}]
    assert found == pytest.approx(loss, rel=1e-6)
    for gradient, expected in zip(of_whole, gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)
    assert seen == dtype == "float32"


def test_a_mode_is_torchs_and_default_is_none_of_its_words(captured: list[dict[str, Any]]) -> None:
    module = ModelFactory(SMALL_LLAMA, Train(), 0).build()
    graphs = {"mode": "reduce-overhead", "whole": True}
    common.compile_model(module, Train(compile=graphs))
    common.compile_model(module, Train(compile={"mode": "max-autotune-no-cudagraphs"}))
    blocks = [{"mode": "max-autotune-no-cudagraphs"}] * len(module.blocks)  # type: ignore[arg-type]
    assert captured == [{"mode": "reduce-overhead"}, *blocks]
    assert Train(compile={"mode": "default"}) == Train(compile=True)
    assert Train(compile=False).compiling is None
    assert Train(compile=graphs).compiling == Compiled(mode="reduce-overhead", whole=True)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"compile": "fast"}, "'fast' is no compilation; use true, false"),
        ({"compile": {"mode": "reduce-overhead"}}, "set whole: true"),
        ({"compile": WHOLE, "activation_checkpointing": "block"}, "leaves no blocks to checkpoint"),
        (
            {"compile": {"mode": "reduce-overhead", "whole": True}, "grad_accum": 2},
            "use grad_accum: 1",
        ),
        ({"attention_backend": "flash", "attention": "naive"}, "not of naive; use auto"),
    ],
)
def test_what_contradicts_itself_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Train(**settings)


def test_what_this_device_or_strategy_cannot_do_is_refused() -> None:
    graphs = Train(compile={"mode": "reduce-overhead", "whole": True})
    assert "CUDA graphs" in (kernels.refusal(graphs, "cpu") or "")
    assert kernels.refusal(graphs, "cuda") is None
    for backend, here in (("cudnn", False), ("efficient", False), ("flash", True), ("math", True)):
        assert (kernels.refusal(Train(attention_backend=backend), "cpu") is None) == here
    for name, can in (("single", True), ("ddp", True), ("fsdp2", False), ("zero3", False)):
        kind = load("strategy", name)
        reason = kind.refuses(kind.Options(), Train(compile=WHOLE), World(), "cuda")
        assert (reason is None) == can
    custom = load("model family", "custom")(callable="a:b", blocks="layers")
    assert "whole: true" in (custom.refuses(Train(compile=WHOLE)) or "")


def test_a_reference_compiles_block_by_block_so_that_it_can_accumulate() -> None:
    train = Train(compile={"mode": "reduce-overhead", "whole": True})
    world = World(ranks_per_node=2)
    ddp = StrategySpec(name="ddp")
    case = Case(model_name="m", model=SMALL_LLAMA, train=train, strategy=ddp, world=world)
    reference = reference_of(case, "cuda").train
    assert (reference.compile, reference.grad_accum) == (True, 2)


def test_a_backend_that_is_named_is_the_only_one() -> None:
    before = _cur_sdpa_kernel_backends()
    runtime._order_attention("math", torch.device("cpu"))
    assert [backend.name for backend in _cur_sdpa_kernel_backends()] == ["MATH"]
    runtime._order_attention("auto", torch.device("cpu"))
    assert _cur_sdpa_kernel_backends() == before


def test_ways_to_compile_and_backends_are_levers_of_the_fairness_table() -> None:
    for key in ("train.compile", "train.attention_backend", "train.loss_chunks"):
        assert rule_of(key).flag == "differs"
