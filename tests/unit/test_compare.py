"""Two runs of the same cases: what changed, what is slower beyond noise, what a gate says."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from noisy_runs import noisy_run, other_torch
from run_files import make_case, write_plan
from typer.testing import CliRunner

from andromeda_scale import cli
from andromeda_scale.analysis.changes import changes
from andromeda_scale.merge import Results, load_results, merge_run, write
from andromeda_scale.report.verdict import verdict

pytestmark = pytest.mark.slow  # most merge a run of their own

DDP, ZERO = make_case("ddp", 2), make_case("zero1", 2)
OOM = {"v": 1, "status": "oom", "cause": "2 GiB"}


def _compare(*arguments: Any) -> tuple[int, str]:
    found = CliRunner().invoke(cli.app, ["compare", *map(str, arguments)], env={"COLUMNS": "200"})
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found.exit_code, found.output


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`old`; `same` measured again; `slow`: ddp 4 % slower, on another torch; `fast`: 4 % faster;
    `broken`: zero1 out of memory; `slower1`: 1 % slower."""
    here = tmp_path_factory.mktemp("runs")

    def make(name: str, ddp_s: float, seed: int, **settings: Any) -> None:
        """The tables alone, as one copies them from a cluster."""
        records = here / f"{name}-records"
        cases = [(DDP, ddp_s), (ZERO, 0.2)]
        (here / name).mkdir()
        write(merge_run(noisy_run(records, cases, seed=seed, **settings)), here / name)

    make("old", 0.1, 1)
    make("same", 0.1, 2)
    make("slow", 0.104, 13, environment=other_torch())
    make("fast", 0.096, 4)
    make("broken", 0.1, 5, status={ZERO.case_id: OOM})
    make("slower1", 0.101, 6, noise=0.2)
    return here


@cache
def _loaded(run: Path) -> Results:
    return load_results(run)


def _words(runs: Path, name: str, tolerance: float = 0.0) -> dict[str, str]:
    found = changes(_loaded(runs / "old"), _loaded(runs / name), tolerance)
    return {one.after["strategy"]: one.word for one in found.matched}


def test_a_slower_case_is_told_from_one_that_is_the_same(runs: Path) -> None:
    assert _words(runs, "slow") == {"ddp": "slower", "zero1": "same"}
    assert _words(runs, "fast") == {"ddp": "faster", "zero1": "same"}
    assert _words(runs, "same") == {"ddp": "same", "zero1": "same"}
    (ddp, _) = changes(_loaded(runs / "old"), _loaded(runs / "slow")).matched
    assert ddp.ratio is not None
    assert ddp.ratio.interval.low < 1.04 < ddp.ratio.interval.high
    assert ddp.ratio.interval.low > 1


def test_a_difference_within_the_tolerance_is_the_same_and_without_one_is_slower(
    runs: Path,
) -> None:
    assert _words(runs, "slower1")["ddp"] == "slower"
    assert _words(runs, "slower1", 0.02)["ddp"] == "same"


@pytest.mark.slow
def test_the_gate_stops_a_regression_and_two_sided_an_improvement_too(runs: Path) -> None:
    gate = ("--fail-on-regression", "2%")
    assert _compare(runs / "old", runs / "same", *gate, "--two-sided")[0] == 0
    assert _compare(runs / "old", runs / "slow", *gate)[0] == 1
    assert _compare(runs / "old", runs / "slow")[0] == 0
    assert _compare(runs / "old", runs / "slow", "--fail-on-regression", "10%")[0] == 0
    assert _compare(runs / "old", runs / "fast", *gate)[0] == 0
    assert _compare(runs / "old", runs / "fast", *gate, "--two-sided")[0] == 1


def test_a_case_that_has_no_speed_any_more_is_a_regression(runs: Path) -> None:
    status, output = _compare(runs / "old", runs / "broken", "--fail-on-regression", "50%")
    assert status == 1
    assert "broken" in output
    assert _words(runs, "broken")["zero1"] == "broken"


def test_changes_of_software_are_named_before_any_number(runs: Path) -> None:
    _, output = _compare(runs / "old", runs / "slow", "--format", "md")
    said, _, table = output.partition("| strategy")
    assert "Changed: torch: " in said
    assert "-> 9.9.0" in said
    assert "2 cases of both: 1 slower, 1 same" in said
    assert "| ddp" in table
    assert "1.0" in table
    _, output = _compare(runs / "old", runs / "same", "--format", "md")
    assert "the same software, hardware and facts" in output


