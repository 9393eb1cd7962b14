"""steps.parquet: the raw step times of a launch, as the job saw them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from merging import change_line, even_run, place_of

from andromeda_scale.analysis.results import FILES
from andromeda_scale.merge import load_results, merge_run, write


def test_a_step_is_as_long_as_on_its_slowest_rank_and_warm_up_is_told_apart(tmp_path: Path) -> None:
    directory, case = even_run(tmp_path, world=2, repeats=1)

    def slower(line: dict) -> dict:
        line["values"]["step_time"]["step_ns"][2] = 300_000_000
        return line

    change_line(place_of(directory, case, 0), 1, "measure", slower)
    steps = merge_run(directory).steps
    assert list(steps["phase"]) == ["warmup"] * 2 + ["measure"] * 4
    assert list(steps["step"]) == list(range(6))
    assert list(steps["step_time_s"]) == pytest.approx([0.2, 0.1, 0.1, 0.1, 0.3, 0.1])


def test_steps_outlive_the_records_in_their_file(tmp_path: Path) -> None:
    directory, _ = even_run(tmp_path / "run", repeats=2)
    results = merge_run(directory)
    copy = tmp_path / "copy"
    copy.mkdir()
    write(results, copy)
    assert load_results(copy).steps.equals(results.steps)
    (copy / FILES["steps"]).unlink()  # an earlier version wrote none
    assert load_results(copy).steps.empty


def test_a_rank_that_wrote_fewer_steps_leaves_the_phase_out(tmp_path: Path) -> None:
    directory, case = even_run(tmp_path, world=2, repeats=1)

    def shorter(line: dict) -> dict:
        line["values"]["step_time"]["step_ns"].pop()
        return line

    change_line(place_of(directory, case, 0), 1, "measure", shorter)
    assert set(merge_run(directory).steps["phase"]) == {"warmup"}


def test_the_last_words_of_a_rank_that_failed_are_in_its_repeats_row(tmp_path: Path) -> None:
    directory, case = even_run(tmp_path, repeats=1)
    status = {"v": 1, "status": "crashed", "stderr_tail": ["Traceback", "KeyError: 'x'"]}
    (place_of(directory, case, 0) / "status.json").write_text(json.dumps(status))
    assert list(merge_run(directory).repeats["stderr_tail"]) == ["Traceback\nKeyError: 'x'"]
