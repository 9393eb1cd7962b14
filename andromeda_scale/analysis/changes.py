"""Two runs of the same cases: what changed around them, and which case took longer. No torch.

Cases are matched by their configuration, which their id is a hash of; code, libraries and hardware
are what may have changed, and are named. Where each run searched for a micro batch and found
another, the two are one case as it was asked, and the sizes are among what changed. The time of a
case in B over that in A is its ratio of throughputs; launches are paired by number where both saw
the same batches.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from andromeda_scale.analysis.comparison import (
    FALSE_ALARMS,
    Ratio,
    compare_launches,
    compare_samples,
    holm,
)
from andromeda_scale.analysis.fairness_rules import rule_of
from andromeda_scale.analysis.results import Results, has_failures, rows_of
from andromeda_scale.analysis.rivals import samples_of
from andromeda_scale.analysis.stats import Sample
from andromeda_scale.suite import settings

Row = Mapping[str, Any]
Word = Literal[
    "slower", "faster", "same", "not resolved", "failing", "broken", "mended", "not measured"
]
SAME = 0.02  # where the whole interval is within this, there is no difference to speak of

_BATCHES = "data.fingerprint"
_SETTINGS = ("threads_per_rank", "micro_batch_size", "grad_accum", "global_batch_size")
# Facts that say no more than the fingerprints do, or are of the result and not of its making.
_NOT_CHANGES = ("hardware.", "software.", "loss_scale.skipped_steps")


@dataclass(frozen=True)
class Change:
    """One thing that is not as it was."""

    what: str
    before: str
    after: str
    case_ids: tuple[str, ...] = ()  # empty: of the whole run
    effect: str = ""


@dataclass(frozen=True)
class Matched:
    """A case of both runs. `ratio`: the time it takes in B over that in A; None: no two speeds."""

    before: Row
    after: Row
    ratio: Ratio | None
    word: Word


@dataclass(frozen=True)
class Changes:
    """Run B against run A."""

    system: list[Change]
    facts: list[Change]
    matched: list[Matched]
    only_before: list[Row]
    only_after: list[Row]
    silent: tuple[str, ...] = ()  # of A and B: who does not say what it ran on


def changes(before: Results, after: Results, tolerance: float = 0.0) -> Changes:
    """B against A, cases in A's order.

    A case is slower or faster where its difference is beyond chance (4 % for all cases together,
    Holm) and the ratio itself beyond `tolerance`; the same where the whole interval is within
    `tolerance` or SAME, the larger (equivalence); otherwise not resolved. One that is not slower is
    failing where launches of B failed and none of A did.
    """
    old, new = rows_of(before.cases), rows_of(after.cases)
    pairs = _pairs(old, new)
    in_old, in_new = ({pair[side]["case_id"] for pair in pairs} for side in (0, 1))
    prints = [_prints(before.repeats, in_old), _prints(after.repeats, in_new)]
    return Changes(
        _system(*prints),
        _facts(pairs),
        _matched(before, after, pairs, tolerance),
        [row for row in old if row["case_id"] not in in_old],
        [row for row in new if row["case_id"] not in in_new],
        tuple(name for name, found in zip("AB", prints, strict=True) if not found),
    )


def regressions(found: Changes) -> list[Matched]:
    """What a gate stops: cases that are slower, fail now and then, or are not measured any more."""
    return [one for one in found.matched if one.word in ("slower", "failing", "broken")]


def improvements(found: Changes) -> list[Matched]:
    """What a two-sided gate stops too: nobody expected it, so something else may have changed."""
    return [one for one in found.matched if one.word in ("faster", "mended")]


def _pairs(old: Sequence[Row], new: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Rows of one configuration, and then of one search for a micro batch."""
    same = {row["case_id"]: row for row in new}
    taken = {row["case_id"] for row in old if row["case_id"] in same}
    searched = {row.get("search_id"): row for row in new if row["case_id"] not in taken}
    found = ((row, same.get(row["case_id"]) or _asked_alike(row, searched)) for row in old)
    return [(mine, theirs) for mine, theirs in found if theirs is not None]


