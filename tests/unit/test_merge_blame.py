"""The verdict on a rank, from records to rows: floor, place, state of its device, launches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from merging import ENVIRONMENT, change_line, place_of
from run_files import make_case, rank_lines, write_plan, write_repeat

from andromeda_scale.merge import merge_run

STEPS = 20


def late_run(directory: Path, *late: int | None, num_steps: int = STEPS) -> Any:
    """A launch per item: 50 ms a step are charged to that rank of two, which computes longer."""
    case = make_case("ddp", 2)
    write_plan(directory, [case], len(late))
    for repeat, slow in enumerate(late):
        lines = [
            line
            for rank in range(2)
            for line in rank_lines(
                rank,
                [0.1] * 4,
                compute_s=[0.14 if rank == slow else 0.1] * num_steps,
                charged_s=[0.05 if rank == slow else 0.0] * num_steps,
                host=f"node{repeat}",
            )
        ]
        write_repeat(directory, case, repeat, lines, environment=ENVIRONMENT)
    return case


def test_a_late_rank_is_a_launchs_and_its_cases(tmp_path: Path) -> None:
    late_run(tmp_path, 1, 1, None)
    results = merge_run(tmp_path)
    first, _, last = results.repeats.to_dict("records")
    assert (first["slow_rank"], first["blamed_rank"]) == (1, 1)
    assert first["blamed_ranks"] == "1"
    assert first["blame_s"] == pytest.approx(0.05 - 0.01)  # less its own waiting
    assert first["charged_s"] == pytest.approx(0.05)
    assert first["late_s"] == pytest.approx(0.04)
    assert (first["blame_kind"], first["blame_cause"]) == ("persistent", "compute")
    assert (first["blamed_host"], first["blamed_device"]) == ("node0", "cpu")
    assert pd.isna(first["blame_floor_s"])
    assert pd.isna(last["blamed_rank"])
    assert last["nobody_blamed"] == "nobody beyond chance"
    (case,) = results.cases.to_dict("records")
    assert (case["blamed_rank"], case["blamed_host"]) == (1, "node0, node1")
    assert case["blame_s"] == pytest.approx(0.04)
    assert case["nobody_blamed"] == ""
    ranks = results.ranks[results.ranks["repeat"] == 0]
    assert list(ranks["late_s"]) == pytest.approx([-0.01, 0.04])


def test_ranks_that_differ_between_launches_are_no_cases(tmp_path: Path) -> None:
    late_run(tmp_path, 0, 1)
    (case,) = merge_run(tmp_path).cases.to_dict("records")
    assert case["nobody_blamed"] == "nobody in most launches"
    assert pd.isna(case["blamed_rank"])
    assert pd.isna(case["blame_s"])


def test_the_null_floor_is_that_of_the_device_and_world(tmp_path: Path) -> None:
    late_run(tmp_path, 1)
    floors: dict[str, Any] = {"cpu/4": {"blame_s": 0.1}, "cpu/2": {"blame_s": 0.045}}
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps({"floors": floors}))
    (case,) = merge_run(tmp_path).cases.to_dict("records")
    assert case["nobody_blamed"] == "nobody beyond chance"
    assert case["blame_floor_s"] == 0.045
    file.write_text(json.dumps({"floors": floors | {"cpu/2": {"blame_s": 0.03}}}))
    assert merge_run(tmp_path).cases["blamed_rank"].iloc[0] == 1


def test_too_few_steps_blame_nobody_and_say_so(tmp_path: Path) -> None:
    late_run(tmp_path, 1, num_steps=19)
    (case,) = merge_run(tmp_path).cases.to_dict("records")
    assert case["nobody_blamed"] == "too few steps: 19, 20 are needed"


def test_short_launches_are_judged_together(tmp_path: Path) -> None:
    late_run(tmp_path / "same", 1, 1, 1, num_steps=8)
    (case,) = merge_run(tmp_path / "same").cases.to_dict("records")
    assert (case["blamed_rank"], case["blame_kind"]) == (1, "persistent")
    assert merge_run(tmp_path / "same").repeats["nobody_blamed"].str.startswith("too few").all()
    late_run(tmp_path / "moving", 0, 1, 0, 1, num_steps=8)
    (case,) = merge_run(tmp_path / "moving").cases.to_dict("records")
    assert case["nobody_blamed"] == "nobody beyond chance"
    late_run(tmp_path / "few", 1, 1, num_steps=8)
    (case,) = merge_run(tmp_path / "few").cases.to_dict("records")
    assert case["nobody_blamed"] == "too few steps: 16, 20 are needed"


@pytest.mark.parametrize("charged", [None, "x", [1.0], [-1.0] * STEPS, [float("nan")] * STEPS])
def test_charges_that_are_no_numbers_cost_the_verdict_alone(tmp_path: Path, charged: Any) -> None:
    case = late_run(tmp_path, 1)

    def damage(line: dict[str, Any]) -> dict[str, Any]:
        line["values"]["communication"]["charged_s"] = charged
        return line

    change_line(place_of(tmp_path, case, 0), 0, "profile", damage)
    results = merge_run(tmp_path)
    (row,) = results.cases.to_dict("records")
    assert row["nobody_blamed"] == "no charges recorded"
    assert row["comm_exposed_s"] == pytest.approx(0.04)
    assert any("communication.charged_s" in problem for problem in results.problems)


def test_the_blamed_gpus_state_is_that_of_its_measured_window(tmp_path: Path) -> None:
    case = late_run(tmp_path, 1)
    place = place_of(tmp_path, case, 0)

    def on_gpu(line: dict[str, Any]) -> dict[str, Any]:
        return line | {"device": "A GPU", "device_uuid": "GPU-7"}

    def timed(line: dict[str, Any]) -> dict[str, Any]:
        line["values"]["step_time"]["start_s"] = 100.9
        return line

    def sampled(line: dict[str, Any]) -> dict[str, Any]:
        gpu = {"sm_clock_mhz": [1, 900, 5], "temperature_c": [1, 50, 2], "power_w": [1, None, 3]}
        gpus = {"GPU-6": {}, "GPU-7": gpu}
        line["values"]["system"] = {"start_s": 100.0, "t_s": [0.0, 1.0, 2.0], "gpus": gpus}
        return line

    change_line(place, 1, "start", on_gpu)
    change_line(place, 1, "measure", timed)
    change_line(place, None, "node", sampled)
    (row,) = merge_run(tmp_path).cases.to_dict("records")
    assert row["blamed_device"] == "GPU-7"
    assert (row["blamed_clock_mhz"], row["blamed_temperature_c"]) == (900, 50)
    assert pd.isna(row["blamed_power_w"])
