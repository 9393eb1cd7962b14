"""Laws of scaling through the measured sizes of a series, and rows off the curve. No torch.

With p = n/n0 and S the speed-up against the smallest measured world:

Amdahl      S = 1 / (s + (1 - s)/p), strong scaling (Amdahl 1967)
Gustafson   S = p - s (p - 1), weak scaling (Gustafson 1988)
USL         S = lambda p / (1 + sigma (p - 1) + kappa p (p - 1)), both (Gunther 1993): sigma is
            contention, kappa the cost of keeping all pairs coherent; it peaks at
            p = sqrt((1 - sigma) / kappa)

A law is fitted to ln S by least squares, from MIN_SIZES sizes on, and says nothing below the
smallest of them or beyond REACH times the largest. Every S has the base's noise, which USL's lambda
takes up; for the laws that start at S = 1 a common factor is fitted beside them and left out, or
their 95 % intervals would cover 60 to 76 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from andromeda_scale.analysis.rivals import Row
from andromeda_scale.analysis.stats import CONFIDENCE, Interval

MIN_SIZES = 5
REACH = 4  # times the largest measured world
RISE = 0.03  # of throughput per rank from one size to the next, which no added rank explains
_LEAST = 1e-12  # speed-up of a curve on its way to a fit
_MOVE = 1e-4  # of a parameter, or of itself where that is 0, to find a slope

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Law:
    """A curve with parameters in `bounds`, started at `start`."""

    names: tuple[str, ...]
    curve: Callable[..., Array]
    start: tuple[float, ...]
    bounds: tuple[tuple[float, ...], tuple[float, ...]]
    regimes: tuple[str, ...]


LAWS: dict[str, Law] = {
    "Amdahl": Law(
        ("serial",), lambda p, s: 1 / (s + (1 - s) / p), (0.05,), ((0.0,), (1.0,)), ("strong",)
    ),
    "Gustafson": Law(
        ("serial",), lambda p, s: p - s * (p - 1), (0.05,), ((0.0,), (1.0,)), ("weak",)
    ),
    "USL": Law(
        ("lambda", "sigma", "kappa"),
        lambda p, scale, sigma, kappa: scale * p / (1 + sigma * (p - 1) + kappa * p * (p - 1)),
        (1.0, 0.05, 0.001),
        ((0.0, 0.0, 0.0), (math.inf, 1.0, math.inf)),
        ("weak", "strong"),
    ),
}


@dataclass(frozen=True)
class Fit:
    """A law through a series. Intervals of parameters are of the least squares, 95 %."""

    law: str
    parameters: dict[str, Interval]
    residuals: tuple[float, ...]  # measured S over the law's, less 1, by size
    worlds: tuple[int, ...]
    base: int
    covariance: Array  # of the parameters
    quantile: float  # Student's, for a 95 % interval

    @property
    def speaks_to(self) -> int:
        """The largest world it may speak about."""
        return REACH * self.worlds[-1]

    def speedup(self, world: int) -> Interval:
        """By the law, with its 95 % interval: that of ln S, by the delta method.

        It is of the parameters alone: that the law holds there is assumed. Raises ValueError for a
        world it may not speak about.
        """
        if not self.worlds[0] <= world <= self.speaks_to:
            raise ValueError(f"{self.law} speaks of {self.worlds[0]} to {self.speaks_to} ranks")
        p = np.array([world / self.base])
        values = np.array([one.centre for one in self.parameters.values()])

        def log_speedup(*values: float) -> float:
            return math.log(max(float(LAWS[self.law].curve(p, *values)[0]), _LEAST))

        moves = _MOVE * np.diag(np.maximum(np.abs(values), _MOVE))
        found = log_speedup(*values)
        slopes = np.array([log_speedup(*values + one) - found for one in moves]) / moves.sum(axis=1)
        half = self.quantile * math.sqrt(max(0.0, float(slopes @ self.covariance @ slopes)))
        return Interval(*(math.exp(found + more) for more in (0.0, -half, half)))

    def peak(self) -> Interval | None:
        """The world beyond which throughput falls; None where it lies out of reach, or where it
        falls from the smallest on.

        The ends are those of sigma and kappa together, which is wider than 95 %.
        """
        if self.law != "USL" or self.parameters["kappa"].centre <= 0:
            return None
        sigma, kappa = self.parameters["sigma"], self.parameters["kappa"]

        def at(sigma: float, kappa: float) -> float:
            return self.base * math.sqrt(max(0.0, 1 - sigma) / kappa) if kappa > 0 else math.inf

        found = at(sigma.centre, kappa.centre)
        if not self.worlds[0] <= found <= self.speaks_to:
            return None
        return Interval(found, at(sigma.high, kappa.high), at(sigma.low, kappa.low))


def fits(rows: Sequence[Row]) -> list[Fit]:
    """Every law of the rows' regime; `rows`: a series, each against the first, small worlds first.

    Nothing under MIN_SIZES sizes. Of rows of one size the fastest counts.
    """
    best: dict[int, float] = {}
    for row in rows:
        world, speed = int(row["world_size"]), float(row["tokens_per_s"])
        best[world] = max(speed, best.get(world, 0.0))
    worlds = sorted(best)
    if len(worlds) < MIN_SIZES:
        return []
    p = np.array(worlds, dtype=float) / worlds[0]
    measured = np.array([best[world] for world in worlds]) / best[worlds[0]]
    return [
        _fit(name, law, p, measured, worlds)
        for name, law in LAWS.items()
        if rows[0]["regime"] in law.regimes
    ]


def _fit(name: str, law: Law, p: Array, measured: Array, worlds: Sequence[int]) -> Fit:
    from scipy.optimize import least_squares  # a quarter of a second of every report without laws

    def error(values: Array) -> Array:
        found: Array = np.log(np.maximum(law.curve(p, *values), _LEAST)) - np.log(measured)
        return found

    scaled = "lambda" in law.names

    def of_shape(values: Array) -> Array:
        found = error(values)
        return found if scaled else found - found.mean()

    found = least_squares(of_shape, law.start, bounds=law.bounds)
    df = len(p) - len(law.start) - (not scaled)
    squared = float(found.fun @ found.fun) / df
    covariance = squared * np.linalg.pinv(found.jac.T @ found.jac)
    quantile = float(stdtrit(df, (1 + CONFIDENCE) / 2))
    halves = quantile * np.sqrt(np.diag(covariance))
    low, high = (np.array(bound) for bound in law.bounds)
    ends = np.clip(found.x - halves, low, high), np.clip(found.x + halves, low, high)
    parameters = {
        parameter: Interval(float(value), float(a), float(b))
        for parameter, value, a, b in zip(law.names, found.x, *ends, strict=True)
    }
    residuals = tuple(float(one) for one in np.expm1(-error(found.x)))
    return Fit(name, parameters, residuals, tuple(worlds), worlds[0], covariance, quantile)


def odd_rows(rows: Sequence[Row]) -> list[tuple[Row, Row, float]]:
    """(the row to look at, its neighbour, the rise) where throughput per rank rises with the world.

    Under weak scaling no added rank makes the others faster, so one of the two rows is not what it
    seems. The one farther from the series' median is named.
    """
    if not rows or rows[0]["regime"] != "weak":
        return []
    logs = [math.log(float(row["tokens_per_s_per_gpu"])) for row in rows]
    median = float(np.median(logs))
    found: list[tuple[Row, Row, float]] = []
    for (small, a), (large, b) in pairwise(zip(rows, logs, strict=True)):
        if small["world_size"] == large["world_size"]:  # as many ranks on other nodes
            continue
        if b - a > math.log1p(RISE) and _beyond_noise(small, large):
            odd, other = (small, large) if abs(a - median) > abs(b - median) else (large, small)
            found.append((odd, other, math.exp(b - a) - 1))
    return found


def _beyond_noise(small: Row, large: Row) -> bool:
    """Whether the intervals of two rows keep apart, where both have one."""
    high: Any = small.get("tokens_per_s_per_gpu_high")
    low: Any = large.get("tokens_per_s_per_gpu_low")
    known = high is not None and low is not None and high == high and low == low
    return bool(low > high) if known else True
