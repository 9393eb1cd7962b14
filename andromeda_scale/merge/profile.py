"""The numbers of a launch's profiled steps: where their seconds went, and how evenly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from andromeda_scale.analysis.balance import imbalance
from andromeda_scale.analysis.breakdown import PARTS, additive
from andromeda_scale.merge.ranks import RankTable

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
        **{name: float(table.frame[name].mean()) for name in _MEANS},
    }
    if "clock_ns" in profile:
        row["profile_clock_step_s"] = float(profile["clock_ns"].max(axis=0).mean()) / 1e9
    if len(table.frame) > 1:  # there is something to balance
        row |= imbalance(profile["compute_s"])
        row |= {name: float(table.frame[name].max()) for name in ("charged_s", "late_s")}
    return row
