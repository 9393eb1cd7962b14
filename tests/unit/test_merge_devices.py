"""GPUs as their node's agent sampled them, within the measured window of each rank."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from merging import ENVIRONMENT, case_row
from run_files import make_case, rank_lines, write_plan, write_repeat

from andromeda_scale.merge import merge_run
from andromeda_scale.report.scaling import scaling_table

SW_POWER_CAP, GPU_IDLE, HW_THERMAL = 0x04, 0x01, 0x40  # nvml.h, nvmlClocksEventReasons


def gpu_run(directory: Path, system: Any) -> Path:
    """One launch of two GPU ranks that measured from 100.0 s to 100.4 s of their node's clock."""
    case = make_case("ddp", 2)
    write_plan(directory, [case], repeats=1)
    lines = [line for rank in range(2) for line in rank_lines(rank, [0.1] * 4)]
    for line in lines:
        if line["kind"] == "start":
            line["device_uuid"] = f"GPU-{line['rank']}"
        if line.get("phase") == "measure":
            line["values"]["step_time"]["start_s"] = 100.0
    node = {"kind": "node", "rank": None, "values": {"system": system}}
    write_repeat(directory, case, 0, [node, *lines], environment=ENVIRONMENT)
    return directory


def sampled(throttle_reasons: list[Any]) -> dict[str, Any]:
    """Samples a second before, three within, and a second after the window."""
    gpu = {
        "name": "a GPU",
        "sm_clock_mhz": [300, 1700, 1800, 1900, 300],
        "temperature_c": [30, 60, 70, 65, 90],
        "power_w": [50.0, 300.0, 400.0, None, 50.0],
        "throttle_reasons": throttle_reasons,
    }
    times = [0.0, 1.1, 1.2, 1.3, 2.4]
    return {"start_s": 99.0, "t_s": times, "gpus": {"GPU-0": gpu}}


def test_only_samples_within_the_window_count(tmp_path: Path) -> None:
    reasons = [HW_THERMAL, GPU_IDLE, SW_POWER_CAP | GPU_IDLE, 0, HW_THERMAL]
    ranks = merge_run(gpu_run(tmp_path, sampled(reasons))).ranks
    first, second = ranks.to_dict("records")
    assert first["device_uuid"] == "GPU-0"
    assert (first["sm_clock_mhz"], first["temperature_c"]) == (1800, 70)
    assert first["sampled_power_w"] == pytest.approx(350)
    assert first["throttled"] == "power cap"
    assert (second["device_uuid"], second["throttled"]) == ("GPU-1", "")
    assert math.isnan(second["sm_clock_mhz"])


def test_a_throttled_rank_is_a_footnote(tmp_path: Path) -> None:
    results = merge_run(gpu_run(tmp_path, sampled([0, HW_THERMAL, SW_POWER_CAP, 0, 0])))
    notes = scaling_table(results).notes
    assert (
        "throttled within the timed window: ddp at world 2: rank 0: power cap, hardware thermal "
        "slowdown"
    ) in notes
    assert case_row(tmp_path)["throttled"] == "rank 0: power cap, hardware thermal slowdown"


@pytest.mark.parametrize(
    "system",
    [
        None,
        {"unavailable": "no driver"},
        {"start_s": 5e5, "t_s": [0.0], "gpus": {"GPU-0": {"throttle_reasons": [4]}}},
        {"t_s": [100.1], "gpus": {"GPU-0": {"throttle_reasons": [4]}}},
        {"start_s": 99.0, "t_s": [1.1, 1.2], "gpus": {"GPU-0": {"throttle_reasons": [4]}}},
        {"start_s": 99.0, "t_s": [1.1], "gpus": {"GPU-0": {"throttle_reasons": [10**400]}}},
        {"start_s": 99.0, "t_s": "x", "gpus": 3},
        {"start_s": 99.0, "t_s": [1.1], "gpus": {"GPU-0": {"throttle_reasons": [math.nan]}}},
    ],
)
def test_samples_that_say_nothing_of_the_window_throttle_nobody(
    tmp_path: Path, system: Any
) -> None:
    results = merge_run(gpu_run(tmp_path, system))
    assert list(results.cases["status"]) == ["ok"]
    assert set(results.ranks["throttled"]) == {""}
