"""Intervals over launches, and imbalance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from andromeda_scale.analysis.balance import imbalance
from andromeda_scale.analysis.breakdown import SERIES, additive
from andromeda_scale.analysis.comparison import (
    FALSE_ALARMS,
    Ratio,
    compare_launches,
    holm,
    jointly,
)
from andromeda_scale.analysis.precision import half_width, needed
from andromeda_scale.analysis.resampling import (
    autocorrelation,
    block_means,
    block_steps,
    correlation_time,
)
from andromeda_scale.analysis.stats import (
    WIDEST,
    Estimate,
    Interval,
    Sample,
    difference,
    log_interval,
    log_ratio_interval,
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
    welch = scipy_stats.ttest_ind(np.log(a), np.log(b), equal_var=False)
    error = (np.log(a).mean() - np.log(b).mean()) / welch.statistic
    # (A + B)^2 / (A^2/3 + B^2/4) - 1: one degree more each than Satterthwaite's, one less in all
    squared = [np.log(x).var(ddof=1) / len(x) for x in (a, b)]
    df = sum(squared) ** 2 / (squared[0] ** 2 / 3 + squared[1] ** 2 / 4) - 1
    half = scipy_stats.t.ppf(0.975, df) * error
    assert math.log(found.high / found.low) == pytest.approx(2 * half)
    assert math.log(found.centre) == pytest.approx(np.log(a).mean() - np.log(b).mean())
    assert welch.df < df


@pytest.mark.parametrize("spread", [1.0, 5.0, 1e3])
def test_ratios_of_three_launches_each_are_covered_whatever_their_errors(spread: float) -> None:
    rng = np.random.default_rng(2)
    held = 0
    for a, b in zip(*(rng.normal(0.0, s, (4000, 3)) for s in (0.01, 0.01 * spread)), strict=True):
        found = log_ratio_interval(np.exp(a), np.exp(b))
        held += found.low <= 1 <= found.high
    assert 0.93 < held / 4000 < 0.97


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


def test_one_step_has_no_spread() -> None:
    assert math.isnan(step_times(np.array([[0.1], [0.2]]))["step_time_mad_s"])


def test_imbalance_shows_a_rank_late_in_a_third_of_the_steps() -> None:
    compute_s = np.array([[1.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    found = imbalance(compute_s)
    assert found["imbalance"] == pytest.approx((2 / 1.5 - 1) / 3)
    assert found["imbalance_persistent"] == 0.0
    assert found["imbalance_transient"] == found["imbalance"]


def test_no_part_of_an_imbalance_is_more_than_the_whole() -> None:
    """Late in 11 of 20 steps: the medians say 50 %, the steps on average 27.5 %."""
    found = imbalance(np.array([[1.0] * 20, [3.0] * 11 + [1.0] * 9]))
    assert found["imbalance"] == pytest.approx(0.275)
    assert found["imbalance_persistent"] == found["imbalance"]
    assert found["imbalance_transient"] == 0


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


def _ratio(mean: float, launches: int = 5) -> Ratio:
    return Ratio(Estimate(mean, 0.01, launches - 1), launches)


def test_a_comparison_has_the_interval_of_its_level() -> None:
    critical = scipy_stats.t.ppf(1 - FALSE_ALARMS / 2, 4)
    below, beyond = (_ratio(0.01 * critical * factor) for factor in (0.999, 1.001))
    assert below.interval.low < 1 < beyond.interval.low
    assert (below.differs, beyond.differs) == (False, True)
    assert beyond.chance == pytest.approx(FALSE_ALARMS, rel=0.01)


def test_of_several_comparisons_an_interval_excludes_1_exactly_where_holm_tells_them_apart() -> (
    None
):
    # t of 4 degrees: 0.036, 0.00004, 0.011, 1 and 0.0075 against 4 % / 5, / 4, ... of the smallest
    alone = [_ratio(mean) for mean in (0.031, 0.2, 0.045, 0.0, 0.05)]
    together = jointly([*alone, Ratio(Estimate(0.5, math.nan, math.nan), 0)])
    for one in together[:-1]:
        low, high = one.interval.low, one.interval.high
        assert one.differs == (low > 1 or high < 1)
    assert [one.differs for one in together] == [False, True, True, False, True, False]
    assert alone[0].differs
    assert together[1].level == FALSE_ALARMS / 5
    assert not together[-1].known


def test_the_best_was_chosen_by_the_data_so_that_its_comparisons_count_as_more() -> None:
    # 3 against the best of 4: half way from 3 to all 6 pairs. t of 4 degrees: 0.0075, 0.011
    together = jointly([_ratio(0.2), _ratio(0.05), _ratio(0.045)], of_the_best=True)
    assert [one.level for one in together] == [FALSE_ALARMS / n for n in (4.5, 3.5, 2.5)]
    assert jointly([_ratio(0.03)], of_the_best=True)[0].level == FALSE_ALARMS


def test_beyond_95_percent_the_bootstraps_tails_are_students_at_its_own_95() -> None:
    sample, base = _rates(np.random.default_rng(9), 8), _rates(np.random.default_rng(10), 8)
    found = difference(sample, base)
    assert math.log(log_ratio_interval(sample, base).high) == pytest.approx(found.interval().high)
    for confidence in (0.9, 0.95, 0.9999):
        low, centre, high = (found.interval(confidence)[i] for i in (1, 0, 2))
        assert high - centre == pytest.approx(centre - low)
    wide, narrow = (found.interval(c).high - found.mean for c in (0.9999, 0.95))
    assert wide / narrow == pytest.approx(
        scipy_stats.t.ppf(0.99995, found.df) / scipy_stats.t.ppf(0.975, found.df)
    )


def test_holm_passes_the_smallest_chances_until_one_is_too_large() -> None:
    # 0.01 < 0.05 / 4, 0.016 < 0.05 / 3, 0.03 > 0.05 / 2: the fourth is not asked
    assert holm([0.04, 0.01, 0.03, 0.016], 0.05) == [False, True, False, True]
    assert holm([], 0.05) == []


def test_an_interval_too_wide_for_a_float_is_infinite_not_an_error() -> None:
    found = log_interval([1e-300, 1.0, 1e300])
    assert (found.low, found.high) == (0.0, math.inf)


def _rates(rng: np.random.Generator, num: int, noise: float = 0.01) -> Sample:
    """Launches of 30 steps of 0.1 s, with the step time's noise also between launches."""
    times = 0.1 * np.exp(noise * rng.standard_normal((num, 30)))
    times *= np.exp(noise * rng.standard_normal((num, 1)))
    return Sample({i: 1 / float(t.mean()) for i, t in enumerate(times)}, dict(enumerate(times)))


