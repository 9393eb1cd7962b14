"""The parity rule on plain numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from andromeda_scale.contracts import parity
from andromeda_scale.contracts.parity import First, Seen

PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
GOOD = First(losses=(5.0, 4.0), norms=(3.0, 2.0))


def values(sums: list[float], tokens: list[int], norms: list[float]) -> dict[str, Any]:
    return {"losses": {"loss_sum": sums, "tokens": tokens, "gradient_norm": norms}}


def scaled(step: int, loss: float = 1.0, norm: float = 1.0) -> First:
    """GOOD with one step's loss and norm multiplied."""
    losses, norms = list(GOOD.losses), list(GOOD.norms)
    losses[step] *= loss
    norms[step] = (norms[step] or 0.0) * norm
    return First(losses=tuple(losses), norms=tuple(norms))


def test_mean_loss_weighs_ranks_by_their_tokens() -> None:
    ranks = [{"loss_sum": [10.0], "tokens": [2]}, {"loss_sum": [20.0], "tokens": [8]}]
    assert parity.mean_losses(ranks) == (3.0,)


def test_of_norms_that_differ_between_ranks_the_largest_counts() -> None:
    assert parity.norms([{"gradient_norm": [1.0, 5.0]}, {"gradient_norm": [2.0, 4.0]}]) == (2, 5)
    assert parity.norms([{"gradient_norm": [1.0]}, {"gradient_norm": [math.nan]}]) == (None,)
    assert parity.norms([{"loss_sum": [1.0]}]) == ()  # a record of before there were norms


