"""Memory of ranks in results: the fullest of each number, what adds up, and what ran short."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from merging import ENVIRONMENT
from run_files import make_case, rank_lines, write_plan, write_repeat

from andromeda_scale.analysis.results import Results
from andromeda_scale.merge import merge_run
from andromeda_scale.report.device_tables import memory_table, phases_table
from andromeda_scale.report.scaling import scaling_table
from andromeda_scale.report.tables import as_text

GIB = 2**30
ON_GPU = {"parameters": 2 * GIB, "gradients": GIB}
ON_HOST = {"master": 4 * GIB, "optimizer_state": 8 * GIB}


def device(**values: int) -> dict[str, Any]:
    common = {
        "peak_allocated_bytes": 60 * GIB,
        "peak_reserved_bytes": 70 * GIB,
        "retries": 0,
        "ooms": 0,
        "outside_allocator_bytes": GIB,
        "capacity_bytes": 80 * GIB,
    }
    return common | values


def gpu_run(directory: Path, devices: list[Any], inspected: Any, **describe: Any) -> Results:
    """One launch of as many GPU ranks as there are `devices`."""
    case = make_case("zero2", len(devices))
    write_plan(directory, [case], repeats=1)
    lines = []
    for rank, of_device in enumerate(devices):
        for line in rank_lines(rank, [0.1] * 4, describe=describe):
            if line["kind"] == "start":
                line["device_uuid"] = f"GPU-{rank}"
            if line.get("phase") == "measure":
                host = {"rss_bytes": 3, "uss_bytes": 2, "peak_rss_bytes": 4 + rank}
                line["values"]["memory"] |= {"device": of_device, "host": host}
                lines.append(line | {"phase": "inspect", "values": {"memory": inspected}})
            lines.append(line)
    write_repeat(directory, case, 0, lines, environment=ENVIRONMENT)
    return merge_run(directory)


INSPECTED = {
    "peak_allocated_bytes": 59 * GIB,
    "parts": {"start": 3 * GIB, "forward": 50 * GIB, "backward": 59 * GIB, "update": 5 * GIB},
    "communication_buffers": {"reduce_buckets": 2 * GIB, "gathered": GIB},
}
OFFLOADED: dict[str, Any] = {
    "bytes": ON_GPU | ON_HOST,
    "bytes_on": {"cuda": 3 * GIB, "cpu": 12 * GIB},
}


def test_activations_are_the_rest_of_the_peak_on_the_device(tmp_path: Path) -> None:
    results = gpu_run(tmp_path, [device(), device()], INSPECTED, **OFFLOADED)
    (case,) = results.cases.to_dict("records")
    assert case["state_bytes"] == 15 * GIB
    assert case["communication_buffers_bytes"] == 3 * GIB
    assert (
        case["activation_bytes"] == (60 - 3 - 3) * GIB
    )  # what lies on the host is not in the peak
    assert case["peak_update_bytes"] == 5 * GIB
    assert results.ranks["optimizer_state_bytes"].tolist() == [8 * GIB] * 2
    assert case["peak_rss_bytes"] == 5  # of the fuller rank


def test_a_device_nearly_full_is_a_footnote_that_names_row_and_ranks(tmp_path: Path) -> None:
    full = device(peak_reserved_bytes=77 * GIB, retries=3)
    results = gpu_run(tmp_path, [device(), full, full], INSPECTED, **OFFLOADED)
    said = "ranks 1-2 reserved 96.2% of the device, ranks 1-2 retried 3 allocations"
    assert list(results.cases["memory_pressure"]) == [said]
    for table in (scaling_table(results), memory_table(results)):
        (note,) = [note for note in table.notes if note.startswith("memory nearly full")]
        assert note.endswith(f"zero2 at world 3: {said}")
    calm = gpu_run(tmp_path / "calm", [device()], INSPECTED)
    assert not any("nearly full" in note for note in scaling_table(calm).notes)


def test_the_memory_table_has_a_row_a_case_and_every_number_in_its_frame(tmp_path: Path) -> None:
    table = memory_table(gpu_run(tmp_path, [device()], INSPECTED, **OFFLOADED))
    text = as_text(table, 160)
    for part in ("15.00 GiB", "3.00 GiB", "54.00 GiB", "60.00 GiB r0", "70.00 GiB"):
        assert part in text
    assert "too narrow" in as_text(table, 90)
    (row,) = table.to_frame().to_dict("records")
    assert row["outside_allocator_bytes"] == GIB
    assert row["alloc_retries"] == 0


@pytest.mark.parametrize(
    "inspected",
    [
        {},
        {"error": "RuntimeError: no"},
        {"parts": 3, "communication_buffers": [1], "peak_allocated_bytes": -1},
        {"parts": {"forward": "x"}, "communication_buffers": {"buckets": math.nan}},
    ],
)
def test_what_a_rank_does_not_say_is_empty(tmp_path: Path, inspected: Any) -> None:
    results = gpu_run(tmp_path, [None, device()], inspected, bytes="?", bytes_on=[1])
    (case,) = results.cases.to_dict("records")
    assert case["status"] == "ok"
    assert math.isnan(case["activation_bytes"])
    assert math.isnan(case["peak_forward_bytes"])
    assert case["memory_pressure"] == ""
    assert len(memory_table(results).cells()) == len(phases_table(results).cells()) == 1


def with_parts(directory: Path, parts: Any) -> Results:
    """One rank whose profiled steps take 0.2 s."""
    case = make_case("ddp", 1)
    write_plan(directory, [case], repeats=1)
    lines = rank_lines(0, [0.1] * 4, compute_s=[0.1] * 8)
    for line in lines:
        if line.get("phase") == "profile":
            line["values"]["communication"]["parts"] = parts
    write_repeat(directory, case, 0, lines, environment=ENVIRONMENT)
    return merge_run(directory)


def test_the_residual_is_the_step_less_its_parts(tmp_path: Path) -> None:
    parts = {"forward_s": [0.05] * 8, "backward_s": [0.1] * 8, "data_s": [0.03] * 8}
    results = with_parts(tmp_path, parts)
    (case,) = results.cases.to_dict("records")
    assert case["residual_s"] == pytest.approx(0.02)
    assert case["data_part_s"] == pytest.approx(0.03)
    assert math.isnan(case["optimizer_s"])  # no such part: empty, not zero
    (cells,) = phases_table(results).cells()
    assert "20.00 (10.0%)" in cells
    assert any("ddp at world 1: 10.0%" in note for note in scaling_table(results).notes)


def test_parts_that_overlap_have_no_residual(tmp_path: Path) -> None:
    parts = {"forward_s": [0.3] * 8, "backward_s": [0.3] * 8}  # of steps of 0.2 s
    (case,) = with_parts(tmp_path, parts).cases.to_dict("records")
    assert math.isnan(case["residual_s"])


@pytest.mark.parametrize("parts", [None, {}, [], {"forward_s": [1, None]}])
def test_without_parts_there_is_no_residual_to_complain_of(tmp_path: Path, parts: Any) -> None:
    results = with_parts(tmp_path, parts)
    assert list(results.cases["status"]) == ["ok"]
    assert not any("none of its parts" in note for note in scaling_table(results).notes)
