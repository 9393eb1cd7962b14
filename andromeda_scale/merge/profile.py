"""The numbers of a launch's profiled steps: where their seconds went, and how evenly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from andromeda_scale.analysis.balance import imbalance
from andromeda_scale.analysis.breakdown import PARTS, additive, by_step
from andromeda_scale.merge.ranks import RankTable
from andromeda_scale.merge.values import most

_MEANS = (
    *PARTS,
    "data_part_s",
    "residual_s",
    "comm_wire_bytes",
    "comm_tcp_bytes",
    "comm_loopback_bytes",
)  # over ranks


def profile_columns(table: RankTable, step_time_s: float) -> dict[str, Any]:
    """METRICS of a launch whose profiled steps can be trusted."""
    profile = table.profile
    job = profile["step_s"].max(axis=0)
    row: dict[str, Any] = {
        "num_profile_steps": len(job),
        "profile_slowdown": float(np.median(job)) / step_time_s if step_time_s else math.nan,
        **additive(profile),
        "by_step": by_step(profile),
        **{name: _mean(table.columns[name]) for name in _MEANS},
    }
    if "clock_ns" in profile:
        row["profile_clock_step_s"] = float(profile["clock_ns"].max(axis=0).mean()) / 1e9
    if table.world_size > 1:  # there is something to balance
        row |= imbalance(profile["compute_s"])
        row |= {name: most(table.columns[name]) for name in ("charged_s", "late_s")}
    return row


def _mean(values: np.ndarray) -> float:
    """Of those that are there; NaN if none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
