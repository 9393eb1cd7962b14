"""One repeat's records -> a row per rank, and the raw series of all ranks as matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from andromeda_scale.analysis.blame import late_s, lateness
from andromeda_scale.analysis.breakdown import ADDED, AGREEMENT, PARTS, SERIES, contradiction
from andromeda_scale.analysis.results import typed
from andromeda_scale.contracts.planned import PlannedRepeat
from andromeda_scale.contracts.records import Phase, RankRecord, RepeatRecord
from andromeda_scale.merge import devices, memory
from andromeda_scale.merge.values import (
    Columns,
    fault_of,
    integer,
    number,
    of_ranks,
    series_of,
    text,
)

COLUMNS: dict[str, str] = {
    "case_id": "str",
    "repeat": "int64",
    "rank": "int64",
    "status": "str",  # of its end record; empty without one
    "host": "str",
    "node_rank": "Int64",
    "local_rank": "Int64",
    "world_size": "Int64",  # as the rank saw it
    "device": "str",  # as it names itself; "cpu" for a CPU
    "threads": "Int64",
    "step_time_s": "float64",  # median of the rank's own steps
    "window_s": "float64",
    "tokens": "float64",
    **{name: "float64" for name in SERIES if name != "step_s"},  # means over the steps
    "optimizer_compute_s": "float64",
    "charged_s": "float64",  # mean over the steps of what others waited for this rank
    "late_s": "float64",  # max(median, mean) over the steps of how late it was
    "profile_step_s": "float64",  # mean of the rank's own profiled steps
    **dict.fromkeys((*PARTS, "data_part_s", "residual_s"), "float64"),  # means over the steps
    "comm_wire_bytes": "float64",
    "comm_tcp_bytes": "float64",
    "comm_loopback_bytes": "float64",  # of rank 0: a rank's share of the device's
    **memory.RANK_COLUMNS,
    "setup_s": "float64",
    "first_step_s": "float64",
    "compile_cold_s": "float64",  # torch.compile, if some graph was not in its cache
    "compile_warm_s": "float64",  # torch.compile, if all were
    "graph_breaks": "Int64",  # of torch.compile; empty without it
    **devices.COLUMNS,
}


@dataclass
class RankTable:
    """All ranks of one repeat. Matrices are (ranks, steps) in rank order, seconds."""

    columns: Columns  # a value a rank of the world, also for ranks without a record
    step_s: np.ndarray | None  # phase measure
    profile: dict[str, np.ndarray]  # SERIES, ADDED; empty: none to trust
    unfinished: list[int]  # ranks without an end record
    files: list[str]  # of each rank, from the run's directory
    bad_steps: str  # what of the steps of phase measure is not sound, with its file; mostly empty
    problems: list[str] = field(default_factory=list)

    @property
    def world_size(self) -> int:
        return len(self.columns["rank"])


def rank_table(
    record: RepeatRecord, item: PlannedRepeat, world_size: int, mode: str = "forward"
) -> RankTable:
    """Gather what every rank wrote; what is not there stays empty and is named.

    Ranks whose steps are more than a forward (`mode`) have something to say to each other.
    """
    ranks = [record.ranks.get(rank, RankRecord(rank)) for rank in range(world_size)]
    problems: list[str] = []
    step_s = _matrix(ranks, "measure", "step_time", "step_ns", problems)
    if step_s is not None:
        step_s /= 1e9
    profile = _profile(ranks, problems)
    if profile and world_size > 1 and mode != "forward" and not profile["comm_total_s"].any():
        problems.append("no collective in any profiled step: the phase's numbers are not used")
        profile = {}
    columns: dict[str, Any] = {
        "case_id": [item.case_id] * world_size,
        "repeat": [item.repeat] * world_size,
        "rank": range(world_size),
        **_identity(ranks),
        **_scalars(ranks),
        **devices.device_columns(ranks, record.nodes),
    }
    if step_s is not None:
        columns["step_time_s"] = np.median(step_s, axis=1)
    for name, series in profile.items():
        columns["profile_step_s" if name == "step_s" else name] = series.mean(axis=1)
    if "charged_s" in profile:
        columns["late_s"] = late_s(lateness(profile))
    absent = [math.nan] * world_size
    found = {
        name: np.array(columns.get(name, absent), dtype=object if kind == "str" else float)
        for name, kind in COLUMNS.items()
    }
    unfinished = [rank.rank for rank in ranks if rank.end is None]
    files = [f"{item.folder}/{rank.file}" for rank in ranks]
    bad = _unsound(ranks, "measure", "step_time", "step_ns")
    bad_steps = f"{item.folder}/{bad}" if bad else ""
    return RankTable(found, step_s, profile, unfinished, files, bad_steps, problems)


def frame_of(tables: Sequence[Columns]) -> pd.DataFrame:
    """The ranks of all repeats, a row each."""
    if not tables:
        return typed({}, COLUMNS)
    return typed({n: np.concatenate([table[n] for table in tables]) for n in COLUMNS}, COLUMNS)


def _identity(ranks: list[RankRecord]) -> dict[str, list[Any]]:
    return {
        "status": [text(rank.end or {}, "status") for rank in ranks],
        "host": [text(rank.start, "host") for rank in ranks],
        "device": [text(rank.start, "device") for rank in ranks],
        "threads": [integer(rank.start, "threads") for rank in ranks],
        "node_rank": [integer(rank.start, "node_rank") for rank in ranks],
        "local_rank": [integer(rank.start, "local_rank") for rank in ranks],
        "world_size": [integer(rank.start, "world_size") for rank in ranks],
        "graph_breaks": [integer(rank.describe.get("compile"), "graph_breaks") for rank in ranks],
    }


def _scalars(ranks: list[RankRecord]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for rank in ranks:
        measured = rank.values("measure", "step_time")
        row = {
            "window_s": number(measured, "window_ns") / 1e9,
            "tokens": number(measured, "tokens"),
            **memory.of_rank(rank),
            "comm_wire_bytes": _wire_bytes(rank),
            **_counted_bytes(rank, len(ranks)),
            **{name: _part(rank, name) for name in PARTS},
            "data_part_s": _part(rank, "data_s"),
            "residual_s": _residual_s(rank),
            "setup_s": _seconds(rank, "setup"),
            "first_step_s": _first_step_s(rank),
            **_compile_s(rank),
        }
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return found


def _profile(ranks: list[RankRecord], problems: list[str]) -> dict[str, np.ndarray]:
    """The series of the communication collector; none if any rank's cannot be trusted."""
    errors: dict[str, list[int]] = {}
    for rank in ranks:
        values = rank.values("profile", "communication")
        for key in ("error", "unavailable"):
            if key in values:
                errors.setdefault(str(values[key]), []).append(rank.rank)
    problems += [f"communication on {of_ranks(found)}: {why}" for why, found in errors.items()]
    if errors:
        return {}
    profile: dict[str, np.ndarray] = {}
    for name in SERIES:
        series = _matrix(ranks, "profile", "communication", name, problems)
        if series is None or (profile and series.shape != profile["step_s"].shape):
            return {}
        profile[name] = series
    if wrong := contradiction(profile):
        problems.append(f"the numbers of phase profile are not used: {wrong}")
        return {}
    newer = {name: ("communication", name) for name in ADDED} | {
        "clock_ns": ("step_time", "step_ns")
    }
    for name, (collector, key) in newer.items():
        series = _matrix(ranks, "profile", collector, key, problems)
        if series is not None and series.shape == profile["step_s"].shape:
            profile[name] = series
    return profile


