"""Intervals over launches, imbalance, and when a rank may be called slow."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from andromeda_scale.analysis.balance import Slowest, imbalance, slow_rank, slowest
from andromeda_scale.analysis.breakdown import SERIES, additive
from andromeda_scale.analysis.stats import (
    log_interval,
    log_ratio_interval,
    mean_interval,
    sign_test,
)
from andromeda_scale.analysis.throughput import step_times, throughput


def test_log_interval_of_three_launches_is_the_t_interval_by_hand() -> None:
    # logs 0, ln 2, ln 4: mean ln 2, s = ln 2, t(0.975, 2) = 4.3027; half = 4.3027 ln 2 / sqrt 3
    found = log_interval([1.0, 2.0, 4.0])
    half = 4.302652729911275 * math.log(2) / math.sqrt(3)
    assert found.centre == pytest.approx(2.0)
    assert found.low == pytest.approx(2.0 * math.exp(-half))
    assert found.high == pytest.approx(2.0 * math.exp(half))


def test_under_three_launches_there_is_a_centre_and_no_interval() -> None:
    for values in ([3.0], [3.0, 3.0]):
        found = log_interval(values)
        assert found.centre == pytest.approx(3.0)
        assert math.isnan(found.low)
        assert math.isnan(found.high)
    assert math.isnan(log_interval([]).centre)
    assert math.isnan(log_ratio_interval([1, 1, 1], [1, 1]).low)


def test_ratio_interval_is_welchs() -> None:
    a, b = [10.0, 11.0, 12.5], [5.0, 5.1, 5.3, 4.9]
    found = log_ratio_interval(a, b)
    welch = scipy_stats.ttest_ind(np.log(a), np.log(b), equal_var=False).confidence_interval(0.95)
    assert math.log(found.low) == pytest.approx(welch.low)
    assert math.log(found.high) == pytest.approx(welch.high)


def test_equal_launches_have_an_interval_of_no_width() -> None:
    assert log_interval([2.0, 2.0, 2.0]) == pytest.approx((2.0, 2.0, 2.0))
    assert log_ratio_interval([2.0] * 3, [1.0] * 3) == pytest.approx((2.0, 2.0, 2.0))


def test_t_intervals_of_three_launches_cover_95_percent() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for launches in rng.lognormal(0.0, 0.1, (2000, 3)):
        found = log_interval(launches)
        hits += found.low <= 1.0 <= found.high
    assert 0.935 < hits / 2000 < 0.965  # 3 standard errors of a binomial share


def test_sign_test_is_the_binomial_tail() -> None:
    assert sign_test(20, 20) == 2.0**-20
    assert sign_test(0, 20) == 1.0
    assert sign_test(15, 20) == pytest.approx(scipy_stats.binom.sf(14, 20, 0.5))


def test_step_time_is_the_median_over_steps_of_the_max_over_ranks() -> None:
    step_s = np.array([[1.0, 5.0, 2.0], [4.0, 1.0, 3.0]])  # max per step: 4, 5, 3
    found = step_times(step_s)
    assert found["step_time_s"] == 4.0
    assert found["step_time_mad_s"] == 1.0


def test_throughput_is_all_tokens_over_the_longest_window() -> None:
    found = throughput(np.array([8.0, 10.0]), np.array([300.0, 100.0]), 5)
    assert found == {"tokens_per_s": 40.0, "tokens_per_s_per_gpu": 20.0, "window_step_s": 2.0}


def test_a_third_of_slow_steps_shows_in_throughput_and_not_in_the_median_step() -> None:
    step_s = np.array([[1.0, 1.0, 1.5]])
    assert step_times(step_s)["step_time_s"] == 1.0
    assert throughput(step_s.sum(axis=1), np.array([3.0]), 3)["tokens_per_s"] == 3 / 3.5


def test_imbalance_shows_a_rank_late_in_a_third_of_the_steps() -> None:
    compute_s = np.array([[1.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    found = imbalance(compute_s)
    assert found["imbalance"] == pytest.approx((2 / 1.5 - 1) / 3)
    assert found["imbalance_persistent"] == 0.0
    assert found["imbalance_transient"] == found["imbalance"]


def test_ranks_that_compute_nothing_are_balanced() -> None:
    assert imbalance(np.zeros((2, 3)))["imbalance"] == 0.0


def test_the_classes_of_a_step_add_up_to_the_longest_rank() -> None:
    series = {name: np.zeros((2, 2)) for name in SERIES}
    series["compute_s"] = np.array([[3.0, 2.0], [1.0, 4.0]])
    series["exposed_wait_s"] = np.array([[0.0, 1.0], [2.0, 0.5]])
    series["step_s"] = series["compute_s"] + series["exposed_wait_s"]
    series["comm_exposed_s"] = series["exposed_wait_s"]
    found = additive(series)
    assert found["profile_step_s"] == (3.0 + 4.5) / 2
    assert found["end_skew_s"] == (0 + 0 + 1.5 + 0) / 4
    classes = ("compute_s", "exposed_wait_s", "exposed_transfer_s", "data_s", "host_s")
    total = sum(found[name] for name in classes) + found["end_skew_s"]
    assert total == pytest.approx(found["profile_step_s"])
    assert found["comm_exposed_share"] == pytest.approx(0.875 / 3.75)


def _launches(rng: np.random.Generator, num_ranks: int, excess: float = 0.0) -> list[Slowest]:
    """Three launches of 10 steps whose ranks compute alike but for noise and placement."""
    found = []
    for _ in range(3):
        placement = rng.normal(1.0, 0.03, (num_ranks, 1))
        compute_s = placement * rng.normal(1.0, 0.02, (num_ranks, 10))
        compute_s[1] *= 1 + excess
        result = slowest(compute_s, np.full((num_ranks, 10), 1.5))
        assert result is not None
        found.append(result)
    return found


@pytest.mark.parametrize("num_ranks", [2, 8])
def test_equal_ranks_are_called_slow_in_under_5_percent_of_runs(num_ranks: int) -> None:
    rng = np.random.default_rng(2)
    named = sum(slow_rank(_launches(rng, num_ranks), num_ranks) is not None for _ in range(400))
    assert named <= 0.05 * 400


def test_a_rank_half_as_fast_again_is_called_slow() -> None:
    rng = np.random.default_rng(3)
    assert [slow_rank(_launches(rng, 4, excess=0.5), 4) for _ in range(20)] == [1] * 20


def test_no_rank_is_called_slow_without_evidence() -> None:
    slow = Slowest(rank=1, excess=0.3, steps_slower=10, num_steps=10)
    assert slow_rank([slow] * 3, 2) == 1
    assert slow_rank([slow], 2) is None  # 10 steps
    assert slow_rank([slow, slow, slow._replace(rank=0)], 2) is None  # another launch, another rank
    assert slow_rank([slow, slow, slow._replace(excess=0.01)], 2) is None  # too little to matter
    assert slow_rank([slow._replace(steps_slower=5)] * 3, 2) is None  # half of the steps
    wide = [slow._replace(excess=excess) for excess in (0.03, 0.9, 0.03)]
    assert mean_interval([one.excess for one in wide]).low < 0
    assert slow_rank(wide, 2) is None  # not reproduced between launches
    assert slow_rank([], 2) is None


def test_one_rank_has_nobody_to_be_slower_than() -> None:
    assert slowest(np.ones((1, 30)), np.ones((1, 30))) is None


def test_an_interval_too_wide_for_a_float_is_infinite_not_an_error() -> None:
    found = log_interval([1e-300, 1.0, 1e300])
    assert (found.low, found.high) == (0.0, math.inf)
