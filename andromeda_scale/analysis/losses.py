"""What costs a case most of its step, and what usually mends it. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from andromeda_scale.analysis.stats import Interval

# Classes of a profiled step that are no compute, by the words of the tables.
_SHARES = {
    "transfer": "exposed_transfer_share",
    "wait": "exposed_wait_share",
    "data": "data_share",
    "host": "host_share",
    "skew": "end_skew_share",
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


def largest_loss(row: Mapping[str, Any]) -> tuple[str, Interval] | None:
    """(a key of REMEDIES, its share of the profiled step); None without a profile.

    `row`: of results.parquet.
    """
    shares = {name: row.get(key, math.nan) for name, key in _SHARES.items()}
    known = {name: float(share) for name, share in shares.items() if share == share}
    if not known:
        return None
    name = max(known, key=lambda key: known[key])
    ends = (float(row.get(f"{_SHARES[name]}_{end}", math.nan)) for end in ("low", "high"))
    return name, Interval(known[name], *ends)
