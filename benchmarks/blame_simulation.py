"""Whom verdicts blame: simulated launches in which nobody is slow, and in which one rank is.

    python benchmarks/blame_simulation.py [--trials 200]

A trial makes launches of 20 profiled steps, in which every rank enters one collective a step, and
gives them to the functions that make the tables (andromeda_scale/analysis/blame.py). Ranks come
earlier and later by chance, by so many percent of the step; the correlation is that of a step's
lateness with the next one's, as what disturbs a rank may last.

nobody     how often somebody is blamed where none is slower than another
found      how often the rank is blamed that takes longer in every step, or in 30 % of them
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from andromeda_scale.analysis import blame

STEPS, STEP_S = 20, 0.1
SETTLING = 50  # steps until a series has forgotten where it began
CORRELATIONS, LAUNCHES, RANKS = (0.0, 0.5, 0.8), (1, 3, 5), (2, 8)
SLOW = 1
# What is planted: seconds of the slow rank, the share of steps that have them, chance's share.
PLANTS = {
    "nobody, 5% noise": (0.0, 1.0, 0.05),
    "10 ms in each, 2% noise": (0.01, 1.0, 0.02),
    "167 ms in 30%, 2% noise": (0.167, 0.3, 0.02),
}
Times = NDArray[np.float64]


def launch(
    rng: np.random.Generator, ranks: int, correlation: float, plant: str
) -> dict[str, Times]:
    """(ranks, steps) seconds of a launch, as its profile would have them."""
    seconds, share, noise = PLANTS[plant]
    drawn = rng.standard_normal((ranks, SETTLING + STEPS))
    for step in range(1, drawn.shape[1]):
        fresh = np.sqrt(1 - correlation**2) * drawn[:, step]
        drawn[:, step] = correlation * drawn[:, step - 1] + fresh
    at = noise * STEP_S * drawn[:, SETTLING:]
    at[SLOW] += seconds * (rng.random(STEPS) < share)
    charged = np.zeros(at.shape)
    order, steps = np.argsort(at, axis=0), np.arange(STEPS)
    gaps = np.diff(np.take_along_axis(at, order, axis=0), axis=0)
    for waiting in range(1, ranks):  # those that have come wait for those that have not
        for place in range(waiting, ranks):
            charged[order[place], steps] += gaps[waiting - 1] * waiting / (ranks - waiting)
    same = np.full(at.shape, STEP_S)
    classes = {"compute_s": same / 2 + at, "host_s": 0 * same, "data_s": 0 * same}
    waits = {"exposed_wait_s": at.max(axis=0) - at, "charged_s": charged}
    return {"step_s": same, **classes, **waits}


def blamed(
    trials: int, ranks: int, launches: int, correlation: float, plant: str
) -> Iterator[bool]:
    """Of each trial, whether the slow rank is blamed; where none is slow, whether anybody is."""
    rng = np.random.default_rng(0)
    for _ in range(trials):
        series = [launch(rng, ranks, correlation, plant) for _ in range(launches)]
        verdict = blame.of_case([blame.blame(one, None) for one in series], series, None)
        found = [one.rank for one in verdict.blamed]
        yield SLOW in found if PLANTS[plant][0] else bool(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trials", type=int, default=200)
    trials = parser.parse_args().trials
    columns = [(ranks, launches) for ranks in RANKS for launches in LAUNCHES]
    heads = [f"{ranks} ranks x {launches}" for ranks, launches in columns]
    print(f"{'blamed, % of trials: correlation, launches':44}", *(f"{head:>11}" for head in heads))
    for plant in PLANTS:
        for correlation in CORRELATIONS:
            shares = [
                f"{np.mean([*blamed(trials, *column, correlation, plant)]):11.1%}"
                for column in columns
            ]
            print(f"{plant + f', correlation {correlation}':44}", *shares, flush=True)


if __name__ == "__main__":
    main()
