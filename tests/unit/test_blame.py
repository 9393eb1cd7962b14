"""Whom a launch blames: simulated steps with known late ranks, and with none."""

from __future__ import annotations

import numpy as np
import pytest

from andromeda_scale.analysis.blame import (
    Blamed,
    Verdict,
    blame,
    late_s,
    lateness,
    of_case,
    of_launches,
)

Series = dict[str, np.ndarray]
STEP_S = 0.1


def steps_of(
    arrival_s: np.ndarray, rng: np.random.Generator, cause: str = "compute_s", noise_s: float = 1e-3
) -> Series:
    """One collective a step that every rank enters at its arrival, (ranks, steps), plus noise."""
    at = arrival_s + rng.normal(0, noise_s, arrival_s.shape)
    ranks, num = at.shape
    order = np.argsort(at, axis=0)
    arrivals = np.take_along_axis(at, order, axis=0)
    charged, waited = np.zeros(at.shape), at.max(axis=0) - at
    for waiting in range(1, ranks):
        share = np.diff(arrivals, axis=0)[waiting - 1] * waiting / (ranks - waiting)
        for place in range(waiting, ranks):
            charged[order[place], np.arange(num)] += share
    classes = {name: np.full(at.shape, 0.01) for name in ("compute_s", "host_s", "data_s")}
    classes[cause] = classes[cause] + at - at.min()
    step = {"step_s": np.full(at.shape, STEP_S)}
    return {**step, **classes, "exposed_wait_s": waited, "charged_s": charged}


def arrivals(ranks: int, steps: int, late: dict[int, float] | None = None) -> np.ndarray:
    found = np.zeros((ranks, steps))
    for rank, seconds in (late or {}).items():
        found[rank] = seconds
    return found


@pytest.mark.parametrize("cause", ["compute", "host", "data"])
def test_a_late_rank_is_blamed_with_its_cause_and_the_seconds_of_the_plant(cause: str) -> None:
    rng = np.random.default_rng(0)
    found = blame(steps_of(arrivals(2, 20, {1: 0.03}), rng, f"{cause}_s"), None)
    (one,) = found.blamed
    assert (one.rank, one.kind, one.cause) == (1, "persistent", cause)
    assert one.late_s == pytest.approx(0.03, rel=0.1)
    assert found.why == ""


def test_ranks_that_come_early_in_turn_are_not_all_late() -> None:
    late = arrivals(3, 60, {0: 0.04, 1: 0.04, 2: 0.04})
    late[np.arange(60) % 3, np.arange(60)] = 0.0
    found = blame(steps_of(late, np.random.default_rng(5)), None)
    assert found == Verdict((), "nobody beyond chance")


def test_two_late_ranks_are_blamed_in_the_order_of_charge() -> None:
    rng = np.random.default_rng(1)
    found = blame(steps_of(arrivals(4, 20, {1: 0.03, 2: 0.04}), rng), None)
    assert [one.rank for one in found.blamed] == [2, 1]
    # two wait 30 ms for two, then three wait 10 ms for the last: a third of 30 + 30 and of 30 - 10
    assert [one.late_s for one in found.blamed] == pytest.approx([0.02, 0.02 / 3], rel=0.15)
    assert {one.cause for one in found.blamed} == {"compute"}


def test_one_late_rank_of_many_is_late_by_what_it_delays_the_step() -> None:
    rng = np.random.default_rng(3)
    (one,) = blame(steps_of(arrivals(8, 20, {5: 0.03}), rng), None).blamed
    assert one.rank == 5
    assert one.late_s == pytest.approx(0.03, rel=0.1)


def test_a_rank_late_in_30_percent_of_steps_is_transient() -> None:
    rng = np.random.default_rng(2)
    late = arrivals(2, 40)
    late[1, rng.permutation(40)[:12]] = 0.04
    (one,) = blame(steps_of(late, rng), None).blamed
    assert (one.rank, one.kind, one.cause) == (1, "transient", "compute")
    assert one.late_s == pytest.approx(0.3 * 0.04, rel=0.15)


def test_noise_above_the_limit_makes_no_persistence_of_long_delays_in_30_percent_of_steps() -> None:
    """As on two busy cores: 0.17 s in 14 of 48 steps, and a median of 4 ms above a limit of 3."""
    rng = np.random.default_rng(8)
    late = arrivals(2, 48, {1: 0.003})
    late[1, rng.permutation(48)[:14]] = 0.167
    series = steps_of(late, rng, noise_s=0.003)
    assert np.median(lateness(series)[1]) > 0.003
    (one,) = blame(series, 0.003).blamed
    assert (one.rank, one.kind, one.cause) == (1, "transient", "compute")
    assert one.late_s == pytest.approx(0.3 * 0.167, rel=0.15)


def test_noise_in_most_steps_hides_no_long_delay_in_30_percent_of_them() -> None:
    """As on two busy cores: 0.225 s in 14 of 48 steps, the others off by up to 12 ms."""
    rng = np.random.default_rng(9)
    late = arrivals(2, 48, {1: -0.004})
    late[1, rng.permutation(48)[:14]] = 0.225
    (one,) = blame(steps_of(late, rng, noise_s=0.005), 0.006).blamed
    assert (one.rank, one.kind, one.cause) == (1, "transient", "compute")


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_nobody_is_blamed_for_noise(ranks: int) -> None:
    rng = np.random.default_rng(3)
    blamed = [
        blame(steps_of(arrivals(ranks, 20), rng, noise_s=0.01), None).blamed for _ in range(200)
    ]
    assert sum(map(bool, blamed)) <= 0.05 * 200


