"""Exposed communication by two methods: what a row says it has."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from merging import ENVIRONMENT
from run_files import make_case, rank_lines, write_plan, write_repeat

from andromeda_scale.merge import merge_run
from andromeda_scale.report.scaling import scaling_table

FULL = [[0.1, 0.2, 0.1], [0.12, 0.1, 0.1]]  # of two ranks; means: 0.11, 0.15, 0.1
WITHOUT = [[0.1, 0.1, 0.05], [0.11, 0.19, 0.06]]  # 0.105, 0.145, 0.055


def merged(directory: Path, *found: Any, compute_s: list[float] | None = None) -> Any:
    """Two ranks; `found`: what the collector wrote on each."""
    case = make_case("ddp", 2)
    write_plan(directory, [case], 1)
    lines: list[dict[str, Any]] = []
    for rank, values in enumerate(found):
        *rest, ended = rank_lines(rank, [0.1] * 4, compute_s=compute_s)
        head = {"kind": "phase", "rank": rank, "phase": "inspect", "start_s": 4.0, "end_s": 5.0}
        lines += [*rest, {**head, "values": {"ablation": values}}, ended]
    write_repeat(directory, case, 0, lines, environment=ENVIRONMENT)
    return merge_run(directory)


def values(rank: int) -> dict[str, Any]:
    found = {"order": "ABBAAB", "full_s": FULL[rank], "without_s": WITHOUT[rank]}
    return {**found, "without_compute_s": [0.08, 0.1 - rank / 100]}


def test_ablation_is_the_difference_of_the_ranks_mean_blocks(tmp_path: Path) -> None:
    results = merged(tmp_path, values(0), values(1), compute_s=[0.1] * 20)
    (row,) = results.cases.to_dict("records")
    assert row["ablation_s"] == pytest.approx((0.005 + 0.005 + 0.045) / 3)
    # s = 0.023094 of three differences, t(0.975, 2) = 4.3027
    assert row["ablation_error_s"] == pytest.approx(4.302653 * 0.0230940 / math.sqrt(3), rel=1e-5)
    assert row["exposed_method"] == "profiler, ablation"
    notes = "\n".join(scaling_table(results).notes)
    assert "steps less steps without communication: ddp at world 2: 18.33 +- 57.37 ms" in notes
    # compute 0.1 on both, without communication 0.09 and 0.085 on the mean
    assert row["contention_s"] == pytest.approx((0.01 + 0.015) / 2)
    assert "(12.50 ms of it compute that communication slows)" in notes


@pytest.mark.parametrize(
    "second", [None, {}, {"unavailable": "x"}, {"full_s": [1.0], "without_s": [1.0]}, {"full_s": 3}]
)
def test_a_rank_without_blocks_leaves_the_profiler_alone(tmp_path: Path, second: Any) -> None:
    (row,) = merged(tmp_path, values(0), second, compute_s=[0.1] * 20).cases.to_dict("records")
    assert math.isnan(row["ablation_s"])
    assert row["exposed_method"] == "profiler"


def test_without_a_profile_the_ablation_stands_alone(tmp_path: Path) -> None:
    (row,) = merged(tmp_path, values(0), values(1)).cases.to_dict("records")
    assert row["exposed_method"] == "ablation"
    assert row["ablation_s"] == pytest.approx(0.055 / 3)
    assert math.isnan(row["contention_s"])


@pytest.mark.parametrize(("without", "used"), [(1e3, True), (9e5, False)])
def test_steps_that_still_communicate_are_no_ablation(
    without: float, used: bool, tmp_path: Path
) -> None:
    counted = {"full_bytes": [1e6, 1e6, 1e6], "without_bytes": [without] * 3}
    results = merged(tmp_path, values(0) | counted, values(1), compute_s=[0.1] * 20)
    (row,) = results.cases.to_dict("records")
    assert math.isnan(row["ablation_s"]) is not used
    assert row["exposed_method"] == ("profiler, ablation" if used else "profiler")
    named = any("ablation on rank 0: steps without" in problem for problem in results.problems)
    assert named is not used


def test_launches_that_differ_make_the_error_of_an_ablation(tmp_path: Path) -> None:
    case = make_case("ddp", 2)
    write_plan(tmp_path, [case], 3)
    for repeat, exposed_s in enumerate((0.01, 0.03, 0.05)):
        found = {"full_s": [0.1 + exposed_s] * 3, "without_s": [0.1, 0.1, 0.1001]}
        lines: list[dict[str, Any]] = []
        for rank in (0, 1):
            *rest, ended = rank_lines(rank, [0.1] * 4)
            head = {"kind": "phase", "rank": rank, "phase": "inspect", "start_s": 4.0, "end_s": 5.0}
            lines += [*rest, {**head, "values": {"ablation": found}}, ended]
        write_repeat(tmp_path, case, repeat, lines, environment=ENVIRONMENT)
    results = merge_run(tmp_path)
    (row,) = results.cases.to_dict("records")
    # s = 0.02 of three launches, t(0.975, 2) = 4.3027; within each the blocks differ by 0.1 ms
    assert row["ablation_error_s"] == pytest.approx(4.302653 * 0.02 / math.sqrt(3), rel=1e-5)
    assert results.repeats["ablation_error_s"].max() < 2e-4
