"""Rows that do the same work spread in different ways: which of them differ beyond noise. No torch.

Rivals share all that `scaling.SAME` names but the strategy, its options and its driver. At one
world their launches ran in the same blocks of the plan, and are compared in pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from andromeda_scale.analysis.comparison import Ratio, compare_launches, compare_samples, jointly
from andromeda_scale.analysis.resampling import Series
from andromeda_scale.analysis.results import Results
from andromeda_scale.analysis.scaling import SPREAD, signature
from andromeda_scale.analysis.stats import Sample
from andromeda_scale.metrics import METRICS

Row = Mapping[str, Any]

# What a row of the front is good at, and whether more of it is better.
OBJECTIVES = {"tokens_per_s": True, "peak_memory_bytes": False, "joules_per_token": False}

_OF_STEPS = ("tokens_per_s", "tokens_per_s_per_gpu")


@dataclass(frozen=True)
class Standing:
    """One row against the best of its rivals."""

    row: Row
    ratio: Ratio  # by what factor the best is better: 1 or more


def samples_of(results: Results, name: str = "tokens_per_s") -> dict[str, Sample]:
    """One metric of every pooled launch, by case; absent values are left out.

    Throughput comes with the steps it was made of.
    """
    repeats = results.repeats
    if name not in repeats:  # tables of an older version
        return {}
    pooled = repeats[repeats["pooled"] & repeats[name].gt(0)]
    steps = _timed_steps(results.steps) if name in _OF_STEPS else {}
    found: dict[str, dict[int, float]] = {}
    for case_id, repeat, value in pooled[["case_id", "repeat", name]].itertuples(index=False):
        found.setdefault(case_id, {})[int(repeat)] = float(value)
    return {case_id: Sample(values, steps.get(case_id, {})) for case_id, values in found.items()}


def _timed_steps(steps: pd.DataFrame) -> dict[str, dict[int, Series]]:
    found: dict[str, dict[int, Series]] = {}
    if len(steps):
        timed = steps[steps["phase"].eq("measure")]
        for case_id, of_case in timed.groupby("case_id", sort=False):
            found[str(case_id)] = {
                int(str(repeat)): of["step_time_s"].to_numpy()
                for repeat, of in of_case.groupby("repeat", sort=False)
            }
    return found


def groups(rows: Sequence[Row], ignore: frozenset[str] = frozenset()) -> list[list[Row]]:
    """Measured rows by the work they do, in the order given; by keys of `ignore` it may differ."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if pd.notna(row["tokens_per_s"]):
            found.setdefault(signature(row, SPREAD | ignore), []).append(row)
    return list(found.values())


def by_world(rows: Sequence[Row]) -> dict[tuple[int, int], list[Row]]:
    """Rows by ranks and nodes, small worlds first."""
    found: dict[tuple[int, int], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["world_size"], row["nodes"])):
        found.setdefault((row["world_size"], row["nodes"]), []).append(row)
    return found


def series(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that differ by their world alone, small worlds first, where there are two or more."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["world_size"], row["nodes"])):
        found.setdefault(signature(row), []).append(row)
    return [one for one in found.values() if one[-1]["world_size"] > one[0]["world_size"]]


def standings(
    rows: Sequence[Row], launches: Mapping[str, Sample], name: str = "tokens_per_s"
) -> tuple[Row, list[Standing]]:
    """The best of rivals by a metric, and every other against it, the best of them first.

    They are judged together. `launches`: that metric of every launch. Pairs that find the other
    better, where launches of it failed, leave the two as independent samples.
    """
    more = METRICS[name].better == "higher"
    ranked = sorted(rows, key=lambda row: float(row[name]), reverse=more)
    best, others = ranked[0], ranked[1:]
    nothing = Sample({})
    mine = launches.get(best["case_id"], nothing)
    ratios = []
    for row in others:
        other = launches.get(row["case_id"], nothing)
        both = (mine, other) if more else (other, mine)
        ratio = compare_launches(*both)
        if mine.values.keys() != other.values.keys() and ratio.estimate.mean < 0:
            ratio = compare_samples(*both)
        ratios.append(ratio)
    judged = jointly(ratios, of_the_best=True)
    return best, [Standing(*one) for one in zip(others, judged, strict=True)]


def front(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Rows that no other beats in one of OBJECTIVES without being worse in another; and those
    objectives that all rows know."""
    names = [name for name in OBJECTIVES if all(pd.notna(row.get(name)) for row in rows)]

    def beats(other: Row, row: Row) -> bool:
        signs = [1 if OBJECTIVES[name] else -1 for name in names]
        gains = [s * (other[name] - row[name]) for s, name in zip(signs, names, strict=True)]
        return bool(min(gains) >= 0 and max(gains) > 0)

    kept = [row for row in rows if not any(beats(other, row) for other in rows)]
    return sorted(kept, key=lambda row: -float(row["tokens_per_s"])), names
