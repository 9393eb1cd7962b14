"""First losses of every strategy against a single-process reference, through the worker."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from group import Group, Line, end, no_beat, of_kind, phase_values, read_lines, tiny_case

from andromeda_scale import parity, worker
from andromeda_scale.planned import RankSpec
from andromeda_scale.strategies.ddp import Ddp

RunCase = Callable[..., list[list[Line]]]

PRECISIONS = ("fp32", "bf16")
STRATEGIES = ("single", "ddp", "fsdp2", "zero1", "zero2", "zero3")


@pytest.fixture(scope="module")
def reference(run_case: RunCase) -> Callable[[str], tuple[float, ...]]:
    """reference(precision): losses of global batches of 8 sequences in one process."""

    @cache
    def run(precision: str) -> tuple[float, ...]:
        case = tiny_case("single", train={"micro_batch_size": 8, "precision": precision})
        (lines,) = run_case(case, 1, role="reference")
        assert end(lines)["status"] == "ok"
        return parity.reference_losses(lines)

    return run


def spread_case(strategy: str, precision: str, **train: Any) -> tuple[Any, int]:
    """The same global batches as the reference's, in two micro-batches per rank."""
    world_size = 1 if strategy == "single" else 2
    given = {"micro_batch_size": 4 // world_size, "grad_accum": 2, "precision": precision}
    return tiny_case(strategy, train=given | train), world_size


def test_a_reference_stops_after_its_losses(run_case: RunCase) -> None:
    (lines,) = run_case(tiny_case("single", collect=("memory",)), 1, role="reference")
    assert [line["phase"] for line in of_kind(lines, "phase")] == ["setup", "warmup"]
    values = phase_values(lines, "warmup")
    assert len(values["losses"]["loss_sum"]) == parity.PARITY_STEPS
    assert "memory" not in values
    assert len(parity.reference_losses(lines)) == parity.PARITY_STEPS


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_first_losses_are_the_references(
    run_case: RunCase,
    reference: Callable[[str], tuple[float, ...]],
    strategy: str,
    precision: str,
) -> None:
    case, world_size = spread_case(strategy, precision)
    ranks = run_case(case, world_size, reference_losses=reference(precision))
    assert [end(lines)["status"] for lines in ranks] == ["ok"] * world_size
    losses = parity.mean_losses([phase_values(lines, "warmup")["losses"] for lines in ranks])
    # Measured spread, table in parity.py, with a margin of 2: tighter than the tolerance.
    margin = {"fp32": 4e-7, "bf16": 6e-5}[precision]
    assert losses == pytest.approx(reference(precision), rel=margin)
    fingerprint = phase_values(ranks[0], "setup")["data"]["fingerprint"]
    single, _ = spread_case("single", precision)
    assert fingerprint == _fingerprint(single)


def _fingerprint(case: Any) -> str:
    from andromeda_scale.data import Batches

    batches = Batches(
        case.data,
        vocab_size=256,
        seq_len=case.train.seq_len,
        micro_batch_size=8,
        grad_accum=1,
        rank=0,
        world_size=1,
        seed=case.seed,
    )
    return batches.fingerprint(parity.PARITY_STEPS)


def without_reduction(spec: RankSpec) -> None:
    """A worker whose DDP never reduces its gradients."""
    forward = Ddp.forward

    def unreduced(self: Any, s: Any, tokens: Any, labels: Any, **_: Any) -> Any:
        return forward(self, s, tokens, labels, last_micro_batch=False)

    Ddp.forward = unreduced  # type: ignore[method-assign]
    worker.main(spec, no_beat)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_that_are_not_reduced_are_found_before_measuring(
    group: Group, reference: Callable[[str], tuple[float, ...]], precision: str
) -> None:
    single = tiny_case("single", train={"micro_batch_size": 8, "precision": precision})
    (lines,) = group.run_case(single, 1, role="reference")
    case, _ = spread_case("ddp", precision)
    specs = group.specs(case, 2, reference_losses=parity.reference_losses(lines))
    group.run(without_reduction, [(spec,) for spec in specs])
    for spec in specs:
        lines = read_lines(Path(spec.record_path))
        assert end(lines)["status"] == "diverged"
        assert end(lines)["phase"] == "warmup"
        assert "is not the reference's" in end(lines)["cause"]
        assert [line["phase"] for line in of_kind(lines, "phase")] == ["setup", "warmup"]
        assert phase_values(lines, "warmup")["losses"]["tokens"] == [64] * 5


def test_other_weights_are_found_at_the_first_step(
    run_case: RunCase, reference: Callable[[str], tuple[float, ...]]
) -> None:
    case, world_size = spread_case("fsdp2", "fp32")
    wrong = (reference("fp32")[0] * (1 + 1e-4), *reference("fp32")[1:])
    for lines in run_case(case, world_size, reference_losses=wrong):
        assert end(lines)["status"] == "diverged"
        assert "at step 0" in end(lines)["cause"]


def test_without_warm_up_losses_are_compared_after_measuring(
    run_case: RunCase, reference: Callable[[str], tuple[float, ...]]
) -> None:
    measure = {"warmup": {"min_steps": 2, "max_steps": 2}, "steps": 6}
    case = tiny_case("ddp", train={"micro_batch_size": 4}, measure=measure)
    good = reference("fp32")
    for lines in run_case(case, 2, reference_losses=good):
        assert end(lines)["status"] == "ok"
        assert len(phase_values(lines, "warmup")["losses"]["loss_sum"]) == 2
        assert len(phase_values(lines, "measure")["losses"]["loss_sum"]) == 3
    bad = (*good[:4], good[4] * 1.01)
    for lines in run_case(case, 2, reference_losses=bad):
        assert end(lines)["status"] == "diverged"
        assert end(lines)["phase"] == "measure"
        assert "at step 4" in end(lines)["cause"]


@pytest.mark.parametrize("strategy", ["single", "ddp"])
def test_a_loss_that_is_not_finite_is_diverged_without_a_reference(
    run_case: RunCase, strategy: str
) -> None:
    world_size = 1 if strategy == "single" else 2
    train = {"learning_rate": 1e38, "weight_decay": 0.0}
    case = tiny_case(strategy, train=train, parity="off")
    for lines in run_case(case, world_size):
        assert end(lines)["status"] == "diverged"
        assert "is not finite" in end(lines)["cause"]
        assert of_kind(lines, "phase")[-1]["phase"] == "warmup"