def test_first_steps_are_read_over_phases_and_ranks() -> None:
    rank = [values([2, 4], [2, 2], [9, 8]), {"step_time": {}}, values([6, 8, 10], [2] * 3, [])]
    assert parity.first([rank]) == First(losses=(1, 2, 3, 4, 5), norms=(9, 8))
    assert parity.first([rank, rank]) == First(losses=(1, 2, 3, 4, 5), norms=(9, 8))


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        ([[values([2, 4], [2, 2], [])]], "recorded 2 losses, not 5"),
        ([[values([2] * 5, [0] * 5, [])]], "cannot be read: .*division by zero"),
        ([[values(["x"] * 5, [2] * 5, [])]], "cannot be read"),
        ([[{"losses": None}]], "cannot be read"),
        ([[values([math.nan] * 5, [2] * 5, [])]], "finite number"),
        ([[values([2] * 5, [2] * 5, [])], [{}]], "only 1 of 2 ranks recorded losses"),
    ],
)
def test_a_record_that_holds_no_first_steps_is_refused(ranks: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        parity.first(ranks)


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_either_side_of_the_tolerance(precision: str, step: int) -> None:
    limit = parity.tolerance(precision, step)
    near = scaled(step, 1 + 0.9 * limit.loss, 1 - 0.9 * limit.norm)
    assert parity.compare(near, GOOD, precision) is None
    for far, what in (
        (scaled(step, 1 - 1.1 * limit.loss), "loss"),
        (scaled(step, 1, 1 + 1.1 * limit.norm), "gradient norm"),
    ):
        found = parity.compare(far, GOOD, precision)
        assert found is not None
        assert (found.what, found.step) == (what, step)


@pytest.mark.parametrize(
    ("precision", "rounding"),
    [
        ("fp32", ((4.3e-8, 2.9e-7), (8.9e-8, 3.2e-7))),
        ("fp16", ((9.8e-6, 7.0e-5), (4.7e-5, 1.4e-4))),
        ("bf16", ((1.1e-4, 1.3e-3), (5.3e-4, 3.7e-3))),
    ],
)
def test_tolerances_lie_between_measured_rounding_and_measured_faults(
    precision: str, rounding: tuple[tuple[float, float], ...]
) -> None:
    """The table in parity.py."""
    for step, (loss, norm) in enumerate(rounding):
        limit = parity.tolerance(precision, step)
        assert limit.loss > 2 * loss
        assert limit.norm > 2 * norm
    first, later = (parity.tolerance(precision, step) for step in (0, 1))
    assert first.norm < 6.4e-3 / 2  # a mask one token off, the smallest at the first step
    assert later.loss < 4.2e-3 / 2  # a learning rate 10 % off, the smallest of updates


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("reference", [None, First(losses=(1.0, 1.0, 1.0))])
def test_a_loss_that_is_not_finite_is_found_without_a_reference(
    bad: float, reference: First | None
) -> None:
    found = parity.compare(Seen((1.0, 1.0, bad)), reference, "fp32")
    assert found is not None
    assert found.step == 2
    assert "not finite" in str(found)


def test_steps_beyond_the_reference_are_only_asked_to_be_finite() -> None:
    assert parity.compare(Seen((1.0, 9.0), (1.0, 7.0)), First(losses=(1.0,)), "fp32") is None
    assert parity.compare(Seen((1.0,)), First(losses=(1.0, 9.0), norms=(1.0,)), "fp32") is None


def test_a_mismatch_names_step_value_reference_and_tolerance() -> None:
    text = str(parity.compare(Seen((5.0, 6.0)), First(losses=(5.0, 5.5)), "fp32"))
    assert text == "loss 6 at step 1 is not the reference's 5.5 within 2e-05 (relative)"


@pytest.mark.parametrize(
    ("factor", "text"),
    [
        (2.0, "2 times the reference's: gradients summed instead of averaged?"),
        (4.01, "4 times the reference's: gradients summed instead of averaged?"),
        (8.0, "8 times the reference's: gradients summed instead of averaged?"),
        (0.5, "1/2 of the reference's: gradients averaged twice?"),
        (1.01, "1.01 times the reference's"),
        (3.0, "3 times the reference's"),
    ],
)
def test_a_factor_on_gradients_names_the_ratio_and_what_explains_it(
    factor: float, text: str
) -> None:
    found = parity.compare(scaled(0, 1, factor), GOOD, "fp32", world_size=2, grad_accum=4)
    assert str(found) == (
        f"gradient norm {3 * factor:.7g} at step 0 is not the reference's 3 within 5e-05 "
        f"(relative): {text}"
    )


# fp16 skips a step whose gradients are not finite


def test_a_step_that_both_skipped_is_no_mismatch_under_fp16_alone() -> None:
    skipped = First(losses=(5.0, 5.0), norms=(None, 3.0))
    assert parity.compare(skipped, skipped, "fp16") is None
    assert parity.compare(skipped, skipped, "fp16", judged_as="bf16") is None
    assert str(parity.compare(skipped, None, "bf16")) == (
        "gradient norm inf or nan at step 0 is not finite"
    )


def test_a_step_that_one_alone_skipped_is_a_mismatch_that_says_so() -> None:
    skipped = First(losses=GOOD.losses, norms=(None, 2.0))
    assert str(parity.compare(skipped, GOOD, "fp16")) == (
        "gradient norm inf or nan at step 0 is not finite: fp16's scaler skipped this step here "
        "alone"
    )
    assert str(parity.compare(GOOD, skipped, "fp16")) == (
        "gradient norm 3 at step 0: fp16's scaler skipped this step in what it is compared with "
        "alone"
    )


def test_a_mismatch_after_a_skipped_step_names_it() -> None:
    skipped, other = (First(losses=(5.0, loss), norms=(None, 2.0)) for loss in (5.0, 4.0))
    text = str(parity.compare(skipped, other, "fp16"))
    assert text.startswith("loss 5 at step 1 is not the reference's 4")
    assert text.endswith(": fp16's scaler skipped step 0")


# What rounds, and how fast


def test_a_coarser_reduction_is_judged_by_its_own_rounding() -> None:
    assert parity.rounding("fp32", ["float32", None, "bfloat16"]) == "bf16"
    assert parity.rounding("bf16", ["float32", "float16"]) == "bf16"
    assert parity.rounding("tf32", ["float32"]) == "tf32"
    assert parity.coarsest("fp32", "", "fp16") == "fp16"
    near = scaled(0, 1, 1.001)
    assert parity.compare(near, GOOD, "fp32") is not None
    assert parity.compare(near, GOOD, "fp32", judged_as="bf16") is None


def test_the_first_steps_move_large_models_less_per_weight() -> None:
    assert parity.learning_rate(4_000_000) == pytest.approx(parity.learning_rate(1_000_000) / 2)


def test_the_rate_of_an_update_along_the_gradient_is_that_of_no_size() -> None:
    assert parity.learning_rate(10**6, "sgd") == parity.learning_rate(10**9, "sgd")


def test_the_largest_difference_counts_steps_that_both_have() -> None:
    assert parity.largest_difference([1.0, 2.2], [1.0, 2.0, 3.0]) == pytest.approx(0.1)
    assert parity.largest_difference([1.0, None, 3.0], [None, 2.0, 2.0]) == pytest.approx(0.5)
    assert parity.largest_difference([1.0], []) is None
