"""Exposed communication as what a step costs less without any."""

from __future__ import annotations

from typing import Any

import numpy as np

from andromeda_scale.analysis.stats import mean_interval
from andromeda_scale.contracts.records import RankRecord, RepeatRecord
from andromeda_scale.merge.values import of_ranks, series_of, text

COLUMNS: dict[str, str] = {"exposed_method": "str"}  # whose exposed seconds the row has

SILENT_SHARE = 0.1  # of a step's bytes: more is no step without communication


def ablation_columns(
    record: RepeatRecord, world_size: int, problems: list[str], *, profiled: bool
) -> dict[str, Any]:
    """COLUMNS and metrics of one launch.

    Means over ranks, as exposed seconds are: where nobody waits for the slowest rank, what it is
    slower by is no communication. Blocks are compared in the order they ran, so that a drift of
    the machine cancels.
    """
    found = [record.ranks[rank].values("inspect", "ablation") for rank in sorted(record.ranks)]
    profiler = "profiler" if profiled else ""
    sides = []
    for name in ("full_s", "without_s"):
        series = [series_of(values.get(name)) for values in found]
        rows = [one for one in series if one is not None]
        if len(rows) < world_size or len({len(row) for row in rows}) > 1:
            return {"exposed_method": profiler}
        sides.append(np.mean(rows, axis=0))
    if len(sides[0]) != len(sides[1]):
        return {"exposed_method": profiler}
    if loud := [rank.rank for rank in record.ranks.values() if not _silent(rank)]:
        problems.append(
            f"ablation on {of_ranks(loud)}: steps without communication received over "
            f"{SILENT_SHARE:.0%} of the bytes of the others, and are not used"
        )
        return {"exposed_method": profiler}
    interval = mean_interval((sides[0] - sides[1]).tolist())
    return {
        "exposed_method": ", ".join(method for method in (profiler, "ablation") if method),
        "ablation_s": interval.centre,
        "ablation_error_s": (interval.high - interval.low) / 2,
        "contention_s": _contention(record),
    }


def _silent(rank: RankRecord) -> bool:
    """Whether so few bytes came as the steps claim; true where TCP carries none of the traffic."""
    values = rank.values("inspect", "ablation")
    full, without = (series_of(values.get(f"{name}_bytes")) for name in ("full", "without"))
    if full is None or without is None or text(rank.start, "device_uuid"):
        return True
    return bool(without.mean() <= SILENT_SHARE * full.mean())


def _contention(record: RepeatRecord) -> float | None:
    """Mean over ranks of compute in profiled steps, with less without communication."""
    found = []
    for rank in record.ranks.values():
        beside = series_of(rank.values("profile", "communication").get("compute_s"))
        alone = series_of(rank.values("inspect", "ablation").get("without_compute_s"))
        if beside is None or alone is None:
            return None
        found.append(float(np.mean(beside) - np.mean(alone)))
    return float(np.mean(found))
