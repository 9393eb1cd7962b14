"""Whether the intervals and comparisons keep what they promise: synthetic launches, known truths.

    python benchmarks/simulation.py [--trials 2000] [--curve]

A trial makes launches of steps whose mean is known, gives them to the functions that make the
tables (andromeda_scale/analysis/stats.py), and counts:

coverage   how often a 95 % interval holds the truth (wanted: 93 to 97 %): of one row, and of the
           ratio of two, which speed-up and efficiency are; under noise that is autocorrelated,
           drifts within a launch, has heavy tails and outliers, comes from launches alone or from
           steps alone. `percentile` is the nested bootstrap without dividing by the error of each
           draw, for comparison: it is not used
           and of the classes of a step, their shares and factors
A/A        how often the same configuration is called different from itself (at most 5 %), alone
           and as one of five under Holm, with a drift that both sides of a pair share; and of
           several equal ones, how often the best is called better than another
found      how often a slow-down of 2 % is found at the default settings under steps of 2 % and
           launches of 0.5 % (at least 95 %)

`--curve` prints the power over noise, steps and launches. Exit status 1 if a claim fails.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from andromeda_scale.analysis import breakdown, comparison, stats
from andromeda_scale.analysis.precision import half_width, needed
from andromeda_scale.analysis.stats import Interval, Sample
from andromeda_scale.commands.refining import GROWTH
from andromeda_scale.suite.config import Measure

STEP_NOISE, LAUNCH_NOISE, EFFECT = 0.02, 0.005, 0.02
COVERED, FALSE_ALARMS, FOUND = (0.93, 0.97), 0.05, 0.95
ALARM_TRIALS = 2  # times as many for A/A, whose bound lies closer to what is wanted
SIZES = (3, 5, 6, 10)
STEP_S = 0.1
Times = NDArray[np.float64]


@dataclass(frozen=True)
class Noise:
    """How steps vary. Everything is relative to the step's time."""

    name: str
    steps: float = STEP_NOISE
    launches: float = LAUNCH_NOISE
    correlation: float = 0.0  # of a step with the next
    drift: float = 0.0  # of a launch's first step, falling to its last, as much again at random
    heavy: bool = False  # Student's t with 3 (steps) and 4 (launches) degrees; 2 % outliers

    def draw(self, rng: np.random.Generator, launches: int, steps: int) -> Times:
        """(launches, steps) seconds."""
        if self.heavy:
            noise = rng.standard_t(3, (launches, steps)) / np.sqrt(3)
            noise += (rng.random((launches, steps)) < 0.02) * rng.exponential(
                5.0, (launches, steps)
            )
            of_launch = rng.standard_t(4, launches) / np.sqrt(2)
        else:
            noise = _autoregressive(rng.standard_normal((launches, steps)), self.correlation)
            of_launch = rng.standard_normal(launches)
        first = self.drift * (1 + rng.standard_normal((launches, 1)))
        logs = self.steps * noise + first * np.linspace(1, 0, steps)
        return STEP_S * np.exp(logs + self.launches * of_launch[:, None])


NOISES = (
    Noise("plain"),
    Noise("autocorrelated 0.7", correlation=0.7),
    Noise("drifting 1 +- 1 %", drift=0.01),
    Noise("heavy tails", heavy=True),
    Noise("launches 2 %", launches=0.02),
    Noise("no launch effect", launches=0.0),
)


def _autoregressive(white: Times, correlation: float) -> Times:
    found = white.copy()
    for index in range(1, white.shape[1]):
        new = np.sqrt(1 - correlation**2) * white[:, index]
        found[:, index] = correlation * found[:, index - 1] + new
    return found


def sample(times: Times) -> Sample:
    """Launches as the merge gives them to the statistics: rates, with their steps."""
    return Sample(
        {index: 1 / float(steps.mean()) for index, steps in enumerate(times)},
        dict(enumerate(times)),
    )


def truth(noise: Noise, steps: int, rng: np.random.Generator) -> float:
    """The rate that the geometric mean of more and more launches tends to."""
    logs = [np.log(noise.draw(rng, 1000, steps).mean(axis=1)).mean() for _ in range(200)]
    return float(np.exp(-np.mean(logs)))


def percentile(one: Sample) -> Interval:
    """The nested bootstrap's plain percentiles, from the same draws."""
    logs = stats._logs(one)
    drawn, _ = stats._draw(logs)
    low, high = np.exp(np.quantile(drawn, [0.025, 0.975]))
    return Interval(float(np.exp(logs.values.mean())), float(low), float(high))


def share(trials: int, happened: Callable[[], bool]) -> float:
    return sum(happened() for _ in range(trials)) / trials


