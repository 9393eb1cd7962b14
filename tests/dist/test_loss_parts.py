"""The loss in parts over the tokens: every strategy trains as with whole logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from group import LLAMA, Group, of_kind, phase_values, tiny_case
from training_run import Trace, largest_difference, mean_losses, runner

from andromeda_scale.hardware.machine import cpu_has_fp16

Run = Callable[..., list[Trace]]
PARTS = 3  # of 16 tokens: uneven ones


@pytest.fixture(scope="module")
def run(group: Group, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return runner(group, tmp_path_factory.mktemp("traces"))


@pytest.mark.thorough
@pytest.mark.parametrize("grad_accum", [1, 2])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "hsdp", "fsdp1", "zero1", "zero2", "zero3"])
def test_every_strategy_trains_in_parts_as_with_whole_logits(
    run: Run, strategy: str, grad_accum: int
) -> None:
    whole = run(strategy, grad_accum=grad_accum)
    parts = run(strategy, grad_accum=grad_accum, loss_chunks=PARTS)
    assert mean_losses(parts) == pytest.approx(mean_losses(whole), rel=1e-6)
    assert parts[0]["norms"] == pytest.approx(whole[0]["norms"], rel=1e-5)
    moved = largest_difference(parts[0]["trained"], parts[0]["weights"])
    assert largest_difference(parts[0]["trained"], whole[0]["trained"]) < 0.2 * moved


@pytest.mark.thorough
@pytest.mark.parametrize(
    "precision",
    ["bf16", pytest.param("fp16", marks=pytest.mark.skipif(not cpu_has_fp16(), reason="no fp16"))],
)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero3"])
def test_parts_in_low_precision_are_within_its_rounding(
    run: Run, strategy: str, precision: str
) -> None:
    bounds = {"bf16": (5e-4, 2e-2), "fp16": (1e-4, 2e-3)}[precision]
    whole, parts = run(strategy, precision), run(strategy, precision, loss_chunks=PARTS)
    assert mean_losses(parts) == pytest.approx(mean_losses(whole), rel=bounds[0])
    assert parts[0]["norms"] == pytest.approx(whole[0]["norms"], rel=bounds[1])


def _gathers(lines: list[list[Any]]) -> float:
    found = phase_values(lines[0], "profile")["communication"]["collectives"]
    return sum(c["count_per_step"] for c in found if c["op"] == "all_gather")


@pytest.mark.parametrize("tied", [False, True])
def test_fsdp2_gathers_the_heads_weight_once_a_step_however_many_parts(
    run_case: Any, tied: bool
) -> None:
    counts, losses = [], []
    for chunks in (1, PARTS):
        case = tiny_case(
            "fsdp2",
            model=LLAMA | {"tied_head": tied},
            train={"loss_chunks": chunks},
            measure={"profile_steps": 2},
            collect=("communication",),
        )
        lines = run_case(case, 2)
        counts.append(_gathers(lines))
        losses.append(phase_values(lines[0], "warmup")["losses"]["loss_sum"])
        assert of_kind(lines[0], "describe")[0]["values"]["loss"] == {"chunks": chunks}
    assert counts[0] == counts[1] > 0
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
