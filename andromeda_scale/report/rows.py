"""The rows of a table: which settings tell them apart, their order, their labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from andromeda_scale.analysis.results import rows_of
from andromeda_scale.analysis.stats import Interval
from andromeda_scale.suite import settings
from andromeda_scale.suite.world import written

Row = Mapping[str, Any]

# Settings that get a column of their own where they tell rows of one strategy and world apart.
_SETTINGS = (
    "driver",
    "model",
    "regime",
    "mode",
    "seq_len",
    "micro_batch_size",
    "grad_accum",
    "precision",
    "threads_per_rank",
    "parity_kind",
)


def has(row: Row, name: str) -> bool:
    """Whether a row has a value."""
    value = row.get(name)
    return not (value == "" or bool(pd.isna(value)))


def is_base(row: Row) -> bool:
    """Whether others are measured against this row, and it against itself."""
    return has(row, "base_case_id") and bool(row["base_case_id"] == row["case_id"])


def has_base(row: Row) -> bool:
    """Whether a smaller world of the same was measured, even one it may not be compared with."""
    return (has(row, "base_case_id") and not is_base(row)) or has(row, "not_compared")


def world(row: Row) -> str:
    """Ranks of a row: 8, or 2x8 on two nodes."""
    return written(row["nodes"], row["ranks_per_node"])


def label(row: Row) -> str:
    """A strategy with its options."""
    return f"{row['strategy']} {row['options']}".strip()


def setting_words(row: Row, axes: Iterable[str]) -> list[str]:
    """Settings in words, the last part of their key before each."""
    return [f"{axis.rpartition('.')[2]} {row[axis]}" for axis in axes]


def case_name(row: Row, axes: Iterable[str]) -> str:
    """A row in words: strategy, settings, world."""
    settings = "".join(f", {one}" for one in setting_words(row, axes))
    nodes = f" on {row['nodes']} nodes" if row["nodes"] > 1 else ""
    return f"{label(row)}{settings} at world {row['world_size']}{nodes}"


def interval_of(row: Row, name: str) -> Interval:
    """A column of a row with its ends, NaN where it has none."""
    ends = (row[key] if has(row, key) else math.nan for key in (f"{name}_low", f"{name}_high"))
    return Interval(float(row[name]), *map(float, ends))


def failure(row: Row) -> str:
    """What became of a row's repeats, and why."""
    missing = f" (no end record: {row['missing_ranks']})" if has(row, "missing_ranks") else ""
    return f"{row['statuses']}: {row['cause']}{missing}"


def arrange(cases: pd.DataFrame) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows in reading order, and the settings (dotted keys) that tell them apart.

    Rows of one strategy and setting stand together (`group`), smaller worlds first; a row that
    needs a footnote about its failures has its number in `mark`, rows of equal text the same.
    """
    rows = [settings.others(row) | row for row in rows_of(cases)]
    keys = dict.fromkeys((*_SETTINGS, *(key for row in rows for key in settings.others(row))))
    found = _found(rows)
    axes = [key for key in keys if key not in found and _tells_apart(rows, key)]
    groups: dict[tuple[str, ...], int] = {}
    for row in rows:
        for axis in axes:
            row.setdefault(axis, settings.default(axis))
        signature = (label(row), *(str(row[axis]) for axis in axes))
        row["group"] = groups.setdefault(signature, len(groups))
    rows.sort(key=lambda row: (row["group"], row["world_size"], row["nodes"]))
    marks: dict[str, int] = {}
    for row in rows:
        if row["cause"]:
            row["mark"] = marks.setdefault(failure(row), len(marks) + 1)
    return rows, axes


def _found(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    """Keys that are results of these rows and no settings: of a micro batch that each found."""
    if not all(has(row, "micro_batch_asked") for row in rows):
        return ()
    strong = all(row["regime"] == "strong" for row in rows)
    return ("micro_batch_size", "grad_accum") if strong else ("micro_batch_size",)


def _tells_apart(rows: list[dict[str, Any]], key: str) -> bool:
    found: dict[tuple[Any, ...], set[str]] = {}
    for row in rows:
        where = (label(row), row["nodes"], row["world_size"])
        found.setdefault(where, set()).add(str(row.get(key)))
    return any(len(values) > 1 for values in found.values())