def coverage(trials: int, steps: int, rng: np.random.Generator) -> Iterator[bool]:
    """Prints a row a noise; yields whether each share is in bounds."""
    columns = [f"{what} {size}" for what in ("row", "ratio") for size in SIZES]
    print(f"{'coverage of 95 % intervals, %':<30}", *(f"{name:>9}" for name in columns), end="")
    print(f"{'percentile 6':>14}")
    for noise in NOISES:
        known = truth(noise, steps, rng)

        def holds(interval: Interval, value: float) -> bool:
            return interval.low <= value <= interval.high

        def row(size: int, noise: Noise = noise, known: float = known) -> bool:
            return holds(stats.log_interval(sample(noise.draw(rng, size, steps))), known)

        def ratio(size: int, noise: Noise = noise) -> bool:
            a, b = (sample(noise.draw(rng, size, steps)) for _ in range(2))
            return holds(stats.log_ratio_interval(a, b), 1.0)

        def plain(noise: Noise = noise, known: float = known) -> bool:
            return holds(percentile(sample(noise.draw(rng, 6, steps))), known)

        shares = [share(trials, lambda s=s, f=f: f(s)) for f in (row, ratio) for s in SIZES]
        print(f"{noise.name:<30}", *(f"{one:9.1%}" for one in shares), end="", flush=True)
        print(f"{share(trials, plain):14.1%}")
        yield from (COVERED[0] <= one <= COVERED[1] for one in shares)


def _profile(rng: np.random.Generator, steps: int) -> dict[str, Times]:
    """(2 ranks, steps) seconds of one launch's classes; launches differ by 5 % in their compute."""
    spread = {"exposed_wait_s": 0.3, "exposed_transfer_s": 0.2, "host_s": 0.1, "data_s": 0.0}
    found = {name: 0.01 * np.exp(s * rng.standard_normal((2, steps))) for name, s in spread.items()}
    of_launch = 0.1 * np.exp(0.05 * rng.standard_normal())
    found["compute_s"] = of_launch * np.exp(0.03 * rng.standard_normal((2, steps)))
    exposed = found["exposed_wait_s"] + found["exposed_transfer_s"]
    found |= {"step_s": sum(found.values()), "comm_exposed_s": exposed, "comm_total_s": exposed}
    return found | {"comm_overlapped_s": 0 * exposed}


def reasons(trials: int, rng: np.random.Generator, steps: int = 20) -> Iterator[bool]:
    """Coverage of a breakdown's intervals, whose launches have `steps` profiled steps."""
    names = ("compute_s", "exposed_transfer_share", "host_share", "serialisation_eff")
    print(f"\n{'coverage of reasons, %':<30}", *(f"{name:>23}" for name in names))
    many = [breakdown.additive(_profile(rng, steps)) for _ in range(100 * trials)]
    truths = {name: float(np.mean([one[name] for one in many])) for name in names}
    for size in SIZES:
        held = dict.fromkeys(names, 0)
        for _ in range(trials):
            launches = [_profile(rng, steps) for _ in range(size)]
            means = [breakdown.additive(one) for one in launches]
            series = [breakdown.by_step(one) for one in launches]
            for name in names:
                values = {index: one[name] for index, one in enumerate(means)}
                one = Sample(values, {index: x[name] for index, x in enumerate(series)})
                _, low, high = stats.mean_interval(one)
                held[name] += low <= truths[name] <= high
        shares = [held[name] / trials for name in names]
        print(f"{size:>3} launches{'':<18}", *(f"{one:23.1%}" for one in shares), flush=True)
        yield from (COVERED[0] <= one <= COVERED[1] for one in shares)


def pair(
    noise: Noise, rng: np.random.Generator, launches: int, steps: int, effect: float
) -> tuple[Sample, Sample]:
    """B, slower by `effect`, and A, in blocks that drift by 1 % from one to the next together."""
    blocks = np.exp(0.01 * np.cumsum(rng.standard_normal(launches)))[:, None]
    a, b = (noise.draw(rng, launches, steps) * blocks for _ in range(2))
    return sample(b * (1 + effect)), sample(a)


def different(
    noise: Noise, rng: np.random.Generator, launches: int, steps: int, **k: float
) -> bool:
    both = pair(noise, rng, launches, steps, k.get("effect", 0.0))
    return comparison.compare_launches(*both).differs


def any_of_five(noise: Noise, rng: np.random.Generator, launches: int, steps: int) -> bool:
    pairs = (pair(noise, rng, launches, steps, 0.0) for _ in range(5))
    ratios = [comparison.compare_launches(*one) for one in pairs]
    return any(one.differs for one in comparison.jointly(ratios))


