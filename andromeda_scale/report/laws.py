"""The laws of scaling through a run's series: parameters, residuals, and how far they speak."""

from __future__ import annotations

from typing import Any

from andromeda_scale.analysis import laws, rivals
from andromeda_scale.analysis.laws import MIN_SIZES, REACH, Fit
from andromeda_scale.analysis.results import Results
from andromeda_scale.metrics.formats import percent
from andromeda_scale.report.columns import Column
from andromeda_scale.report.rows import arrange
from andromeda_scale.report.sentence import bounded
from andromeda_scale.report.tables import Table, identity

_ENDS = ("", "_low", "_high")
_COLUMNS = (
    Column("law", ("law",), lambda row: str(row["law"]), left=True),
    Column("worlds", ("worlds",), lambda row: str(row["worlds"]), left=True, folds=True),
    Column(
        "parameters", ("parameters",), lambda row: str(row["parameters"]), left=True, folds=True
    ),
    Column(
        "misses by", ("worst_residual", "residuals"), lambda row: f"{row['worst_residual']:.1%}"
    ),
    Column("speaks to", ("speaks_to",), lambda row: str(row["speaks_to"])),
    Column(
        "efficiency there",
        ("efficiency_there", "efficiency_there_low", "efficiency_there_high"),
        lambda row: "{} [{}, {}]".format(*(percent(row[f"efficiency_there{x}"]) for x in _ENDS)),
    ),
    Column("peak", ("peak",), lambda row: str(row["peak"])),
)
_NOTES = (
    "p = world / smallest world, S = speed-up. Amdahl (strong) S = 1/(s + (1-s)/p); Gustafson "
    "(weak) S = p - s(p-1); USL S = lambda p/(1 + sigma(p-1) + kappa p(p-1)): sigma contention, "
    "kappa the cost of keeping all pairs coherent; peak: where throughput falls from",
    "[low, high]: 95 % of the least squares on ln S; misses by: the largest |measured S / the "
    f"law's - 1|; speaks to: {REACH} times the largest measured world, a law says nothing beyond; "
    "efficiency there: if the law holds, which its interval takes for granted",
)


def laws_table(results: Results) -> Table:
    """A row a series and law; a note where no series has sizes enough."""
    rows, axes = arrange(results.cases)
    shown: list[dict[str, Any]] = [
        {**series[0], **_columns(fit)}
        for group in rivals.groups(rows)
        for series in rivals.series(group)
        for fit in laws.fits(series)
    ]
    too_few = f"no strategy was measured at {MIN_SIZES} worlds: no law can be told from another"
    notes = list(_NOTES) if shown else [too_few]
    title = f"Laws of scaling: {results.question}"
    return Table(title, (*identity(axes), *_COLUMNS), shown, notes)


def _columns(fit: Fit) -> dict[str, Any]:
    return {
        "law": fit.law,
        "worlds": " ".join(map(str, fit.worlds)),
        "parameters": ", ".join(
            f"{name} {one.centre:.4g} [{one.low:.4g}, {one.high:.4g}]"
            for name, one in fit.parameters.items()
        ),
        "worst_residual": max(map(abs, fit.residuals)),
        "residuals": " ".join(f"{one:+.4f}" for one in fit.residuals),
        "speaks_to": fit.speaks_to,
        **{
            f"efficiency_there{end}": value / (fit.speaks_to / fit.base)
            for end, value in zip(_ENDS, fit.speedup(fit.speaks_to), strict=True)
        },
        "peak": "-" if (peak := fit.peak()) is None else bounded(peak),
    }