def _asked_alike(row: Row, searched: Mapping[Any, Row]) -> Row | None:
    return searched.get(row["search_id"]) if row.get("search_id") else None


def _system(old: Mapping[str, list[str]], new: Mapping[str, list[str]]) -> list[Change]:
    """Keys of the fingerprints that have other values, where both runs have some."""
    return [
        Change(key, " | ".join(old.get(key, ["-"])), " | ".join(new.get(key, ["-"])))
        for key in dict.fromkeys((*old, *new))
        if old and new and set(old.get(key, ())) != set(new.get(key, ()))
    ]


def _prints(repeats: pd.DataFrame, case_ids: Collection[str]) -> dict[str, list[str]]:
    """Every value of every key of the fingerprints of the nodes of a case's pooled launches; of all
    its launches where none was ok, for what changed may be what broke it."""
    of = repeats[repeats["case_id"].isin(case_ids)]
    measured = of.loc[of["pooled"], "case_id"]
    used = of[of["pooled"] | ~of["case_id"].isin(measured)]
    found: dict[str, list[str]] = {}
    for text in dict.fromkeys(line for one in used["fingerprint"] for line in one.splitlines()):
        for key, value in json.loads(text).items():
            values = found.setdefault(key, [])
            if str(value) not in values:
                values.append(str(value))
    return found


def _facts(pairs: Sequence[tuple[Row, Row]]) -> list[Change]:
    """What ranks read back otherwise than before; what changes the arithmetic or work first."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for before, after in pairs:
        old, new = (json.loads(row.get("facts") or "{}") for row in (before, after))
        if not old or not new:  # a case that was not measured read nothing back
            continue
        for name in _SETTINGS:
            old[name], new[name] = (int(row[name]) for row in (before, after))
        for fact in dict.fromkeys((*old, *new)):
            values = tuple(settings.text(one.get(fact)) for one in (old, new))
            if values[0] != values[1] and not fact.startswith(_NOT_CHANGES):
                found.setdefault((fact, *values), []).append(after["case_id"])
    made = [
        Change(fact, old, new, tuple(case_ids), rule_of(fact).effect)
        for (fact, old, new), case_ids in found.items()
    ]
    return sorted(made, key=lambda change: rule_of(change.what).flag == "differs")


def _matched(
    before: Results, after: Results, pairs: Sequence[tuple[Row, Row]], tolerance: float
) -> list[Matched]:
    nothing = Sample({})
    old, new = samples_of(before), samples_of(after)
    ratios: list[Ratio | None] = []
    for mine, theirs in pairs:
        both = old.get(mine["case_id"], nothing), new.get(theirs["case_id"], nothing)
        compare = compare_launches if _same_batches(mine, theirs) else compare_samples
        ratios.append(compare(*both) if all(map(len, both)) else None)
    known = [index for index, ratio in enumerate(ratios) if ratio is not None and ratio.known]
    chances = [ratio.chance for ratio in ratios if ratio is not None and ratio.known]
    passed = holm(chances, FALSE_ALARMS)
    beyond = {index for index, found in zip(known, passed, strict=True) if found}
    return [
        Matched(mine, theirs, ratio, _word(mine, theirs, ratio, index in beyond, tolerance))
        for index, ((mine, theirs), ratio) in enumerate(zip(pairs, ratios, strict=True))
    ]


def _same_batches(before: Row, after: Row) -> bool:
    prints = [json.loads(row.get("facts") or "{}").get(_BATCHES) for row in (before, after)]
    return prints[0] is not None and prints[0] == prints[1]


def _word(before: Row, after: Row, ratio: Ratio | None, beyond: bool, tolerance: float) -> Word:
    if ratio is None:
        measured = [pd.notna(row["tokens_per_s"]) for row in (before, after)]
        return "broken" if measured[0] else "mended" if measured[1] else "not measured"
    centre, low, high = ratio.interval
    if beyond and centre > 1 + tolerance:
        return "slower"
    if has_failures(after) and not has_failures(before):
        return "failing"
    if beyond and centre < 1 - tolerance:
        return "faster"
    margin = max(tolerance, SAME)
    if low >= 1 - margin and high <= 1 + margin:
        return "same"
    return "not resolved"
