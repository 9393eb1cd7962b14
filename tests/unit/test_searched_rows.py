"""Rows whose batch a search found: how they are told apart, ranked and called fair."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from noisy_runs import noisy_run
from planning import plan
from run_files import make_case

from andromeda_scale.analysis.changes import changes
from andromeda_scale.analysis.results import rows_of
from andromeda_scale.launch.run_dir import RunDir
from andromeda_scale.merge import merge_run
from andromeda_scale.report.columns import SEARCHED
from andromeda_scale.report.fairness import Fairness
from andromeda_scale.report.rows import arrange
from andromeda_scale.report.scaling import scaling_table
from andromeda_scale.report.verdict import verdict

pytestmark = pytest.mark.slow  # most merge a run of their own


def run_that_found(path: Path, sizes: dict[str, tuple[int | None, float]], **settings: Any) -> Path:
    """A run of strategies with (the size that each found, seconds a step) at two ranks."""
    cases = [
        (make_case(name, 2, train={"micro_batch_size": size or 1}, **settings), step_s)
        for name, (size, step_s) in sizes.items()
    ]
    run = noisy_run(path, cases)
    made, items = RunDir.open(run).plan, []
    for item in made.repeats:
        strategy = made.cases[item.case_id].strategy.name
        found = sizes[strategy][0]
        skip = None if found else "its search for a micro batch is oom: not enough memory for it"
        items.append(item.model_copy(update={"search_id": strategy, "skip": skip}))
        tried = [{"size": found or 1, "status": "ok" if found else "oom"}]
        status = {"status": tried[0]["status"], "found": found, "margin": 0.1, "tried": tried}
        place = run / "searches" / strategy / "0"
        place.mkdir(parents=True, exist_ok=True)
        (place / "status.json").write_text(json.dumps(status))
        if skip:
            shutil.rmtree(run / "cases" / item.case_id, ignore_errors=True)
    (run / "plan.json").write_text(
        made.model_copy(update={"repeats": tuple(items)}).model_dump_json()
    )
    return run


def test_rows_that_found_a_batch_each_are_ranked_with_the_word_that_they_do_other_work(
    tmp_path: Path,
) -> None:
    sizes_found = {"ddp": (2, 0.1), "fsdp2": (5, 0.2), "hsdp": (None, 0.1)}
    results = merge_run(run_that_found(tmp_path / "run", sizes_found))
    (said,) = [one for one in verdict(results) if "each found" in one.text]
    assert said.text.startswith(
        "Fastest with the batch that each found, which is not the same work: fsdp2"
    )
    assert "at world 2 with micro_batch_size 5" in said.text
    assert re.search(r"; 1\.2\d+x \[1\.\d+, 1\.\d+\] ddp with 2, the next there", said.text)
    assert said.text.endswith("; does not fit there: hsdp.")
    (row,) = (row for row in scaling_table(results).rows if row["strategy"] == "hsdp")
    assert SEARCHED.text(row) == "auto"  # and not the size that it did not find


def test_a_size_that_a_search_lost_is_not_that_of_another_world(tmp_path: Path) -> None:
    run = run_that_found(tmp_path / "run", {"ddp": (2, 0.1), "fsdp2": (2, 0.1)})
    file = run / "searches" / "ddp" / "0" / "status.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"found": None}))
    assert "auto_worlds" not in scaling_table(merge_run(run)).to_markdown()


def test_rows_that_found_one_batch_are_the_fastest_with_that_batch(tmp_path: Path) -> None:
    sizes_found = {"ddp": (2, 0.1), "zero1": (2, 0.11), "fsdp2": (5, 0.2)}
    said = [one.text for one in verdict(merge_run(run_that_found(tmp_path / "run", sizes_found)))]
    assert said[0].startswith("Fastest with micro_batch_size 2: ddp at world 2")
    (own,) = [text for text in said if "each found" in text]
    assert "fsdp2 at world 2 with micro_batch_size 5" in own


def test_rows_that_are_not_equal_are_not_ranked_by_their_own_batches_either(
    tmp_path: Path,
) -> None:
    run = run_that_found(tmp_path / "run", {"ddp": (2, 0.1), "zero1": (2, 0.1), "fsdp2": (5, 0.2)})
    for file in run.glob("cases/*fsdp2*/*/node-0.jsonl"):
        text = file.read_text()
        file.write_text(text.replace('"reduction": "float32"', '"reduction": "bfloat16"'))
    said = [one.text for one in verdict(merge_run(run))]
    assert [text for text in said if "Not ranked" in text and "reduction" in text]
    assert not [text for text in said if "each found" in text]


def test_that_a_size_is_to_be_found_is_no_setting_that_tells_rows_apart(tmp_path: Path) -> None:
    axes = {"train.seq_len": [128, 256]}
    made = plan(train={"micro_batch_size": "auto"}, axes=axes, world=[1], parity="off")
    run = RunDir.create(tmp_path / "run", made, "", {"code": "x"})
    (item, other) = run.todo()
    run.finish(item, run.begin(item, 0), {"status": "ok", "found": 3, "tried": [], "margin": 0.1})
    run.finish(other, run.begin(other, 0), {"status": "oom", "cause": "x", "found": None})
    run.after_searches()
    skipped = tuple(
        i.model_copy(update={"search_id": None, "case_id": other.case_id}) if i.skip else i
        for i in run.plan.repeats  # as a case of which the closed form says that it does not fit
    )
    file = run.path / "plan.json"
    file.write_text(run.plan.model_copy(update={"repeats": skipped}).model_dump_json())
    rows, axes_found = arrange(merge_run(run.path).cases)
    assert axes_found == ["seq_len"]
    assert [row["micro_batch_asked"] for row in rows] == ["auto", "auto"]


def test_one_global_batch_in_other_pieces_is_fair(tmp_path: Path) -> None:
    pieces = {"ddp": (4, 3), "fsdp2": (6, 2), "zero1": (4, 3)}
    cases = [
        (make_case(name, 2, regime="strong", train={"micro_batch_size": n, "grad_accum": k}), 0.1)
        for name, (n, k) in pieces.items()
    ]
    found = Fairness.of(merge_run(noisy_run(tmp_path / "run", cases)))
    batch = found.frame[found.frame["fact"].str.contains("micro_batch|grad_accum")]
    assert dict(zip(batch["fact"], batch["flag"], strict=True)) == {
        "micro_batch_size": "differs",
        "grad_accum": "differs",
    }


def test_runs_that_found_other_sizes_are_compared_as_the_cases_that_were_asked(
    tmp_path: Path,
) -> None:
    before = merge_run(run_that_found(tmp_path / "a", {"ddp": (4, 0.1), "fsdp2": (5, 0.2)}))
    after = merge_run(run_that_found(tmp_path / "b", {"ddp": (2, 0.1), "fsdp2": (5, 0.2)}))
    found = changes(before, after)
    assert [(one.after["strategy"], one.word) for one in found.matched] == [
        ("ddp", "slower"),  # half of the tokens in the same time
        ("fsdp2", "same"),
    ]
    assert not found.only_before
    assert not found.only_after
    told = [(one.what, one.before, one.after) for one in found.facts]
    assert ("micro_batch_size", "4", "2") in told


def test_a_size_whose_trial_crashed_is_named_with_its_cause(tmp_path: Path) -> None:
    run = run_that_found(tmp_path / "run", {"ddp": (2, 0.1), "fsdp2": (2, 0.1)})
    file = run / "searches" / "ddp" / "0" / "status.json"
    status = json.loads(file.read_text())
    status["tried"].append({"size": 3, "status": "crashed", "cause": "rank 1: killed by SIGSEGV"})
    file.write_text(json.dumps(status))
    (problem,) = (one for one in merge_run(run).problems if "micro_batch_size 3" in one)
    assert "crashed (rank 1: killed by SIGSEGV), which says nothing of memory" in problem


def test_a_case_that_was_searched_once_and_skipped_before_a_search_later_is_broken(
    tmp_path: Path,
) -> None:
    before = merge_run(run_that_found(tmp_path / "a", {"ddp": (4, 0.1), "fsdp2": (5, 0.2)}))
    after = merge_run(run_that_found(tmp_path / "b", {"fsdp2": (5, 0.2)}))
    (row,) = rows_of(before.cases[before.cases["strategy"].eq("ddp")])
    lost = row | {"case_id": "ddp", "status": "skipped", "tokens_per_s": float("nan")}
    cases = [*rows_of(after.cases), lost]
    after.cases = pd.DataFrame(cases)
    found = changes(before, after)
    assert [(one.after["strategy"], one.word) for one in found.matched] == [
        ("ddp", "broken"),
        ("fsdp2", "same"),
    ]


def test_a_case_skipped_before_its_search_is_named_as_it_was_asked(tmp_path: Path) -> None:
    made = plan(strategy="ddp", world=[64], train={"micro_batch_size": "auto"})
    run = tmp_path / "run"
    run.mkdir()
    (run / "plan.json").write_text(made.model_dump_json())
    (row,) = rows_of(merge_run(run).cases)
    assert row["status"] == "skipped"
    assert row["search_id"] == row["case_id"]