def test_a_fact_that_changed_is_named_with_what_it_does(runs: Path, tmp_path: Path) -> None:
    changed = {"dtypes": {"reduction": "float16"}}
    noisy_run(tmp_path / "new", [(DDP, 0.1), (ZERO, 0.2)], seed=2)
    for file in (tmp_path / "new" / "cases" / DDP.case_id).glob("*/node-0.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines:
            if line["kind"] == "describe":
                line["values"]["dtypes"] |= changed["dtypes"]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = changes(load_results(runs / "old"), merge_run(tmp_path / "new"))
    (change,) = found.facts
    assert (change.what, change.before, change.after) == (
        "dtypes.reduction",
        "float32",
        "float16",
    )
    assert change.case_ids == (DDP.case_id,)
    assert "halve the traffic" in change.effect


def test_cases_of_one_run_alone_are_named_and_runs_that_share_none_are_refused(
    runs: Path, tmp_path: Path
) -> None:
    noisy_run(tmp_path / "more", [(DDP, 0.1), (make_case("fsdp2", 2), 0.1)])
    _, output = _compare(runs / "old", tmp_path / "more")
    assert f"only in A: zero1 at world 2 ({ZERO.case_id})" in output
    assert "only in B: fsdp2 at world 2" in output
    noisy_run(tmp_path / "other", [(make_case("ddp", 4), 0.1)])
    status, output = _compare(runs / "old", tmp_path / "other", "--fail-on-regression", "2%")
    assert status == 2
    assert "share no measured case" in output


def test_runs_that_share_no_case_are_told_the_keys_of_the_nearest(
    runs: Path, tmp_path: Path
) -> None:
    other = make_case("ddp", 2, train={"seq_len": 32}, collect=("memory",))
    noisy_run(tmp_path / "a", [(DDP, 0.1), (ZERO, 0.1)])
    noisy_run(tmp_path / "b", [(other, 0.1)])
    status, output = _compare(tmp_path / "a", tmp_path / "b")
    assert status == 2
    assert f"the nearest, {DDP.case_id} and {other.case_id}, differ in " in output
    assert "train.seq_len (16, 32)" in output
    assert 'collect (["communication", "memory", "system"], ["memory"])' in output
    assert "world" not in output
    _, output = _compare(runs / "old", tmp_path / "b")  # of one the tables alone
    assert "differ in train.seq_len (16, 32); compare" in output


def test_a_run_against_itself_is_said_to_be(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(runs / "old")
    status, output = _compare(runs / "old", tmp_path / "link")
    assert (status, "link are the same run" in output) == (0, True)
    assert "same run" not in _compare(runs / "old", runs / "same")[1]


def test_two_launches_decide_nothing(tmp_path: Path) -> None:
    noisy_run(tmp_path / "a", [(DDP, 0.1)], repeats=2)
    noisy_run(tmp_path / "b", [(DDP, 0.2)], repeats=2)
    assert _compare(tmp_path / "a", tmp_path / "b", "--fail-on-regression", "2%")[0] == 0
    (found,) = changes(merge_run(tmp_path / "a"), merge_run(tmp_path / "b")).matched
    assert found.word == "not resolved"
    assert found.ratio is not None
    assert found.ratio.interval.centre == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize("text", ["2", "-1%", "two", "100%", "nan"])
def test_a_tolerance_that_is_no_share_is_refused(runs: Path, text: str) -> None:
    gate = f"--fail-on-regression={text}"
    status, output = _compare(runs / "old", runs / "same", gate)
    assert status == 2
    assert "write 2% or 0.02" in output


def test_two_sided_without_a_gate_and_a_run_without_results_are_refused(
    runs: Path, tmp_path: Path
) -> None:
    assert _compare(runs / "old", runs / "same", "--two-sided")[0] == 2
    assert _compare(runs / "old", tmp_path / "none")[0] == 2
    write_plan(tmp_path / "pending", [DDP])
    assert _compare(tmp_path / "pending", tmp_path / "pending")[0] == 2


def test_a_case_that_broke_is_not_said_to_have_changed_every_fact_but_what_it_ran_on(
    tmp_path: Path,
) -> None:
    failed = {DDP.case_id: OOM, ZERO.case_id: OOM}
    cases = [(DDP, 0.1), (ZERO, 0.2)]
    old = merge_run(noisy_run(tmp_path / "old", cases))
    all_broken = noisy_run(tmp_path / "new", cases, environment=other_torch(), status=failed)
    found = changes(old, merge_run(all_broken))
    assert [(one.what, one.after) for one in found.system] == [("torch", "9.9.0")]
    assert found.facts == []
    assert {one.word for one in found.matched} == {"broken"}


def test_runs_that_do_not_say_what_they_ran_on_are_not_called_the_same(
    runs: Path, tmp_path: Path
) -> None:
    nothing = noisy_run(tmp_path / "new", [(DDP, 0.1)])
    for file in (nothing / "cases").rglob("node-0.jsonl"):
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(line for line in lines if json.loads(line)["kind"] != "node"))
    _, output = _compare(runs / "old", nothing)
    assert "No launch of B says what it ran on" in output
    assert "the same software" not in output


def test_launches_that_fail_now_and_then_stop_the_gate(runs: Path, tmp_path: Path) -> None:
    noisy_run(tmp_path / "new", [(DDP, 0.1), (ZERO, 0.2)], seed=2)
    place = tmp_path / "new" / "cases" / DDP.case_id
    for repeat in range(4):
        (place / str(repeat) / "status.json").write_text(json.dumps(OOM))
    gate = ("--fail-on-regression", "2%", "--format", "md")
    status, output = _compare(runs / "old", tmp_path / "new", *gate)
    assert status == 1
    assert "1 failing, 1 same" in output
    assert "ok 1/5" in output
    assert _compare(tmp_path / "new", tmp_path / "new", *gate)[0] == 0  # no worse than it was
    (place / "0" / "status.json").unlink()  # undone is not failed
    for repeat in range(1, 4):
        (place / str(repeat) / "status.json").write_text(json.dumps({"v": 1, "status": "ok"}))
    assert _compare(runs / "old", tmp_path / "new", *gate)[0] == 0


def test_a_record_of_no_memory_at_all_has_no_ratio(tmp_path: Path) -> None:
    wide = make_case("ddp", 2, train={"micro_batch_size": 4})
    noisy_run(tmp_path / "old", [(DDP, 0.1), (wide, 0.2)])
    for file in (tmp_path / "old" / "cases").rglob("node-0.jsonl"):
        text = file.read_text()
        file.write_text(text.replace('"peak_memory_bytes": 1000', '"peak_memory_bytes": 0'))
    new = shutil.copytree(tmp_path / "old", tmp_path / "new")
    status, output = _compare(tmp_path / "old", new, "--format", "csv")
    assert status == 0
    assert all(line.endswith(",") for line in output.splitlines()[1:])
    said = [one.text for one in verdict(merge_run(tmp_path / "old"))]
    assert any("micro_batch_size 4 instead of 2" in text for text in said)
