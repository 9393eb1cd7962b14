"""Rows of late ranks: who is blamed, why, and how long the others wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count

import numpy as np

from andromeda_scale.selftest.evidence import (
    FAIL,
    PASS,
    UNAVAILABLE,
    Finding,
    Launch,
    counted,
    judge,
    milliseconds,
    ratio,
)
from andromeda_scale.selftest.place import NULL, NULLS, Launches, Null, Place, Row
from andromeda_scale.suite.faults import falls_on

SHARE = 0.3
RUNS_OF_NOBODY = 20  # of which one may blame somebody


def nobody(place: Place, launches: int) -> Row:
    def found(all_: Launches) -> list[Finding]:
        mine = all_[NULL]
        hits = sum(_names_any(one) for one in mine)
        verdict = PASS if hits <= len(mine) // RUNS_OF_NOBODY else FAIL
        if hits == 1 and len(mine) < RUNS_OF_NOBODY:
            verdict = f"{UNAVAILABLE}: {RUNS_OF_NOBODY} launches would decide"
        said = f"{hits} of {len(mine)}"
        return [Finding(NULL, "launches that blame a rank", "0", said, "", verdict)]

    return Row(NULL, {NULL: {}}, launches, found, place.lacks(2))


def always(place: Place, null: Null, cause: str, launches: int) -> Row:
    rank, delay = place.late, null.delay_s
    does = {"compute": "computes", "host": "sleeps"}[cause]
    planted = f"rank {rank} {does} {milliseconds(delay)} longer"

    def found(all_: Launches) -> list[Finding]:
        mine, plain = all_[cause], all_[NULL]
        # What follows from d for launches without it.
        computed = [_imbalance_with(one, rank, delay) for one in plain]
        unplanted = [one.of("imbalance") for one in plain]
        return [
            _named(planted, mine, plain, delay, (str(rank), cause, "persistent")),
            judge(
                planted, "waiting, early less late ranks", [delay],
                [one.waiting(rank) for one in mine], [one.waiting(rank) for one in plain],
                text=milliseconds,
            ),
            judge(
                planted, "imbalance", computed if cause == "compute" else unplanted,
                [one.of("imbalance") for one in mine],
                text=ratio, scale=float(np.median(computed)),
            ),
        ]  # fmt: skip

    fault = {"kind": cause, "rank": rank, "delay_s": delay}
    return Row(planted, {cause: {"faults": [fault]}}, launches, found, place.lacks(2))


def two(place: Place, null: Null, launches: int) -> Row:
    """The later one by 1.2 times: a rank that waits longer than it keeps others is not late."""
    first, second = place.late - 1, place.late
    delays = {first: 2 * null.delay_s, second: 2.4 * null.delay_s}
    planted = "; ".join(f"rank {r} computes {milliseconds(d)} longer" for r, d in delays.items())
    if reason := place.lacks(3):
        return Row(
            "two ranks compute longer by different times", {}, launches, lambda _: [], reason
        )

    def found(all_: Launches) -> list[Finding]:
        wanted = (f"{second}, {first}", "compute", "persistent")
        return [_named(planted, all_["two"], all_[NULL], null.delay_s, wanted)]

    faults = [{"kind": "compute", "rank": r, "delay_s": d} for r, d in delays.items()]
    return Row(planted, {"two": {"faults": faults}}, launches, found)


def sometimes(place: Place, null: Null, launches: int, *, first: int, profiled: int) -> Row:
    rank, delay = place.late, round(null.delay_s / SHARE, 3)  # null.delay_s on the mean
    planted = f"rank {rank} computes {milliseconds(delay)} longer in {SHARE:.0%} of steps"

    def found(all_: Launches) -> list[Finding]:
        wanted = (str(rank), "compute", "transient")
        return [_named(planted, all_["transient"], all_[NULL], null.delay_s, wanted)]

    fault = {"kind": "compute", "rank": rank, "delay_s": delay, "share": SHARE}
    steps = range(first, first + profiled)
    # Of the seeds, the first by which that share falls into the steps that are looked at.
    seed = next(
        seed
        for seed in count()
        if sum(falls_on(step, SHARE, seed, 0) for step in steps) == round(SHARE * profiled)
    )
    changes = {"faults": [fault], "measure.profile_steps": profiled, "seed": seed}
    return Row(planted, {"transient": changes}, launches, found, place.lacks(2))


def _names_any(launch: Launch) -> bool:
    return launch.text("blamed_ranks") != ""


def _named(
    planted: str,
    mine: Sequence[Launch],
    plain: Sequence[Launch],
    delay_s: float,
    wanted: tuple[str, str, str],
) -> Finding:
    """Whether every launch blames these ranks, in this order, for this cause and in this way."""
    keys = ("blamed_ranks", "blame_cause", "blame_kind")
    hits = sum(tuple(one.text(key) for key in keys) == wanted for one in mine)
    said = counted(planted, f"blamed: rank {', '.join(wanted)}", hits, len(mine))
    floor = max(one.of("late_s") for one in plain)
    if delay_s < NULLS * floor:  # noisier by now than when the delay was chosen
        return replace(said, verdict=f"{UNAVAILABLE}: too noisy (null {milliseconds(floor)})")
    return said


def _imbalance_with(launch: Launch, rank: int, delay_s: float) -> float:
    """What the imbalance of an unplanted launch becomes with a delay in a rank's compute."""
    compute = launch.ranks["compute_s"].to_numpy(dtype=float).copy()
    compute[rank] += delay_s
    return float(compute.max() / compute.mean() - 1)
