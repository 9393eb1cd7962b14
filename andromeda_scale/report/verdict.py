"""What a run answers, in words: every sentence from rows, with its interval. No torch.

`verdict` is a pure function of the results. A sentence names the rows it was made from and the
numbers it says; where there is no row there is no sentence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from andromeda_scale.analysis import rivals
from andromeda_scale.analysis.results import Results
from andromeda_scale.analysis.rivals import Row
from andromeda_scale.report.fairness import Fairness
from andromeda_scale.report.levers import levers
from andromeda_scale.report.paying import scaling
from andromeda_scale.report.ranking import own_batches, ranking
from andromeda_scale.report.rows import arrange, case_name, has
from andromeda_scale.report.sentence import Names, Sentence, case_ids, listed

__all__ = ["verdict"]

_OF_BATCHES = ("global_batch_size", "data.fingerprint")  # what rows with a batch each differ in


def verdict(results: Results) -> list[Sentence]:
    """The sentences of a run: what each setting buys; a group of rows that do the same work after
    the other, who is best, what noise hides, what more ranks buy; what cannot be compared."""
    rows, axes = arrange(results.cases)
    measured = [row for row in rows if has(row, "tokens_per_s")]
    if not measured:
        return [_nothing(rows)]
    unfair = Fairness.of(results)
    speeds = rivals.samples_of(results)
    marked = unfair.marks()
    said = list(levers([row for row in measured if row["case_id"] not in marked], axes, speeds))
    groups = rivals.groups(measured)
    for group in groups:
        fair = [row for row in group if row["case_id"] not in marked]
        names = Names(group, axes)
        if fair:
            planned = [row for row in rows if names.shares(row)]
            best = ranking(results, names, fair, planned, all_=len(fair) == len(group))
            # A row without rivals is the best of nothing, unless there is no other row.
            alone = len(planned) == 1 and len(groups) > 1
            said += [one for one in best if one.kind == "loss" or not alone]
        said += scaling(names, group, speeds)
    unequal = unfair.case_ids(but=_OF_BATCHES)
    said += own_batches([row for row in rows if row["case_id"] not in unequal], axes, speeds)
    return [*said, *_refused(measured, axes), *_unranked(unfair)]


def _nothing(rows: Sequence[Row]) -> Sentence:
    if not rows:
        return Sentence("nothing", "The plan holds no case.")
    counts = pd.Series([row["status"] for row in rows]).value_counts()
    found = ", ".join(f"{status} x{number}" for status, number in counts.items())
    return Sentence("nothing", f"No case has been measured: {found}.", case_ids(rows))


def _refused(measured: Sequence[Row], axes: Sequence[str]) -> Iterator[Sentence]:
    """Rows without an efficiency, by what forbids it."""
    found: dict[str, list[Row]] = {}
    for row in measured:
        if has(row, "not_compared"):
            found.setdefault(row["not_compared"], []).append(row)
    for why, rows in found.items():
        each = listed([case_name(row, axes) for row in rows])
        yield Sentence("refused", f"No efficiency against {why}: {each}.", case_ids(rows))


def _unranked(unfair: Fairness) -> Iterator[Sentence]:
    """Rows that are not equal; what is true of several groups alike is said once."""
    keys = ["worlds", "fact", "values", "effect"]
    for (worlds, fact, values, effect), lines in unfair.unfair.groupby(keys, sort=False):
        ids = tuple(" ".join(lines["case_ids"]).split())
        text = f"Not ranked: rows of world {worlds} differ in {fact} ({values}): {effect}."
        yield Sentence("refused", text, ids)