def _matrix(
    ranks: list[RankRecord], phase: Phase, collector: str, key: str, problems: list[str]
) -> np.ndarray | None:
    """(ranks, steps) of one series; None if no rank wrote it, or if not all wrote alike."""
    rows = [series_of(rank.values(phase, collector).get(key)) for rank in ranks]
    lengths: dict[int, list[int]] = {}
    for rank, row in zip(ranks, rows, strict=True):
        lengths.setdefault(0 if row is None else len(row), []).append(rank.rank)
    if len(lengths) == 1 and 0 not in lengths:
        return np.stack([row for row in rows if row is not None])
    if unsound := _unsound(ranks, phase, collector, key):
        problems.append(unsound)
    elif any(key in rank.values(phase, collector) for rank in ranks):
        found = "; ".join(f"{num} on {of_ranks(who)}" for num, who in sorted(lengths.items()))
        problems.append(f"{phase} {collector}.{key} has unequal numbers of steps: {found}")
    return None


def _unsound(ranks: list[RankRecord], phase: Phase, collector: str, key: str) -> str:
    """The first series that a rank wrote and that cannot be used: file, rank, and what of it; how
    many ranks more have such ones."""
    found = [
        f"{rank.file}: rank {rank.rank}: {phase} {collector}.{key}: {fault_of(values[key])}"
        for rank in ranks
        if key in (values := rank.values(phase, collector)) and series_of(values[key]) is None
    ]
    return found[0] + (f" (and {len(found) - 1} ranks more)" if found[1:] else "") if found else ""