def test_from_six_launches_steps_are_resampled_within_them() -> None:
    sample = _rates(np.random.default_rng(3), 6)
    bootstrap, plain = log_interval(sample), log_interval(list(sample.values.values()))
    assert bootstrap.centre == pytest.approx(plain.centre)
    assert bootstrap != plain
    assert bootstrap == log_interval(sample)  # the same records, the same table
    five = Sample({key: sample.values[key] for key in range(5)}, sample.steps)
    assert log_interval(five) == log_interval(list(five.values.values()))


def test_one_slow_launch_of_six_does_not_make_the_bootstrap_say_nothing() -> None:
    """Draws without it have the error of the others, which is no error of the mean."""
    rng = np.random.default_rng(0)
    values = dict(enumerate([1000.0, 1001.0, 999.0, 1000.5, 999.5, 900.0]))
    steps = {key: np.exp(0.01 * rng.standard_normal(50)) / rate for key, rate in values.items()}
    of_launches = log_interval([*values.values()])
    found = log_interval(Sample(values, steps))
    assert found.centre == pytest.approx(of_launches.centre)
    # Student's is [939, 1027]; the draws alone said [420, 2296]
    assert math.log(found.high / found.low) == pytest.approx(
        WIDEST * math.log(of_launches.high / of_launches.low)
    )


def test_bootstrap_intervals_of_six_launches_cover_95_percent() -> None:
    rng = np.random.default_rng(4)
    found = [log_interval(_rates(rng, 6)) for _ in range(150)]
    covered = sum(one.low <= 10 <= one.high for one in found) / len(found)
    assert covered > 0.88  # 95 % less 4 standard errors of the share


