"""Where a step's seconds go: disjoint classes that add up to the step. No torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# What the communication collector writes per step and rank. The classes of a step are disjoint.
CLASSES = ("compute_s", "exposed_wait_s", "exposed_transfer_s", "data_s", "host_s")
PARTS = ("forward_s", "backward_s", "optimizer_s")  # of the program; they contain communication
SERIES = ("step_s", *CLASSES, "comm_total_s", "comm_exposed_s", "comm_overlapped_s")


def additive(series: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Means over ranks and steps of every class, from (ranks, steps) seconds by name of SERIES.

    compute + exposed_wait + exposed_transfer + data + host + end_skew = profile_step, where
    profile_step is the mean over steps of the longest rank of that step.
    """
    longest = series["step_s"].max(axis=0)
    profile_step_s = float(longest.mean())
    means = {name: float(series[name].mean()) for name in SERIES if name != "step_s"}
    return means | {
        "profile_step_s": profile_step_s,
        "end_skew_s": float((longest - series["step_s"]).mean()),
        "comm_exposed_share": means["comm_exposed_s"] / profile_step_s,
    }
