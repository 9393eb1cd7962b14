"""What the profiler says of ranks that are late, that are silent and that cannot record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
from group import Group, Line, read_lines, tiny_case
from profiled_cases import CLASSES, PROFILED, communication

from andromeda_scale.analysis.blame import MIN_STEPS, blame, lateness
from andromeda_scale.analysis.breakdown import SERIES

RunCase = Callable[..., list[list[Line]]]

LATE_S = 0.06


def run_slow(run_case: RunCase, kind: str) -> list[dict[str, Any]]:
    """What two ranks of ddp found when rank 1 was late by LATE_S in every step."""
    planted = [{"kind": kind, "rank": 1, "delay_s": LATE_S}]
    settings = PROFILED | {"measure": {"steps": 1, "profile_steps": MIN_STEPS}}
    return [
        communication(lines) for lines in run_case(tiny_case("ddp", faults=planted, **settings), 2)
    ]


def blamed(*ranks: dict[str, Any]) -> tuple[int, str, str]:
    """The one rank that the records of all ranks blame."""
    series = {name: np.array([found[name] for found in ranks]) for name in (*SERIES, "charged_s")}
    (one,) = blame(series, None).blamed
    assert one.late_s == pytest.approx(np.median(lateness(series)[one.rank]))
    return one.rank, one.kind, one.cause


def test_planted_compute_is_compute_there_and_waiting_elsewhere(run_case: RunCase) -> None:
    fast, slow = run_slow(run_case, "compute")
    median = {k: np.median(slow[k]) - np.median(fast[k]) for k in CLASSES}
    assert 0.6 * LATE_S < median["compute_s"] < 1.6 * LATE_S
    assert 0.6 * LATE_S < np.median(fast["exposed_wait_s"]) < 1.6 * LATE_S
    assert np.median(slow["exposed_wait_s"]) < 0.3 * LATE_S
    assert blamed(fast, slow) == (1, "persistent", "compute")


def test_a_planted_sleep_is_host_time_there_and_waiting_elsewhere(run_case: RunCase) -> None:
    fast, slow = run_slow(run_case, "host")
    median = {k: np.median(slow[k]) - np.median(fast[k]) for k in CLASSES}
    assert abs(median["compute_s"]) < 0.3 * LATE_S
    assert 0.6 * LATE_S < median["host_s"] < 1.6 * LATE_S
    assert 0.6 * LATE_S < np.median(fast["exposed_wait_s"]) < 1.6 * LATE_S
    assert blamed(fast, slow) == (1, "persistent", "host")


def test_ranks_that_never_communicate_are_an_error_not_a_zero(group: Group) -> None:
    specs = group.specs(tiny_case("ddp", **PROFILED), 2)
    group.run(planted.silent, [(spec,) for spec in specs])
    for spec in specs:
        assert "no collective" in communication(read_lines(Path(spec.record_path)))["error"]


def test_a_rank_that_cannot_record_is_named_and_holds_up_no_other(group: Group) -> None:
    specs = group.specs(tiny_case("ddp", **PROFILED), 2)
    group.run(planted.blind, [(spec,) for spec in specs])
    for spec in specs:
        said = communication(read_lines(Path(spec.record_path)))["error"]
        assert said == "rank 1: cannot record: PermissionError('/proc/net/tcp')"


def test_a_flight_recorder_that_is_too_small_is_named(run_case: RunCase) -> None:
    lines = run_case(tiny_case("ddp", **PROFILED, env={"TORCH_FR_BUFFER_SIZE": "2"}), 2)
    assert "TORCH_FR_BUFFER_SIZE" in communication(lines[0])["error"]
