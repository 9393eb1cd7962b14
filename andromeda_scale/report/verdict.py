"""What a run answers, in words: every sentence from rows, with its interval. No torch.

`verdict` is a pure function of the results. A sentence names the rows it was made from and the
numbers it says; where there is no row there is no sentence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import pandas as pd

from andromeda_scale.analysis import laws, rivals
from andromeda_scale.analysis.losses import REMEDIES, largest_loss
from andromeda_scale.analysis.results import Results
from andromeda_scale.analysis.rivals import Row
from andromeda_scale.analysis.stats import Interval, Ratio, compare_launches, log_interval
from andromeda_scale.formats import rate, significant
from andromeda_scale.metrics import METRICS
from andromeda_scale.report.fairness import Fairness
from andromeda_scale.report.rows import arrange, case_name, has, label

Kind = Literal[
    "fastest",
    "cheapest",
    "front",
    "loss",
    "noise",
    "scaling",
    "odd",
    "refused",
    "nothing",
]
PAYS = 0.5  # of what the ranks before gave: less, and another rank does not pay
BILLION = 1e9  # tokens


@dataclass(frozen=True)
class Sentence:
    """One statement. `rows`: case_ids; `numbers`: what it says, by name, in data's units."""

    kind: Kind
    text: str
    rows: tuple[str, ...]
    numbers: Mapping[str, float] = field(default_factory=dict)


def verdict(results: Results) -> list[Sentence]:
    """The sentences of a run, in the order of `Kind` within each group of rows that do the same
    work; what cannot be compared last."""
    rows, axes = arrange(results.cases)
    return [*_Verdict(results, rows, axes).sentences()]


