"""What kernels and recomputation cannot do is refused before anything starts."""

from __future__ import annotations

from typing import Any

import pytest
from adopted_models import GPT2
from model_shapes import SMALL_LLAMA

from andromeda_scale.planning.fits import refusal
from andromeda_scale.registry import STRATEGIES
from andromeda_scale.suite.config import Case, StrategySpec
from andromeda_scale.suite.world import World

FLEX = {"attention": "flex", "compile": True}
WIDE = {**SMALL_LLAMA, "num_heads": 3, "num_kv_heads": 3}  # heads of 16


def _refusal(
    strategy: str,
    device: Any,
    model: dict[str, Any] = WIDE,
    options: dict[str, Any] | None = None,
    **train: Any,
) -> str:
    case = Case.model_validate(
        {
            "model_name": "small",
            "model": model,
            "train": {"seq_len": 16, **train},
            "strategy": StrategySpec(name=strategy, options=options or {}),
            "world": World(ranks_per_node=1 if strategy == "single" else 2),
        }
    )
    return refusal(case, device) or ""


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_flex_without_a_backward_is_refused_under_every_strategy(strategy: str) -> None:
    for mode in ("train_step", "forward_backward"):
        reason = _refusal(strategy, "cpu", mode=mode, **FLEX)
        assert reason.startswith("train.attention: FlexAttention has no backward on a CPU")
        assert "FlexAttention" not in _refusal(strategy, "cuda", mode=mode, **FLEX)
    assert "FlexAttention" not in _refusal(strategy, "cpu", mode="forward", **FLEX)


def test_flex_is_refused_for_narrow_heads() -> None:
    reason = _refusal("single", "cuda", SMALL_LLAMA, **FLEX)
    assert reason.startswith("train.attention: flex needs heads of 16 dimensions or more")
    assert "have 8" in reason
    assert not _refusal("single", "cuda", WIDE, **FLEX)


@pytest.mark.parametrize("together", [0, 1, 4])
def test_selective_in_compiled_blocks_is_refused_where_hooks_cut_them(together: int) -> None:
    for compiled in (False, True):
        train = {"activation_checkpointing": "selective", "compile": compiled}
        reason = _refusal("zero3", "cpu", options={"blocks_per_unit": together}, **train)
        cut = compiled and together == 0
        assert reason.startswith("strategy.blocks_per_unit: 0 puts DeepSpeed's hooks") == cut
        assert not _refusal("zero2", "cpu", **train)


@pytest.mark.parametrize("recomputed", ["block", {"every": 2}, {"segment": 2}])
def test_blocks_that_run_again_one_by_one_are_not_fetched_several_at_once(recomputed: Any) -> None:
    train = {"activation_checkpointing": recomputed}
    reason = _refusal("zero3", "cpu", options={"blocks_per_unit": 2}, **train)
    assert reason.startswith("strategy.blocks_per_unit: 2 blocks fetched as one")
    for alone in ({}, {"blocks_per_unit": 1}, {"blocks_per_unit": 0}):
        assert not _refusal("zero3", "cpu", options=alone, **train)


def test_blocks_that_others_call_one_by_one_are_not_fetched_several_at_once() -> None:
    theirs = {"family": "huggingface", "config": GPT2}
    reason = _refusal("zero3", "cpu", theirs, options={"blocks_per_unit": 2})
    assert reason.startswith("strategy.blocks_per_unit: 2: this model is of others")
    for alone in ({}, {"blocks_per_unit": 1}, {"blocks_per_unit": 0}):
        assert not _refusal("zero3", "cpu", theirs, options=alone)
    assert not _refusal("fsdp2", "cpu", theirs, options={"blocks_per_unit": 2})
