"""First losses and gradient norms of every strategy against one process, through the worker."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import faults
import pytest
from group import LLAMA, Group, Line, end, of_kind, phase_values, read_lines, tiny_case

from andromeda_scale.contracts import parity
from andromeda_scale.suite.config import Measure
from andromeda_scale.suite.faults import NotANumber
from andromeda_scale.suite.precision import refusal

RunCase = Callable[..., list[list[Line]]]
Reference = Callable[[str], parity.First]

PRECISIONS = ("fp32", "bf16")
STRATEGIES = ("single", "ddp", "fsdp2", "zero1", "zero2", "zero3")


@pytest.fixture(scope="module")
def reference(run_case: RunCase) -> Reference:
    """reference(precision): first steps of global batches of 8 sequences in one process."""

    @cache
    def run(precision: str) -> parity.First:
        case = wide_case("single", micro_batch_size=8, precision=precision)
        (lines,) = run_case(case, 1, role="reference")
        assert end(lines)["status"] == "ok"
        return first(lines)

    return run


def first(*ranks: list[Line]) -> parity.First:
    """What the ranks of one launch recorded of their first steps."""
    return parity.first([[line["values"] for line in of_kind(r, "phase")] for r in ranks])


def spread_case(strategy: str, precision: str, **train: Any) -> tuple[Any, int]:
    """The same global batches as the reference's, in two micro-batches per rank."""
    world_size = 1 if strategy == "single" else 2
    given = {"micro_batch_size": 4 // world_size, "grad_accum": 2, "precision": precision}
    return wide_case(strategy, **given | train), world_size


def wide_case(strategy: str, **train: Any) -> Any:
    """Wide and long enough for attention to weigh something: a shifted mask is far from rounding.

    Its faults and rounding are among those of the table in parity.py.
    """
    wide = {"d_model": 128, "d_ff": 384, "num_layers": 3}
    return tiny_case(strategy, model=LLAMA | wide, train={"seq_len": 64} | train)


def test_a_reference_stops_after_its_first_steps(run_case: RunCase) -> None:
    (lines,) = run_case(tiny_case("single", collect=("memory",)), 1, role="reference")
    assert [line["phase"] for line in of_kind(lines, "phase")] == ["setup", "warmup"]
    assert "memory" not in phase_values(lines, "warmup")
    found = first(lines)
    assert len(found.losses) == len(found.norms) == parity.PARITY_STEPS


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_first_losses_and_norms_are_the_references(
    run_case: RunCase, reference: Reference, strategy: str, precision: str
) -> None:
    case, world_size = spread_case(strategy, precision)
    ranks = run_case(case, world_size, reference=reference(precision))
    assert [end(lines)["status"] for lines in ranks] == ["ok"] * world_size
    found = first(*ranks)
    # Measured spread of this model, with a margin of 3: tighter than the tolerance.
    loss, norm = {"fp32": (3e-7, 1e-6), "bf16": (5e-4, 4e-3)}[precision]
    assert found.losses == pytest.approx(reference(precision).losses, rel=loss)
    assert found.norms == pytest.approx(reference(precision).norms, rel=norm)
    said = phase_values(ranks[0], "warmup")["parity"]
    assert (said["steps_compared"], said["norms_compared"], said["rounding"]) == (5, 5, precision)
    assert 0 <= said["loss_difference"] < loss
    assert 0 <= said["norm_difference"] < norm
    fingerprint = phase_values(ranks[0], "setup")["data"]["fingerprint"]
    single, _ = spread_case("single", precision)
    assert fingerprint == _fingerprint(single)


def _fingerprint(case: Any) -> str:
    from andromeda_scale.data.batches import Batches

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


# What is wrong must be found. A mask one token off, or gradients 1 % too large, is at the limit of
# what bf16 can tell; the others are far above rounding under every policy.
FAULTS = ("not reduced", "twice", "batch duplicated", "other weights", "mask + 1", "mask - 1")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_step_is_found_before_measuring(
    group: Group, reference: Reference, fault: str, precision: str
) -> None:
    for lines in run_fault(group, fault, "ddp", reference(precision), precision):
        assert end(lines)["status"] == "diverged", phase_values(lines, "warmup")["parity"]
        assert end(lines)["phase"] == "warmup"
        assert "is not the reference's" in end(lines)["cause"]
        assert [line["phase"] for line in of_kind(lines, "phase")] == ["setup", "warmup"]


@pytest.mark.parametrize(
    ("fault", "strategy", "words"),
    [
        ("twice", "fsdp2", "2 times the reference's: gradients summed instead of averaged?"),
        ("half", "ddp", "1/2 of the reference's: gradients averaged twice?"),
        ("1 % too large", "ddp", "1.01 times the reference's"),
    ],
)
def test_a_factor_on_gradients_is_named(
    group: Group, reference: Reference, fault: str, strategy: str, words: str
) -> None:
    for lines in run_fault(group, fault, strategy, reference("fp32"), "fp32"):
        cause = end(lines)["cause"]
        assert cause.startswith("gradient norm ")
        assert f" at step 0 is not the reference's {reference('fp32').norms[0]:.7g} " in cause
        assert cause.endswith(words)


def test_a_norm_that_is_not_finite_at_step_2_is_diverged_by_its_loss(
    run_case: RunCase, reference: Reference
) -> None:
    case, world_size = spread_case("ddp", "fp32")
    planted = (NotANumber(kind="nan", rank=1, step=2),)
    case = case.model_copy(update={"faults": planted})
    for lines in run_case(case, world_size, reference=reference("fp32")):
        assert end(lines)["status"] == "diverged"
        assert end(lines)["cause"] == "loss nan at step 2 is not finite: that of rank 1"


def run_fault(
    group: Group, fault: str, strategy: str, expected: parity.First, precision: str, **train: Any
) -> list[list[Line]]:
    """The record lines of two ranks that run the worker with a fault."""
    case, world_size = spread_case(strategy, precision, **train)
    specs = group.specs(case, world_size, reference=expected)
    group.run(faults.run, [(spec, fault) for spec in specs])
    return [read_lines(Path(spec.record_path)) for spec in specs]


def test_without_warm_up_losses_are_compared_after_measuring_and_no_norm_is_taken(
    run_case: RunCase, reference: Reference
) -> None:
    measure = {"warmup": {"min_steps": 2, "max_steps": 2}, "steps": 6, "profile_steps": 0}
    case = wide_case("ddp", micro_batch_size=4)
    case = case.model_copy(update={"measure": Measure.model_validate(measure)})
    good = reference("fp32")
    for lines in run_case(case, 2, reference=good):
        assert end(lines)["status"] == "ok"
        assert len(phase_values(lines, "warmup")["losses"]["gradient_norm"]) == 2
        assert len(phase_values(lines, "measure")["losses"]["loss_sum"]) == 3
        assert phase_values(lines, "measure")["losses"]["gradient_norm"] == []
        found = phase_values(lines, "measure")["parity"]
        assert (found["steps_compared"], found["norms_compared"]) == (5, 2)
    bad = good.model_copy(update={"losses": (*good.losses[:4], good.losses[4] * 1.01)})
    for lines in run_case(case, 2, reference=bad):
        assert end(lines)["status"] == "diverged"
        assert end(lines)["phase"] == "measure"
        assert "at step 4" in end(lines)["cause"]


@pytest.mark.parametrize("mode", ["forward", "forward_backward"])
def test_without_updates_losses_of_fixed_weights_are_compared_and_norms_where_there_are_any(
    group: Group, run_case: RunCase, mode: str
) -> None:
    case = wide_case("single", micro_batch_size=8, mode=mode)
    (lines,) = run_case(case, 1, role="reference")
    expected = first(lines)
    assert len(expected.norms) == (0 if mode == "forward" else parity.PARITY_STEPS)
    for strategy in ("fsdp2", "zero2"):
        case, world_size = spread_case(strategy, "fp32", mode=mode)
        for lines in run_case(case, world_size, reference=expected):
            assert end(lines)["status"] == "ok", end(lines)
            found = phase_values(lines, "warmup")["parity"]
            assert found["norms_compared"] == len(expected.norms)
            assert found["loss_difference"] < 1e-6
    fault = "batch duplicated" if mode == "forward" else "twice"
    for lines in run_fault(group, fault, "ddp", expected, "fp32", mode=mode):
        assert end(lines)["status"] == "diverged"


def test_a_coarser_reduction_is_judged_by_its_own_rounding(
    run_case: RunCase, reference: Reference
) -> None:
    case, world_size = spread_case("ddp", "fp32")
    strategy = case.strategy.model_copy(update={"options": {"compression": "fp16"}})
    case = case.model_copy(update={"strategy": strategy})
    for lines in run_case(case, world_size, reference=reference("fp32")):
        assert end(lines)["status"] == "ok", end(lines)
        assert phase_values(lines, "warmup")["parity"]["rounding"] == "fp16"


def test_a_step_that_fp16_skips_here_alone_is_diverged_and_says_so(
    group: Group, reference: Reference
) -> None:
    if refusal("fp16", "cpu"):
        pytest.skip("this CPU has no float16 instructions")
    for lines in run_fault(group, "overflow", "ddp", reference("fp16"), "fp16"):
        assert end(lines)["cause"] == (
            "gradient norm inf or nan at step 0 is not finite: fp16's scaler skipped this step "
            "here alone"
        )
        assert phase_values(lines, "warmup")["parity"]["skipped_steps"][0] == 0


def test_parity_off_takes_no_norm_and_leaves_the_learning_rate(run_case: RunCase) -> None:
    (off,), (on,) = (run_case(tiny_case("single", parity=word)) for word in ("off", "full"))
    assert phase_values(off, "warmup")["losses"]["gradient_norm"] == []
    assert len(phase_values(on, "warmup")["losses"]["gradient_norm"]) == parity.PARITY_STEPS
    falls = [
        values["losses"]["loss_sum"][4] / values["losses"]["loss_sum"][0]
        for values in (phase_values(lines, "warmup") for lines in (off, on))
    ]
    assert falls[0] < falls[1]


@pytest.mark.parametrize("strategy", ["single", "ddp"])
def test_a_loss_that_is_not_finite_is_diverged_without_a_reference(
    run_case: RunCase, strategy: str
) -> None:
    world_size = 1 if strategy == "single" else 2
    train = {"learning_rate": 1e6, "weight_decay": 1e6}
    case = tiny_case(strategy, train=train, parity="off")
    for lines in run_case(case, world_size):
        assert end(lines)["status"] == "diverged"
        assert "is not finite" in end(lines)["cause"]
        assert of_kind(lines, "phase")[-1]["phase"] == "warmup"
