"""What costs a case most of its step, by launch, and what usually mends it. No torch."""

from __future__ import annotations

import numpy as np
import pandas as pd

from andromeda_scale.analysis.stats import Interval, mean_interval

# Classes of a profiled step that are no compute, by the words of the tables.
_CLASSES = {
    "transfer": "exposed_transfer_s",
    "wait": "exposed_wait_s",
    "data": "data_s",
    "host": "host_s",
    "skew": "end_skew_s",
}
REMEDIES = {
    "transfer": "more tokens per rank and step (micro_batch_size, grad_accum), buckets that "
    "overlap with backward, fewer nodes or a faster network",
    "wait": "the late rank that the table names, equal batches per rank, fewer and larger "
    "collectives",
    "data": "data.prefetch, or a faster source",
    "host": "train.compile, or more tokens per rank and step, so that Python hides behind compute",
    "skew": "equal batches per rank, and nothing else on the slow rank's host",
}


def largest_loss(launches: pd.DataFrame) -> tuple[str, Interval] | None:
    """(a key of REMEDIES, its share of the profiled step over launches); None without a profile.

    `launches`: rows of repeats.parquet. The interval's ends are clipped to 0..1.
    """
    profiled = launches[launches["profile_step_s"].gt(0)]
    if profiled.empty:
        return None
    shares = {
        name: profiled[column] / profiled["profile_step_s"] for name, column in _CLASSES.items()
    }
    name = max(shares, key=lambda key: float(shares[key].mean()))
    centre, low, high = np.clip(mean_interval(list(shares[name])), 0.0, 1.0)
    return name, Interval(float(centre), float(low), float(high))
