"""Single values out of records, which may hold anything: what is not sound is absent. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

MAX_SHOWN = 24  # characters of a value that is not sound

Columns = dict[str, np.ndarray]  # a value a rank: texts, or floats that are NaN where absent


def series_of(value: Any) -> np.ndarray | None:
    """A list of finite numbers that are not negative, or None."""
    if not isinstance(value, list) or not value or not set(map(type, value)) <= {int, float}:
        return None
    try:
        series = np.asarray(value, dtype=float)
    except OverflowError:
        return None
    return series if 0 <= series.min() and series.max() < math.inf else None  # NaN is neither


def fault_of(value: Any) -> str:
    """What of a value `series_of` does not take."""
    if not isinstance(value, list) or not value:
        return "is no list of numbers"
    for index, one in enumerate(value):
        if series_of([one]) is None:
            shown = json.dumps(one)[:MAX_SHOWN]
            return f"{shown} at index {index} is no finite number from 0 on"
    return "has no series"


def number(values: Any, key: str) -> float:
    """A finite number that is not negative, or NaN."""
    value: Any = values.get(key) if isinstance(values, dict) else None
    if type(value) not in (int, float):
        return math.nan
    try:
        found = float(value)
    except OverflowError:
        return math.nan
    return found if math.isfinite(found) and found >= 0 else math.nan


def text(values: dict[str, Any], key: str) -> str:
    value = values.get(key)
    return value if isinstance(value, str) else ""


def integer(values: Any, key: str) -> int | None:
    value = values.get(key) if isinstance(values, dict) else None
    return value if type(value) is int and abs(value) < 2**31 else None


def most(values: np.ndarray) -> float:
    """The largest of those that are there; NaN if none is."""
    return float(np.fmax.reduce(values))


def of_ranks(ranks: Iterable[int]) -> str:
    """Ranks in ascending order as 'rank 3' or 'ranks 0-2, 7'."""
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    text = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)
    return f"{'rank' if text.isdecimal() else 'ranks'} {text}"