class _Verdict:
    def __init__(self, results: Results, rows: list[dict[str, Any]], axes: list[str]) -> None:
        self._rows = rows
        self._axes = axes
        self._repeats = results.repeats
        self._results = results
        self._speeds = rivals.samples_of(results)
        self._unfair = Fairness.of(results)
        self._marked = self._unfair.marks()

    def sentences(self) -> Iterator[Sentence]:
        measured = [row for row in self._rows if has(row, "tokens_per_s")]
        if not measured:
            yield self._nothing()
            return
        for rows in rivals.groups(measured):
            fair = [row for row in rows if row["case_id"] not in self._marked]
            if fair:
                yield from self._ranking(fair, all_=len(fair) == len(rows))
            for one in rivals.series(rows):
                yield self._scaling(one)
                yield from self._law(one)
                yield from self._odd(one)
        yield from self._refused(measured)

    def _ranking(self, fair: Sequence[Row], *, all_: bool) -> Iterator[Sentence]:
        fastest = max(fair, key=lambda row: float(row["tokens_per_s"]))
        here = [row for row in fair if _world(row) == _world(fastest)]
        yield self._fastest(fastest, here, "Fastest" if all_ else "Fastest of the rows ranked")
        yield from self._cheapest(fair)
        yield from self._front(here)
        yield from self._loss(fastest)
        for same in rivals.by_world(fair).values():
            yield from self._noise(same)

    def _nothing(self) -> Sentence:
        ids = tuple(row["case_id"] for row in self._rows)
        if not self._rows:
            return Sentence("nothing", "The plan holds no case.", ids)
        counts = pd.Series([row["status"] for row in self._rows]).value_counts()
        found = ", ".join(f"{status} x{number}" for status, number in counts.items())
        return Sentence("nothing", f"No case has been measured: {found}.", ids)

    def _fastest(self, fastest: Row, here: Sequence[Row], title: str) -> Sentence:
        _, others = rivals.standings(here, self._speeds)
        text = f"{title}: {self._name(fastest)}, {_throughput(fastest)}"
        numbers = {"tokens_per_s": float(fastest["tokens_per_s"])}
        ids = [fastest["case_id"]]
        if others:
            second = others[0]
            ids.append(second.row["case_id"])
            numbers["ratio"] = second.ratio.interval.centre
            text += f"; {_times(second.ratio.interval)} {label(second.row)}, the next there"
            if not second.slower:
                text += ", which noise could explain"
        unfit = self._unfit(fastest)
        if unfit:
            ids += [row["case_id"] for row in unfit]
            text += f"; does not fit there: {', '.join(label(row) for row in unfit)}"
        return Sentence("fastest", f"{text}.", tuple(ids), numbers)

    def _unfit(self, fastest: Row) -> list[Row]:
        """Rows of the same world and settings that had not enough memory."""
        return [
            row
            for row in self._rows
            if _world(row) == _world(fastest)
            and all(row[axis] == fastest[axis] for axis in self._axes)
            and (
                row["status"] == "oom" or (row["status"] == "skipped" and "memory" in row["cause"])
            )
        ]

    def _cheapest(self, rows: Sequence[Row]) -> Iterator[Sentence]:
        best = max(rows, key=lambda row: float(row["tokens_per_s_per_gpu"]))
        name = "tokens_per_s_per_gpu"
        cost = Interval(*(_hours(best[key]) for key in (name, f"{name}_high", f"{name}_low")))
        who = "GPU" if best["device"] == "cuda" else "rank"
        text = (
            f"Cheapest per token: {self._name(best)}, {_bounded(cost)} {who}-hours per 1e9 tokens"
        )
        yield Sentence("cheapest", f"{text}.", (best["case_id"],), {"hours": cost.centre})
        known = [row for row in rows if has(row, "joules_per_token")]
        if known:
            least = min(known, key=lambda row: float(row["joules_per_token"]))
            joules = self._interval(least, "joules_per_token")
            text = f"Least energy per token: {self._name(least)}, {_bounded(joules)} J/token."
            numbers = {"joules_per_token": joules.centre}
            yield Sentence("cheapest", text, (least["case_id"],), numbers)

    def _front(self, here: Sequence[Row]) -> Iterator[Sentence]:
        """Who is best at something, of rows that share a world; nothing without a choice."""
        kept, names = rivals.front(here)
        if len(here) < 2 or len(names) < 2:
            return
        words = ", ".join(_OBJECTIVES[name] for name in names)
        each = "; ".join(
            f"{label(row)} ({_throughput(row)}"
            + "".join(f", {METRICS[name].text(row[name])}{_UNITS[name]}" for name in names[1:])
            + ")"
            for row in kept
        )
        beaten = len(here) - len(kept)
        rest = f"; {beaten} more {'is' if beaten == 1 else 'are'} beaten in all" if beaten else ""
        text = f"Front of {words} at world {_world(here[0])[0]}: {each}{rest}."
        yield Sentence("front", text, tuple(row["case_id"] for row in kept))

    def _scaling(self, rows: Sequence[Row]) -> Sentence:
        """Up to where another rank pays, by what the added ranks give over what the first gave."""
        said, ids = "", tuple(row["case_id"] for row in rows)
        for smaller, larger in pairwise(rows):
            if larger["world_size"] == smaller["world_size"]:
                continue
            gain = self._marginal(smaller, larger)
            step = f"from {smaller['world_size']} to {larger['world_size']} ranks"
            said = f"{step} an added rank gives {_percent(gain)} of a rank before"
            if gain.centre < PAYS:
                doubt = "" if gain.high < PAYS else ", though noise could explain it"
                text = f"{label(rows[0])} stops paying at {smaller['world_size']}: {said}{doubt}."
                return Sentence("scaling", text, ids, {"marginal": gain.centre})
        text = (
            f"{label(rows[0])} pays up to {rows[-1]['world_size']}, the largest measured: {said}."
        )
        return Sentence("scaling", text, ids, {"marginal": gain.centre})

    def _law(self, rows: Sequence[Row]) -> Iterator[Sentence]:
        """Where throughput peaks by the law of both regimes, where it may speak of that."""
        for fit in laws.fits(rows):
            peak = fit.peak()
            if peak is None:
                continue
            worst = max(map(abs, fit.residuals))
            kappa = fit.parameters["kappa"]
            doubt = "" if kappa.low > 0 else "; noise could explain that it has one"
            text = (
                f"{label(rows[0])} peaks near {peak:.0f} ranks by {fit.law} through "
                f"{len(fit.worlds)} sizes, which misses none by more than {worst:.1%}{doubt}."
            )
            ids = tuple(row["case_id"] for row in rows)
            yield Sentence("scaling", text, ids, {"peak": peak, "residual": worst})

    def _odd(self, rows: Sequence[Row]) -> Iterator[Sentence]:
        for odd, other, rise in laws.odd_rows(rows):
            text = (
                f"Odd: throughput per rank rises by {rise:.1%} between {self._name(odd)} and "
                f"world {other['world_size']}, which more ranks cannot do: look at the first."
            )
            ids = (odd["case_id"], other["case_id"])
            yield Sentence("odd", text, ids, {"rise": rise})

    def _marginal(self, smaller: Row, larger: Row) -> Interval:
        """(X2/X1 - 1) / (n2/n1 - 1)."""
        ratio = self._ratio(larger, smaller).interval
        added = larger["world_size"] / smaller["world_size"] - 1
        return Interval(*((value - 1) / added for value in ratio))

    def _loss(self, row: Row) -> Iterator[Sentence]:
        mine = self._repeats[self._repeats["case_id"].eq(row["case_id"]) & self._repeats["pooled"]]
        found = largest_loss(mine)
        if found is None:
            return
        name, share = found
        text = (
            f"Largest loss of {self._name(row)}: {name}, {_percent(share)} of a profiled step; "
            f"usually mended by {REMEDIES[name]}."
        )
        yield Sentence("loss", text, (row["case_id"],), {"share": share.centre})

    def _noise(self, same: Sequence[Row]) -> Iterator[Sentence]:
        """Rivals that launches cannot tell from the fastest at a world."""
        best, others = rivals.standings(same, self._speeds)
        near = [one for one in others if not one.slower and one.ratio.known]
        unknown = [one.row for one in others if not one.ratio.known]
        if near:
            each = "; ".join(f"{label(one.row)} ({_times(one.ratio.interval)})" for one in near)
            text = f"Not to be told from {self._name(best)} in this noise: {each}."
            ids = (best["case_id"], *(one.row["case_id"] for one in near))
            yield Sentence("noise", text, ids)
        if unknown:
            each = ", ".join(label(row) for row in unknown)
            text = (
                f"Too few launches to tell {each} from {self._name(best)}: "
                "set measure.repeats to 3 or more."
            )
            ids = (best["case_id"], *(row["case_id"] for row in unknown))
            yield Sentence("noise", text, ids)

    def _refused(self, measured: Sequence[Row]) -> Iterator[Sentence]:
        for row in measured:
            if has(row, "not_compared"):
                text = f"{self._name(row)} has no efficiency against {row['not_compared']}."
                yield Sentence("refused", text, (row["case_id"],))
        for _, line in self._unfair.unfair.iterrows():
            text = (
                f"Not ranked: rows of world {line['worlds']} differ in {line['fact']} "
                f"({line['values']}): {line['effect']}."
            )
            yield Sentence("refused", text, tuple(line["case_ids"].split()))

    def _name(self, row: Row) -> str:
        return case_name(row, self._axes)

    def _ratio(self, row: Row, other: Row) -> Ratio:
        return compare_launches(self._speeds[row["case_id"]], self._speeds[other["case_id"]])

    def _interval(self, row: Row, name: str) -> Interval:
        return log_interval(rivals.samples_of(self._results, name)[row["case_id"]])


