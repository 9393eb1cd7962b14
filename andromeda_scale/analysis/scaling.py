"""Speed-up and efficiency against a named base, refused across unlike configurations. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from andromeda_scale.analysis.results import rows_of, typed_rows
from andromeda_scale.analysis.stats import NOTHING, Interval, Sample, log_ratio_interval

# Keys that must be equal for two rows to differ by their world alone.
SAME = (
    "regime",
    "strategy",
    "options",
    "driver",
    "model",
    "model_config",
    "mode",
    "seq_len",
    "precision",
    "other",
    "parity_kind",  # what compares itself with a reference does more
    "device_name",
    "threads_per_rank",
    "software",
)
# Weak scaling holds the work of a rank, strong scaling the work of all ranks.
SAME_BY_REGIME = {
    "weak": ("micro_batch_size", "grad_accum"),
    "strong": ("global_batch_size",),
}
# A common base may be another strategy: only how the model is spread may differ.
SPREAD = frozenset({"strategy", "options", "driver"})


@dataclass(frozen=True)
class Launches:
    """What each pooled launch of a case measured, two rates."""

    tokens_per_s: Sample
    steps_per_s: Sample  # steps / window


@dataclass(frozen=True)
class Scaling:
    """One row against its base."""

    speedup: Interval
    efficiency: Interval


@dataclass(frozen=True)
class Refused:
    """Why two rows cannot be compared: the keys that differ, with both values."""

    differing: dict[str, tuple[Any, Any]]

    def __str__(self) -> str:
        return ", ".join(
            f"{key} differs" if key in ("model_config", "other") else f"{key} {mine} against {base}"
            for key, (mine, base) in self.differing.items()
        )


def keys(regime: str, *, ignore: frozenset[str] = frozenset()) -> list[str]:
    """The keys that must be equal under a regime."""
    return [key for key in (*SAME, *SAME_BY_REGIME.get(regime, ())) if key not in ignore]


def differing(
    row: Mapping[str, Any], base: Mapping[str, Any], *, ignore: frozenset[str] = frozenset()
) -> dict[str, tuple[Any, Any]]:
    """Keys whose values forbid an efficiency of `row` against `base`, with both values.

    A key that neither table has is not judged; one that only one of them has differs. Rows that
    do not say their regime are taken as weak scaling.
    """
    found = {}
    for key in keys(str(row.get("regime", "weak")), ignore=ignore):
        mine, other = _value(row, key), _value(base, key)
        if mine != other:
            found[key] = (mine, other)
    return found


def signature(row: Mapping[str, Any], ignore: frozenset[str] = frozenset()) -> tuple[Any, ...]:
    """Equal for two rows exactly if `differing` finds nothing."""
    return tuple(_value(row, key) for key in keys(row["regime"], ignore=ignore))


def _value(row: Mapping[str, Any], key: str) -> Any:
    value = row.get(key)
    return None if value is None or value != value else value  # NaN is an absent value


def compare(
    row: Mapping[str, Any],
    base: Mapping[str, Any],
    row_launches: Launches,
    base_launches: Launches,
    *,
    ignore: frozenset[str] = frozenset(),
) -> Scaling | Refused:
    """Speed-up and efficiency of one case against another, with intervals over launches.

    S = X(n)/X(n0); weak E = (X(n)/n) / (X(n0)/n0), X = tokens_per_s; strong
    E = n0 t(n0) / (n t(n)), t = window / steps.
    """
    unlike = differing(row, base, ignore=ignore)
    if unlike:
        return Refused(unlike)
    speedup = log_ratio_interval(row_launches.tokens_per_s, base_launches.tokens_per_s)
    gain = speedup
    if row.get("regime") == "strong":
        gain = log_ratio_interval(row_launches.steps_per_s, base_launches.steps_per_s)
    ranks = row["world_size"] / base["world_size"]
    return Scaling(speedup, Interval(*(value / ranks for value in gain)))


def karp_flatt(speedup: Interval, ranks: float) -> Interval:
    """The serial share that a speed-up on `ranks` times the base's ranks implies, under strong
    scaling: e = (1/S - 1/p) / (1 - 1/p) (Karp and Flatt 1990)."""

    def share(s: float) -> float:
        return (1 / s - 1 / ranks) / (1 - 1 / ranks) if s > 0 else math.nan

    return Interval(share(speedup.centre), share(speedup.high), share(speedup.low))


COLUMNS: dict[str, str] = {
    "speedup": "float64",
    "speedup_low": "float64",
    "speedup_high": "float64",
    "efficiency": "float64",
    "efficiency_low": "float64",
    "efficiency_high": "float64",
    "base_case_id": "str",
    "base_world_size": "Int64",
    "base_tokens_per_s": "float64",
    "base_tokens_per_s_per_gpu": "float64",
    "karp_flatt": "float64",
    "karp_flatt_low": "float64",
    "karp_flatt_high": "float64",
    "efficiency_common": "float64",
    "efficiency_common_low": "float64",
    "efficiency_common_high": "float64",
    "common_base_case_id": "str",
    "not_compared": "str",  # why a row is its own base, where a smaller world was measured
}


def add_scaling(cases: pd.DataFrame, launches: Mapping[str, Launches]) -> pd.DataFrame:
    """`cases` with COLUMNS: each measured row against the smallest measured world of its group.

    A group holds the rows that differ by their world alone. A row that is its own base although
    the same strategy was measured at a smaller world says in `not_compared` which keys forbid it.
    """
    measured = cases[cases["tokens_per_s"].notna()]
    rows = rows_of(measured.sort_values(["world_size", "nodes"], kind="stable"))
    alone: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    common: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        alone.setdefault(signature(row), []).append(row)
        common.setdefault(signature(row, SPREAD), []).append(row)
    found = {}
    for row in rows:
        base = alone[signature(row)][0]
        best = _best_at_smallest_world(common[signature(row, SPREAD)])
        found[row["case_id"]] = _columns(row, base, best, launches)
        if base is row:
            found[row["case_id"]]["not_compared"] = _refusal(row, rows)
    columns = typed_rows([found.get(name, {}) for name in cases["case_id"]], COLUMNS)
    return pd.concat([cases, columns.set_index(cases.index)], axis=1)


def _best_at_smallest_world(rows: list[dict[str, Any]]) -> dict[str, Any]:
    smallest = [row for row in rows if row["world_size"] == rows[0]["world_size"]]
    return max(smallest, key=lambda row: float(row["tokens_per_s_per_gpu"]))


def _columns(
    row: dict[str, Any],
    base: dict[str, Any],
    common: dict[str, Any],
    launches: Mapping[str, Launches],
) -> dict[str, Any]:
    """Values of COLUMNS for one row against its base and the best of any strategy."""
    mine = launches[row["case_id"]]
    result = compare(row, base, mine, launches[base["case_id"]])
    shared = compare(row, common, mine, launches[common["case_id"]], ignore=SPREAD)
    assert isinstance(result, Scaling)
    assert isinstance(shared, Scaling)
    known = row["case_id"] != base["case_id"]  # against itself there is nothing to estimate
    apart = row["case_id"] != common["case_id"]
    serial = NOTHING
    if row["regime"] == "strong" and row["world_size"] > base["world_size"]:
        serial = karp_flatt(result.speedup, row["world_size"] / base["world_size"])
    return {
        "speedup": result.speedup.centre,
        "speedup_low": result.speedup.low if known else None,
        "speedup_high": result.speedup.high if known else None,
        "efficiency": result.efficiency.centre,
        "efficiency_low": result.efficiency.low if known else None,
        "efficiency_high": result.efficiency.high if known else None,
        "base_case_id": base["case_id"],
        "base_world_size": base["world_size"],
        "base_tokens_per_s": base["tokens_per_s"],
        "base_tokens_per_s_per_gpu": base["tokens_per_s_per_gpu"],
        "karp_flatt": serial.centre,
        "karp_flatt_low": serial.low,
        "karp_flatt_high": serial.high,
        "efficiency_common": shared.efficiency.centre,
        "efficiency_common_low": shared.efficiency.low if apart else None,
        "efficiency_common_high": shared.efficiency.high if apart else None,
        "common_base_case_id": common["case_id"],
    }


def _refusal(row: dict[str, Any], rows: list[dict[str, Any]]) -> str | None:
    """Why the smaller world of the same strategy and model that differs in the fewest keys, of
    several the nearest, is not this row's base."""
    smaller = [
        (differing(row, other), other)
        for other in rows
        if other["world_size"] < row["world_size"]
        and all(other[key] == row[key] for key in ("strategy", "driver", "model"))
    ]
    if not smaller:
        return None
    unlike, other = min(smaller, key=lambda pair: (len(pair[0]), -pair[1]["world_size"]))
    return f"world {other['world_size']}: {Refused(unlike)}"
