"""Which ranks the others waited for, beyond chance, and why those were late. No torch.

A step is one piece of evidence, or less where lateness wanders over many. In it a rank is late by
what the others waited for it, less what it waited itself, for each of them:
`(charged_s - exposed_wait_s) / (ranks - 1)`. A launch of MIN_STEPS has a verdict of its own, and a
case that of most of its launches, or else of the steps of all together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import stdtr

from andromeda_scale.analysis.comparison import holm
from andromeda_scale.analysis.resampling import autocorrelation, correlation_time_of
from andromeda_scale.analysis.stats import sign_test

MIN_STEPS = 20  # fewer steps allow no verdict on a rank
MIN_SHARE = 0.02  # of the step: a smaller delay is not worth naming
ALPHA = 0.05

# Why nobody is blamed, where there was enough to judge by.
NOBODY, NO_MAJORITY = "nobody beyond chance", "nobody in most launches"
ONE_RANK = "one rank"

# The classes of a step in which a rank can be late by its own doing.
CAUSES = {"compute": "compute_s", "host": "host_s", "data": "data_s"}

Kind = Literal["persistent", "transient"]


class Blamed(NamedTuple):
    """A rank that the others wait for."""

    rank: int
    late_s: float  # seconds per step, see METRICS["blame_s"]
    kind: Kind  # late in most steps, or in some
    cause: str  # a key of CAUSES, or "unexplained"


class Verdict(NamedTuple):
    """Whom one launch blames, the latest first; `why` says why nobody, where that is so."""

    blamed: tuple[Blamed, ...]
    why: str


def lateness(series: Mapping[str, np.ndarray]) -> np.ndarray:
    """(ranks, steps) seconds by which each rank was late: its charge less its own waiting, by the
    number of the others, so that one late rank of many is late by what it delays the step."""
    charged = series["charged_s"]
    late: np.ndarray = (charged - series["exposed_wait_s"]) / max(1, len(charged) - 1)
    return late


def late_s(late: np.ndarray) -> np.ndarray:
    """Per rank, the larger of median (late in most steps) and mean (late in some)."""
    larger: np.ndarray = np.maximum(np.median(late, axis=1), late.mean(axis=1))
    return larger


def blame(series: Mapping[str, np.ndarray], floor_s: float | None) -> Verdict:
    """Judge a launch from (ranks, steps) seconds by name, and the null floor stored for it.

    A rank is blamed if the median of its lateness (persistent), or else the mean (transient), is
    above max(MIN_SHARE of the step, floor) and a sign test over the steps in which it is off by
    more than that, and than half of what it is blamed for, passes Holm over the ranks: beside long
    delays in some steps short noise in the others says nothing. So does a t test of the mean over
    as many steps as are independent: of a rank that is late for a while, and then another is,
    the signs alone would count each step. A median of less than half the mean is what noise makes
    of a rank that is late in some steps.
    """
    num_ranks, num_steps = series["step_s"].shape
    if num_ranks < 2:
        return Verdict((), ONE_RANK)
    if "charged_s" not in series:
        return Verdict((), "no charges recorded")
    if num_steps < MIN_STEPS:
        return Verdict((), f"too few steps: {num_steps}, {MIN_STEPS} are needed")
    late = lateness(series)
    limit = limit_s(series, floor_s)
    medians, means = np.median(late, axis=1), late.mean(axis=1)
    chances = []
    for one, centre in zip(late, np.maximum(medians, means), strict=True):
        least = max(limit, centre / 2)
        signs = sign_test(int((one > least).sum()), int((np.abs(one) > least).sum()))
        chances.append(max(signs, _chance_of_mean(one)))
    beyond = np.array(holm(chances, ALPHA)) & (np.maximum(medians, means) > limit)
    if beyond.all():  # each is late in most steps because one comes early in turn: none is slow
        return Verdict((), NOBODY)
    lasting = (medians > limit) & (2 * medians > means)
    ranks = np.flatnonzero(beyond).tolist()
    others = np.flatnonzero(~beyond)
    found = [
        Blamed(
            rank,
            float(medians[rank] if lasting[rank] else means[rank]),
            "persistent" if lasting[rank] else "transient",
            _cause(series, rank, others, late[rank] > limit),
        )
        for rank in ranks
    ]
    why = "" if found else NOBODY
    return Verdict(tuple(sorted(found, key=lambda one: -one.late_s)), why)


def _chance_of_mean(late: np.ndarray) -> float:
    """P(a mean of at least this | the truth is 0), of a series whose steps may be correlated.

    One-sided t test; r is too small by about (1 + 4r)/n in a series of n (Kendall 1954).
    """
    mean, spread, num = float(late.mean()), float(late.std(ddof=1)), len(late)
    if spread == 0:
        return float(mean <= 0)
    r = autocorrelation(late)
    independent = num / correlation_time_of(r + (1 + 4 * max(r, 0.0)) / num)
    return float(stdtr(num - 1, -mean / spread * math.sqrt(independent)))


def limit_s(series: Mapping[str, np.ndarray], floor_s: float | None) -> float:
    """Seconds per step by which a rank must be late to be worth naming."""
    return max(MIN_SHARE * float(series["step_s"].max(axis=0).mean()), floor_s or 0.0)


def _cause(series: Mapping[str, np.ndarray], rank: int, others: np.ndarray, at: np.ndarray) -> str:
    """The class of its own step by which it exceeds the others' median most, where it was late."""
    excess = {
        cause: float(
            np.mean(series[name][rank, at] - np.median(series[name][others][:, at], axis=0))
        )
        for cause, name in CAUSES.items()
    }
    most = max(excess, key=lambda cause: excess[cause])
    return most if excess[most] > 0 else "unexplained"


