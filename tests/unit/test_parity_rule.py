"""The parity rule on plain numbers."""

from __future__ import annotations

import math

import pytest

from andromeda_scale import parity


def line(sums: list[float], tokens: list[int], phase: str = "warmup") -> dict[str, object]:
    losses = {"loss_sum": sums, "tokens": tokens}
    return {"kind": "phase", "phase": phase, "values": {"losses": losses}}


def test_mean_loss_weighs_ranks_by_their_tokens() -> None:
    ranks = [{"loss_sum": [10.0], "tokens": [2]}, {"loss_sum": [20.0], "tokens": [8]}]
    assert parity.mean_losses(ranks) == (3.0,)


def test_reference_losses_are_read_over_several_phases() -> None:
    lines = [
        {"kind": "start"},
        line([2.0, 4.0], [2, 2]),
        line([6.0, 8.0, 10.0], [2, 2, 2], "measure"),
        {"kind": "phase", "phase": "profile", "values": {}},
    ]
    assert parity.reference_losses(lines) == (1.0, 2.0, 3.0, 4.0, 5.0)


def test_a_short_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="recorded 2 losses, not 5"):
        parity.reference_losses([line([2.0, 4.0], [2, 2])])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loss_on_either_side_of_the_tolerance(precision: str) -> None:
    limit = parity.tolerance(precision)
    reference = (5.0, 5.0)
    assert parity.compare((5.0, 5.0 * (1 + 0.9 * limit)), reference, precision) is None
    found = parity.compare((5.0, 5.0 * (1 + 1.1 * limit)), reference, precision)
    assert found is not None
    assert (found.step, found.reference, found.tolerance) == (1, 5.0, limit)


def test_tolerances_lie_between_measured_rounding_and_measured_faults() -> None:
    # Table in parity.py: rounding 8.6e-8 and 1.7e-4, gradients that are not reduced 1.5e-3.
    assert 5 * 8.6e-8 < parity.tolerance("fp32") < 1.5e-3
    assert 5 * 1.7e-4 < parity.tolerance("bf16") < 1.5e-3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("reference", [None, (1.0, 1.0, 1.0)])
def test_a_loss_that_is_not_finite_is_found_without_a_reference(
    bad: float, reference: tuple[float, ...] | None
) -> None:
    found = parity.compare((1.0, 1.0, bad), reference, "fp32")
    assert found is not None
    assert found.step == 2
    assert "not finite" in str(found)


def test_steps_beyond_the_reference_are_only_asked_to_be_finite() -> None:
    assert parity.compare((1.0, 9.0), (1.0,), "fp32") is None
    assert parity.compare((1.0,), (1.0, 9.0), "fp32") is None


def test_a_mismatch_names_step_loss_reference_and_tolerance() -> None:
    text = str(parity.compare((5.0, 6.0), (5.0, 5.5), "fp32"))
    assert text == "loss 6 at step 1 is not the reference's 5.5 within 2e-05 (relative)"


def test_the_first_steps_move_large_models_less_per_weight() -> None:
    assert parity.learning_rate(4_000_000) == pytest.approx(parity.learning_rate(1_000_000) / 2)


def test_the_largest_difference_counts_steps_that_both_have() -> None:
    assert parity.largest_difference([1.0, 2.2], [1.0, 2.0, 3.0]) == pytest.approx(0.1)
    assert parity.largest_difference([1.0], []) is None