def _part(rank: RankRecord, name: str) -> float:
    """Mean over the steps of one part of a step; NaN where it could not be timed apart."""
    parts = rank.values("profile", "communication").get("parts")
    series = series_of(parts.get(name)) if isinstance(parts, dict) else None
    return math.nan if series is None else float(series.mean())


def _residual_s(rank: RankRecord) -> float:
    """What of a mean step is in none of its parts; NaN where there are none, or they overlap."""
    values = rank.values("profile", "communication")
    parts, steps = values.get("parts"), series_of(values.get("step_s"))
    if not isinstance(parts, dict) or not parts or steps is None:
        return math.nan
    step_s = float(steps.mean())
    rest = step_s - sum(_part(rank, name) for name in parts)
    if rest < -AGREEMENT * step_s:
        return math.nan
    return 0.0 if rest < 0 else rest  # seconds of nanoseconds, rounded; NaN stays


def _wire_bytes(rank: RankRecord) -> float:
    """Bytes of all kinds of collectives of a step."""
    kinds = rank.values("profile", "communication").get("collectives")
    if not isinstance(kinds, list):
        return math.nan
    return sum((number(kind, "wire_bytes_per_step") for kind in kinds), start=0.0)


def _counted_bytes(rank: RankRecord, num_ranks: int) -> dict[str, float]:
    """What the kernel counted, per step and rank."""
    counted = rank.values("profile", "communication").get("counted")
    return {
        "comm_tcp_bytes": number(counted, "tcp_bytes_per_step"),
        "comm_loopback_bytes": number(counted, "loopback_bytes_per_step") / num_ranks,
    }


def _compile_s(rank: RankRecord) -> dict[str, float]:
    """Seconds of compilation, where they belong; NaN without one."""
    compiled = rank.describe.get("compile")
    found = number(compiled, "seconds")
    cold = isinstance(compiled, dict) and compiled.get("cold") is True
    return {
        "compile_cold_s": found if cold else math.nan,
        "compile_warm_s": math.nan if cold else found,
    }


def _first_step_s(rank: RankRecord) -> float:
    """The first step of the repeat, in whichever phase it ran."""
    for phase in ("warmup", "measure"):
        steps = rank.values(phase, "step_time").get("step_ns")
        if isinstance(steps, list) and steps:
            return number({"first": steps[0]}, "first") / 1e9
    return math.nan


def _seconds(rank: RankRecord, phase: Phase) -> float:
    line = rank.phases.get(phase)
    return number(line, "end_s") - number(line, "start_s")
