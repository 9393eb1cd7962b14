"""Whom the others waited for: the verdict of each launch, with place and state of the device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from andromeda_scale.analysis.blame import CAUSES, Verdict, blame, of_case
from andromeda_scale.hardware import calibration
from andromeda_scale.merge.ranks import RankTable
from andromeda_scale.merge.values import Columns, number

Row = dict[str, Any]

# Of the blamed rank's GPU: column -> the rank's, from the samples of its measured window.
READINGS = {
    "blamed_clock_mhz": "sm_clock_mhz",
    "blamed_temperature_c": "temperature_c",
    "blamed_power_w": "sampled_power_w",
}
COLUMNS: dict[str, str] = {
    "slow_rank": "Int64",  # the one that the others wait for most; empty: nobody
    "blamed_rank": "Int64",  # the same, beside what is said of it
    "blamed_ranks": "str",  # all of them, the latest first
    "blame_kind": "str",  # persistent: late in most steps; transient: in some
    "blame_cause": "str",  # compute, host, data: what took longer than on ranks not blamed
    "blamed_host": "str",
    "blamed_device": "str",  # CUDA: its UUID
    "nobody_blamed": "str",  # why
}


@dataclass(frozen=True)
class LaunchBlame:
    """The verdict of a launch, what it was judged by, and host, device and READINGS by rank.

    `series` is None where there is nobody to blame, or nothing to judge by.
    """

    verdict: Verdict
    places: Mapping[int, Row]
    floor_s: float | None
    series: Mapping[str, np.ndarray] | None


def floor_s(calibration: Mapping[str, Any], device: str, world_size: int) -> float | None:
    """The null floor stored for this kind of device and world; None without one."""
    floors = calibration.get("floors")
    entry = floors.get(f"{device}/{world_size}") if isinstance(floors, dict) else None
    found = number(entry, "blame_s")
    return None if math.isnan(found) else found


def of_launch(run_dir: Path, device: str, table: RankTable) -> Row:
    """COLUMNS and metrics of one launch with profiled steps, and `blame`: its LaunchBlame."""
    floor = floor_s(calibration.read(run_dir / calibration.FILE), device, table.world_size)
    verdict = blame(table.profile, floor)
    series = _judged(table.profile)
    ranks = range(table.world_size) if series is not None else ()
    places = {rank: _place(table.columns, rank) for rank in ranks}
    found = LaunchBlame(verdict, places, floor, series)
    return {"blame": found, "blame_floor_s": floor, **_columns(verdict, [found])}


def case_columns(launches: Sequence[LaunchBlame]) -> Row:
    """COLUMNS and metrics of a case: what most of its launches say, or all of them together."""
    series = [one.series for one in launches if one.series is not None]
    together = series if len(series) == len(launches) else []
    found = of_case([one.verdict for one in launches], together, launches[0].floor_s)
    return _columns(found, launches)


def _judged(series: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """What `blame` reads of a launch of several ranks."""
    names = ("step_s", "charged_s", "exposed_wait_s", *CAUSES.values())
    if len(series["step_s"]) < 2 or any(name not in series for name in names):
        return None
    return {name: series[name] for name in names}


def _columns(verdict: Verdict, launches: Sequence[LaunchBlame]) -> Row:
    if not verdict.blamed:
        return {"nobody_blamed": verdict.why, **dict.fromkeys(("blame_s", *READINGS))}
    first = verdict.blamed[0]
    blaming = [one for one in launches if first.rank in (x.rank for x in one.verdict.blamed)]
    places = [one.places[first.rank] for one in blaming or launches]
    readings = {name: [place[name] for place in places] for name in READINGS}
    return {
        "slow_rank": first.rank,
        "blamed_rank": first.rank,
        "blamed_ranks": ", ".join(str(one.rank) for one in verdict.blamed),
        "blame_s": first.late_s,
        "blame_kind": first.kind,
        "blame_cause": first.cause,
        **{
            name: ", ".join(dict.fromkeys(place[name] for place in places if place[name]))
            for name in ("blamed_host", "blamed_device")
        },
        **{name: _mean(values) for name, values in readings.items()},
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _place(columns: Columns, rank: int) -> Row:
    readings = {name: float(columns[of][rank]) for name, of in READINGS.items()}
    return {
        "blamed_host": columns["host"][rank],
        "blamed_device": columns["device_uuid"][rank] or columns["device"][rank],
        **{name: None if math.isnan(value) else value for name, value in readings.items()},
    }