def best_of(noise: Noise, rng: np.random.Generator, rivals: int, steps: int) -> bool:
    """Whether of equal rivals, 5 launches each, one differs from the one that looks best."""
    launches = [sample(noise.draw(rng, 5, steps)) for _ in range(rivals)]
    ranked = sorted(launches, key=lambda one: -stats.log_interval(one).centre)
    ratios = [comparison.compare_launches(ranked[0], other) for other in ranked[1:]]
    return any(one.differs for one in comparison.jointly(ratios, of_the_best=True))


def chosen(trials: int, steps: int, rng: np.random.Generator) -> Iterator[bool]:
    print("\nequal rivals of which one is called different from the best, 5 launches, %")
    for rivals in (2, 4, 6, 10, 20):
        found = share(trials, lambda k=rivals: best_of(NOISES[0], rng, k, steps))
        print(f"{rivals:>3} rivals {found:8.1%}", flush=True)
        yield found <= FALSE_ALARMS


def alarms(trials: int, steps: int, rng: np.random.Generator) -> Iterator[bool]:
    sizes = (3, 5, 6, 10)
    print(f"\n{'A/A called different, %':<30}", *(f"{size:>9}" for size in sizes), end="")
    print(f"{'one of five 5':>15}")
    trials *= ALARM_TRIALS
    for noise in NOISES:
        shares = [share(trials, lambda n=noise, s=s: different(n, rng, s, steps)) for s in sizes]
        shares.append(share(trials, lambda n=noise: any_of_five(n, rng, 5, steps)))
        print(f"{noise.name:<30}", *(f"{one:9.1%}" for one in shares[:-1]), end="")
        print(f"{shares[-1]:15.1%}", flush=True)
        yield from (one <= FALSE_ALARMS for one in shares)


def found(trials: int, rng: np.random.Generator) -> Iterator[bool]:
    default = Measure()
    noise = Noise("stated")
    power = share(
        trials, lambda: different(noise, rng, default.repeats, default.steps, effect=EFFECT)
    )
    print(
        f"\na slow-down of {EFFECT:.0%} found in {power:.1%} of paired comparisons: steps "
        f"{noise.steps:.1%}, launches {noise.launches:.1%}, {default.repeats} launches of "
        f"{default.steps} steps"
    )
    yield power >= FOUND


def curve(trials: int, rng: np.random.Generator) -> None:
    """How often a slow-down of 2 % is found, over noise, steps and launches."""
    sizes = (3, 4, 5, 8)
    print(f"\n{'found of 2 %: step, launch noise, steps':<42}", *(f"{size:>7}" for size in sizes))
    for step_noise in (0.01, 0.02, 0.05):
        for launch_noise in (0.005, 0.01, 0.02):
            for steps in (50, 200):
                noise = replace(NOISES[0], steps=step_noise, launches=launch_noise)
                shares = [
                    share(
                        trials, lambda s=s, n=noise, m=steps: different(n, rng, s, m, effect=EFFECT)
                    )
                    for s in sizes
                ]
                name = f"steps {step_noise:.1%}, launches {launch_noise:.2%}, {steps:>3} steps"
                print(f"{name:<42}", *(f"{one:7.0%}" for one in shares), flush=True)


def stopping(trials: int, rng: np.random.Generator) -> None:
    """How often the interval holds the truth where it was `measure.precision: 1%` that ended it."""
    print("\nended by measure.precision 1 %: coverage, launches made on average")
    default = Measure()
    for launches in (0.006, 0.01, 0.02):
        held, made = 0, 0
        for _ in range(trials):
            rates = np.exp(launches * rng.standard_normal(default.max_repeats))
            done = default.repeats
            while True:
                one = Sample(dict(enumerate(rates[:done])))
                interval = stats.log_interval(one)
                if half_width(interval) <= 0.01 or done == default.max_repeats:
                    break
                asked = needed(one, 0.01).launches or default.max_repeats
                most = min(default.max_repeats, int(GROWTH * done))
                done = min(most, max(done + 1, asked))
            held += interval.low <= 1 <= interval.high
            made += done
        print(f"launches {launches:.1%}: {held / trials:.1%}, {made / trials:.1f}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=Measure().steps)
    parser.add_argument("--curve", action="store_true")
    asked = parser.parse_args()
    rng = np.random.default_rng(2)
    if asked.curve:
        curve(asked.trials, rng)
        return 0
    held = [
        *coverage(asked.trials, asked.steps, rng),
        *reasons(asked.trials, rng),
        *alarms(asked.trials, asked.steps, rng),
        *chosen(asked.trials, asked.steps, rng),
        *found(asked.trials, rng),
    ]
    stopping(asked.trials, rng)
    print(f"{sum(held)} of {len(held)} claims hold")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
