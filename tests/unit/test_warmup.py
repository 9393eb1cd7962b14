"""When warm-up ends."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import theilslopes

from andromeda_scale.rank.warmup import Block, ended_by, next_block, theil_sen
from andromeda_scale.suite.config import Warmup

RULE = Warmup(min_steps=20, max_steps=100)


def blocks(times: list[int], *, steady: bool = True) -> list[Block]:
    return [Block(tuple(times[i : i + 5]), steady) for i in range(0, len(times), 5)]


def simulate(bounds: Warmup, times: list[int]) -> tuple[str, int]:
    """(rule, steps) when step i of the slowest rank takes times[i]."""
    done: list[Block] = []
    steps = 0
    while True:
        size = next_block(bounds, steps)
        assert size > 0, "asked for a block where none may follow"
        done.append(Block(tuple(times[steps : steps + size]), steady=True))
        steps += size
        if rule := ended_by(bounds, done):
            return rule, steps


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("n", [5, 12, 20])
def test_theil_sen_is_scipys(seed: int, n: int) -> None:
    values = np.random.default_rng(seed).normal(100, 5, n) + 0.3 * np.arange(n)
    slope, low, high = theil_sen(values)
    expected = theilslopes(values, alpha=0.95)
    assert slope == pytest.approx(expected.slope)
    assert (low, high) == pytest.approx((expected.low_slope, expected.high_slope))


@pytest.mark.parametrize("n", [5, 10, 20])
def test_the_interval_of_a_slope_covers_a_flat_series_in_95_percent(n: int) -> None:
    rng = np.random.default_rng(0)
    found = [theil_sen(rng.standard_normal(n)) for _ in range(2000)]
    assert sum(low <= 0 <= high for _, low, high in found) >= 1890


def test_steady_times_end_warm_up_at_its_least() -> None:
    assert simulate(RULE, [1000] * 100) == ("slope", 20)


def test_noise_without_a_trend_ends_it() -> None:
    noise = np.random.default_rng(0).normal(1000, 100, 100).astype(int).tolist()
    rule, steps = simulate(RULE, noise)
    assert rule in ("flat", "slope")
    assert steps <= 30


def test_a_falling_trend_keeps_it_going_until_it_is_over() -> None:
    falling = [2000 - 25 * i for i in range(40)] + [1000] * 60
    rule, steps = simulate(RULE, falling)
    assert rule in ("slope", "flat")
    assert 40 < steps <= 60


def test_a_trend_without_end_is_ended_by_max_steps_and_says_so() -> None:
    assert simulate(RULE, [5000 - 40 * i for i in range(100)]) == ("max_steps", 100)


def test_new_memory_or_compilation_keeps_it_going() -> None:
    assert ended_by(RULE, blocks([1000] * 20)) == "slope"
    assert ended_by(RULE, blocks([1000] * 20, steady=False)) is None


@pytest.mark.parametrize("steps", [1, 2, 5, 13])
def test_equal_bounds_fix_the_number_of_steps(steps: int) -> None:
    bounds = Warmup(min_steps=steps, max_steps=steps)
    assert simulate(bounds, [7] * steps) == ("fixed", steps)


def test_short_bounds_are_kept() -> None:
    assert simulate(Warmup(min_steps=0, max_steps=3), [100, 50, 25]) == ("max_steps", 3)
    assert next_block(Warmup(min_steps=0, max_steps=0), 0) == 0
    assert next_block(Warmup(min_steps=20, max_steps=22), 20) == 2
