"""The steps of a repeat as the job saw them: the raw series behind a step time. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from andromeda_scale.analysis.results import typed
from andromeda_scale.contracts.records import Phase, RepeatRecord
from andromeda_scale.merge.values import series_of

COLUMNS: dict[str, str] = {
    "case_id": "str",
    "repeat": "int64",
    "phase": "str",  # warmup or measure
    "step": "int64",  # from 0 in the warm-up, on through the measured window
    "step_time_s": "float64",  # max over ranks
}
_PHASES: tuple[Phase, ...] = ("warmup", "measure")

Series = dict[str, Any]  # COLUMNS, the last two as arrays


def repeat_steps(record: RepeatRecord, case_id: str, repeat: int) -> list[Series]:
    """Max over ranks of every step; nothing of a phase without the same steps of every rank."""
    found: list[Series] = []
    first = 0
    for phase in _PHASES:
        ranks = record.ranks.values()
        rows = [series_of(rank.values(phase, "step_time").get("step_ns")) for rank in ranks]
        known = [row for row in rows if row is not None]
        if not known or len(known) < len(rows) or len({len(row) for row in known}) > 1:
            continue
        step_s = np.maximum.reduce(known) / 1e9
        step = np.arange(first, first + len(step_s))
        head = {"case_id": case_id, "repeat": repeat, "phase": phase}
        found.append({**head, "step": step, "step_time_s": step_s})
        first += len(step_s)
    return found


def frame_of(series: Sequence[Series]) -> pd.DataFrame:
    """A row a step of all series."""
    if not series:
        return typed({}, COLUMNS)
    lengths = [len(one["step"]) for one in series]
    columns = {
        name: np.repeat([one[name] for one in series], lengths)
        if name in ("case_id", "repeat", "phase")
        else np.concatenate([one[name] for one in series])
        for name in COLUMNS
    }
    return typed(columns, COLUMNS)
