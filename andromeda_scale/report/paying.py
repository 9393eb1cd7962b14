"""What more ranks buy: where they stop paying, where a law sees the peak, what looks odd. No torch.

From n1 to n2 ranks throughput grows by X2/X1, which is the speed-up of the table where n1 is the
base. More ranks pay where that is at least 1 + PAYS (n2/n1 - 1): each added rank gives PAYS or more
of what the ranks before gave.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from andromeda_scale.analysis import laws, rivals
from andromeda_scale.analysis.rivals import Row
from andromeda_scale.analysis.stats import MIN_LAUNCHES, Interval, Sample, log_ratio_interval
from andromeda_scale.report.sentence import (
    Names,
    Sentence,
    bounded,
    case_ids,
    known,
    listed,
    percent,
    times,
)

PAYS = 0.5
Outcome = Literal["stops", "unsure", "few", "pays"]
_TITLES: dict[Outcome, str] = {
    "pays": "More ranks pay as far as was measured",
    "stops": "More ranks stop paying",
    "unsure": "These launches do not tell whether more ranks pay",
    "few": f"Too few launches (under {MIN_LAUNCHES}) to tell whether more ranks pay",
}
_RULE = f"paying: an added rank gives {PAYS:.0%} of a rank before, 1.5x for twice the ranks"


@dataclass(frozen=True)
class _Step:
    """From one measured world to the next."""

    smaller: Row
    larger: Row
    gain: Interval  # X2/X1
    outcome: Outcome

    def text(self, names: Names) -> str:
        at = f"to {self.larger['world_size']}"
        if self.outcome == "stops":
            at = f"at {self.smaller['world_size']}"
        step = f"{self.smaller['world_size']} to {self.larger['world_size']} ranks"
        return f"{names.short(self.larger)} {at} ({step}: {times(self.gain)})"


def scaling(names: Names, rows: Sequence[Row], speeds: Mapping[str, Sample]) -> Iterator[Sentence]:
    """Of the measured rows of one group, series by series."""
    series = rivals.series(rows)
    told = [_decisive(one, speeds) for one in series]
    for outcome, title in _TITLES.items():
        found = [(s, of) for s, of in zip(told, series, strict=True) if s.outcome == outcome]
        if not found:
            continue
        found.sort(key=lambda one: -one[0].gain.centre)
        said = listed([step.text(names) for step, _ in found])
        rule = "" if outcome == "pays" else f" ({_RULE})"
        numbers = {str(step.larger["case_id"]): step.gain.centre for step, _ in found}
        ids = case_ids(row for _, of in found for row in of)
        yield Sentence("scaling", f"{title}{names.where}{rule}: {said}.", ids, numbers)
    for one in series:
        yield from _peak(names, one)
        yield from _odd(names, one, speeds)


def _decisive(rows: Sequence[Row], speeds: Mapping[str, Sample]) -> _Step:
    """The first step that surely does not pay, or else the first that is not told, or the last.

    Where a larger world pays all the same, the step to it counts: one slow size stops nothing.
    """
    steps = [
        _lasting(_step(smaller, larger, speeds), rows, speeds)
        for smaller, larger in pairwise(rows)
        if larger["world_size"] > smaller["world_size"]
    ]
    for outcome in ("stops", "unsure", "few"):
        for step in steps:
            if step.outcome == outcome:
                return step
    return steps[-1]


def _lasting(step: _Step, rows: Sequence[Row], speeds: Mapping[str, Sample]) -> _Step:
    """A step, or the next that pays from the same world where this one does not."""
    if step.outcome != "stops":
        return step
    larger = [row for row in rows if row["world_size"] > step.smaller["world_size"]]
    others = (_step(step.smaller, row, speeds) for row in larger)
    return next((other for other in others if other.outcome == "pays"), step)


def _step(smaller: Row, larger: Row, speeds: Mapping[str, Sample]) -> _Step:
    gain = log_ratio_interval(speeds[larger["case_id"]], speeds[smaller["case_id"]])
    wanted = 1 + PAYS * (larger["world_size"] / smaller["world_size"] - 1)
    outcome: Outcome = "unsure"
    if not known(gain):
        outcome = "few"
    elif gain.low >= wanted:
        outcome = "pays"
    elif gain.high < wanted:
        outcome = "stops"
    return _Step(smaller, larger, gain, outcome)


def _peak(names: Names, rows: Sequence[Row]) -> Iterator[Sentence]:
    """Where throughput peaks by the law of both regimes, where it may speak of that."""
    for fit in laws.fits(rows):
        peak = fit.peak()
        if peak is None:
            continue
        worst = max(map(abs, fit.residuals))
        text = (
            f"{names.short(rows[0])}{names.where} peaks near {bounded(peak)} ranks by {fit.law} "
            f"through {len(fit.worlds)} sizes, which misses none by more than {worst:.1%}"
        )
        if peak.high > fit.speaks_to:
            text += f"; beyond {fit.speaks_to} ranks it says nothing, and noise could explain the "
            text += "peak"
        numbers = {"peak": peak.centre, "residual": worst}
        yield Sentence("scaling", f"{text}.", case_ids(rows), numbers)


def _odd(names: Names, rows: Sequence[Row], speeds: Mapping[str, Sample]) -> Iterator[Sentence]:
    for odd, other, _ in laws.odd_rows(rows):
        small, large = sorted((odd, other), key=lambda row: int(row["world_size"]))
        gain = log_ratio_interval(speeds[large["case_id"]], speeds[small["case_id"]])
        ranks = large["world_size"] / small["world_size"]
        rise = Interval(*(value / ranks - 1 for value in gain))
        text = (
            f"Odd: throughput per rank rises by {percent(rise)} between {names.full(odd)} and "
            f"world {other['world_size']}, which more ranks cannot do: look at the first."
        )
        yield Sentence("odd", text, case_ids((odd, other)), {"rise": rise.centre})