def wandering(rng: np.random.Generator, ranks: int, steps: int, correlation: float) -> np.ndarray:
    """(ranks, steps) of noise in which a step is so much like the one before; spread 1."""
    drawn = rng.standard_normal((ranks, 50 + steps))
    for step in range(1, drawn.shape[1]):
        fresh = np.sqrt(1 - correlation**2) * drawn[:, step]
        drawn[:, step] = correlation * drawn[:, step - 1] + fresh
    return drawn[:, 50:]


def test_a_rank_that_is_late_for_a_while_by_chance_is_rarely_blamed() -> None:
    rng = np.random.default_rng(8)
    blamed = [
        blame(steps_of(0.005 * wandering(rng, 8, 20, 0.8), rng, noise_s=0), None).blamed
        for _ in range(100)
    ]
    assert sum(map(bool, blamed)) <= 15  # the signs alone: 40 and more


def test_a_slow_rank_that_wanders_is_blamed() -> None:
    rng = np.random.default_rng(9)
    for _ in range(20):
        late = arrivals(4, 20, {2: 0.03}) + 0.002 * wandering(rng, 4, 20, 0.8)
        (one,) = blame(steps_of(late, rng, noise_s=0), None).blamed
        assert (one.rank, one.kind) == (2, "persistent")


def test_lateness_without_a_spread_is_beyond_chance() -> None:
    rng = np.random.default_rng(10)
    (one,) = blame(steps_of(arrivals(2, 20, {1: 0.03}), rng, noise_s=0), None).blamed
    assert one == Blamed(1, pytest.approx(0.03), "persistent", "compute")


def test_launches_with_too_few_delays_to_tell_tell_together() -> None:
    rng = np.random.default_rng(11)
    series = []
    for _ in range(5):
        late = arrivals(8, 20)
        late[3, rng.permutation(20)[:5]] = 0.1
        series.append(steps_of(late, rng))
    verdicts = [blame(one, None) for one in series]
    assert of_launches(verdicts) == Verdict((), "nobody beyond chance")
    (one,) = of_case(verdicts, series, None).blamed
    assert (one.rank, one.kind, one.cause) == (3, "transient", "compute")
    assert one.late_s == pytest.approx(0.025, rel=0.1)
    # One launch's accident is not the others'.
    quiet = [steps_of(arrivals(8, 20), rng) for _ in range(4)]
    few = [steps_of(arrivals(8, 20, {3: 0.1}), rng), *quiet]
    assert not of_case([blame(one, None) for one in few], few, None).blamed
    assert of_case(verdicts, [], None) == Verdict((), "nobody beyond chance")


def test_a_delay_below_the_null_floor_is_not_blamed() -> None:
    rng = np.random.default_rng(4)
    series = steps_of(arrivals(2, 20, {0: 0.02}), rng)
    assert blame(series, 0.01).blamed[0].rank == 0
    assert blame(series, 0.03) == Verdict((), "nobody beyond chance")


def test_a_delay_below_2_percent_of_the_step_is_not_blamed() -> None:
    rng = np.random.default_rng(5)
    series = steps_of(arrivals(2, 100, {0: 0.0015}), rng, noise_s=1e-5)
    assert not blame(series, None).blamed


def test_what_cannot_be_judged_says_why() -> None:
    rng = np.random.default_rng(6)
    series = steps_of(arrivals(2, 19, {1: 0.05}), rng)
    assert blame(series, None) == Verdict((), "too few steps: 19, 20 are needed")
    old = {name: values for name, values in series.items() if name != "charged_s"}
    assert blame(old, None) == Verdict((), "no charges recorded")
    assert blame(steps_of(arrivals(1, 20), rng), None) == Verdict((), "one rank")


def test_late_s_is_the_plant_on_the_late_rank_and_its_negative_on_the_other() -> None:
    rng = np.random.default_rng(7)
    found = late_s(lateness(steps_of(arrivals(2, 20, {1: 0.03}), rng)))
    assert found == pytest.approx([-0.03, 0.03], rel=0.1)


def test_a_case_blames_whom_most_of_its_launches_blame() -> None:
    slow = Verdict((Blamed(1, 0.03, "persistent", "compute"),), "")
    other = Verdict((Blamed(0, 0.02, "transient", "host"),), "")
    nobody = Verdict((), "nobody beyond chance")
    found = of_launches(
        [slow, slow._replace(blamed=(slow.blamed[0]._replace(late_s=0.05),)), other]
    )
    assert found == Verdict((Blamed(1, 0.04, "persistent", "compute"),), "")
    assert of_launches([slow, other, nobody]) == Verdict((), "nobody in most launches")
    assert of_launches([slow, nobody]) == Verdict((), "nobody in most launches")
    assert of_launches([nobody, nobody]) == nobody