def test_a_drift_that_both_share_cancels_in_pairs_of_launches() -> None:
    rng = np.random.default_rng(5)
    drift = np.array([1.0, 1.3, 0.8, 1.1, 0.7])
    a, b = (
        Sample(dict(enumerate(drift * factor * np.exp(0.002 * rng.standard_normal(5)))))
        for factor in (1.0, 1.02)
    )
    paired = compare_launches(b, a)
    assert paired.num_pairs == 5
    assert 1 < paired.interval.low < 1.02 < paired.interval.high < 1.04
    assert paired.chance < 0.01
    alone = log_ratio_interval(b, a)
    assert alone.low < 1 < alone.high


def test_launches_that_share_no_number_are_independent_samples() -> None:
    a, b = Sample({0: 1.0, 1: 1.1, 2: 1.2}), Sample({5: 1.0, 6: 1.1, 7: 1.2})
    found = compare_launches(a, b)
    assert found.num_pairs == 0
    assert found.estimate == difference(a, b)
    assert found.chance == pytest.approx(1.0)
    assert not compare_launches(Sample({0: 1.0}), Sample({0: 2.0})).known


def test_blocks_grow_with_the_correlation_of_steps() -> None:
    rng = np.random.default_rng(6)
    white = rng.standard_normal(200)
    smooth = np.convolve(rng.standard_normal(230), np.exp(-np.arange(30) / 5))[:200]
    assert abs(autocorrelation(white)) < 0.2
    assert autocorrelation(smooth) == pytest.approx(math.exp(-1 / 5), abs=0.1)
    assert block_steps(smooth) > 3 * block_steps(white)
    assert correlation_time(smooth) > 5
    assert math.isnan(autocorrelation(np.ones(50)))


def test_means_of_blocks_of_correlated_steps_vary_as_the_mean_does() -> None:
    rng = np.random.default_rng(7)
    series = np.convolve(rng.standard_normal(430), np.exp(-np.arange(30) / 3))[:400]
    drawn = block_means(series[None], block_steps(series), 2000, rng).std()
    alone = series.std() / math.sqrt(400)
    assert 1.4 * alone < drawn < 3 * alone  # (1 + r)/(1 - r) of r = exp(-1/3) is 6.1, its root 2.5


def _sample_of(noise: float, launches: int, steps: int, between: float = 0.0) -> Sample:
    rng = np.random.default_rng(8)
    times = np.exp(noise * rng.standard_normal((launches, steps)))
    times *= np.exp(between * rng.standard_normal((launches, 1)))
    return Sample({i: 1 / float(t.mean()) for i, t in enumerate(times)}, dict(enumerate(times)))


def test_launches_needed_make_the_t_interval_as_narrow_as_wanted() -> None:
    sample = Sample(dict(enumerate(np.exp([-0.02, 0.0, 0.02]).tolist())))  # s = 0.02
    found = needed(sample, 0.01)
    # t(0.975, n - 1) 0.02 / sqrt n: 0.01035 at 17, 0.00995 = ln 1.01 at 18
    widths = {n: scipy_stats.t.ppf(0.975, n - 1) * 0.02 / math.sqrt(n) for n in (17, 18)}
    assert widths[18] <= math.log(1.01) < widths[17]
    assert found.launches == 18
    assert found.steps is None  # of steps nothing is known


def test_more_steps_help_only_where_launches_agree() -> None:
    steps = needed(_sample_of(0.05, 5, 40), 0.01)
    assert steps.steps is not None
    assert 40 < steps.steps < 1000
    assert needed(_sample_of(0.001, 5, 40, between=0.03), 0.01).steps is None
    assert needed(_sample_of(0.05, 2, 40), 0.01) == (None, None)


def test_half_of_an_interval_of_logs_is_its_relative_error() -> None:
    assert half_width(Interval(100.0, 100 / 1.02, 102.0)) == pytest.approx(0.02)
    assert math.isnan(half_width(Interval(1.0, math.nan, math.nan)))