def of_launches(verdicts: Sequence[Verdict]) -> Verdict:
    """What most launches say: a rank is blamed if more than half of them blame it.

    Each launch places its processes anew, so one launch's rank may be an accident. Seconds are the
    mean over the launches that blame it, kind and cause what most of these say.
    """
    found: dict[int, list[Blamed]] = {}
    for one in (one for verdict in verdicts for one in verdict.blamed):
        found.setdefault(one.rank, []).append(one)
    agreed = [
        Blamed(
            rank,
            float(np.mean([one.late_s for one in those])),
            Counter(one.kind for one in those).most_common(1)[0][0],
            Counter(one.cause for one in those).most_common(1)[0][0],
        )
        for rank, those in found.items()
        if 2 * len(those) > len(verdicts)
    ]
    return Verdict(tuple(sorted(agreed, key=lambda one: -one.late_s)), _why(verdicts, agreed))


def of_case(
    verdicts: Sequence[Verdict],
    launches: Sequence[Mapping[str, np.ndarray]],
    floor_s: float | None,
) -> Verdict:
    """What most launches say; where that is nobody, what the steps of all `launches` say together.

    A launch of few steps has no verdict, and one of few delays none beyond chance. A rank is then
    blamed if it was late on average in more than half of the launches too.
    """
    agreed = of_launches(verdicts)
    if agreed.blamed or not launches:
        return agreed
    names = launches[0].keys()
    together = blame(
        {x: np.concatenate([one[x] for one in launches], axis=1) for x in names}, floor_s
    )
    means = [(lateness(one).mean(axis=1), limit_s(one, floor_s)) for one in launches]
    blamed = tuple(
        one
        for one in together.blamed
        if 2 * sum(bool(late[one.rank] > limit) for late, limit in means) > len(launches)
    )
    if blamed:
        return Verdict(blamed, "")
    short = all(one["step_s"].shape[1] < MIN_STEPS for one in launches)
    return Verdict((), (together.why or NO_MAJORITY) if short else agreed.why)


def _why(verdicts: Sequence[Verdict], agreed: Sequence[Blamed]) -> str:
    if agreed:
        return ""
    reasons = dict.fromkeys(verdict.why for verdict in verdicts if not verdict.blamed)
    if len(reasons) == 1 and not any(verdict.blamed for verdict in verdicts):
        return next(iter(reasons))
    return NO_MAJORITY