_OBJECTIVES = {
    "tokens_per_s": "throughput",
    "peak_memory_bytes": "memory",
    "joules_per_token": "energy",
}
_UNITS = {"peak_memory_bytes": "", "joules_per_token": " J/token"}


def _world(row: Row) -> tuple[int, int]:
    return row["world_size"], row["nodes"]


def _throughput(row: Row) -> str:
    text = f"{rate(row['tokens_per_s'])} tokens/s"
    if not has(row, "tokens_per_s_low"):
        return text
    return f"{text} [{rate(row['tokens_per_s_low'])}, {rate(row['tokens_per_s_high'])}]"


def _hours(per_s: float) -> float:
    return BILLION / per_s / 3600


def _bounded(interval: Interval) -> str:
    """A value with its interval, where there is one."""
    if interval.low != interval.low:
        return significant(interval.centre)
    centre, low, high = map(significant, interval)
    return f"{centre} [{low}, {high}]"


def _times(interval: Interval) -> str:
    if interval.low != interval.low:
        return f"{interval.centre:.3f}x"
    return f"{interval.centre:.3f}x [{interval.low:.3f}, {interval.high:.3f}]"


def _percent(interval: Interval) -> str:
    if interval.low != interval.low:
        return f"{interval.centre:.0%}"
    return f"{interval.centre:.1%} [{interval.low:.1%}, {interval.high:.1%}]"
