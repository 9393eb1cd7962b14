"""Run directories that cannot be used: one paragraph, status 2, nothing started or written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import run_files
from refusals import GOOD, TWO_CORES, empty_folder_where_nothing_may_start, refuse
from typer.testing import CliRunner

from andromeda_scale.cli import app
from andromeda_scale.commands import sweep
from andromeda_scale.errors import UserError
from andromeda_scale.launch.run_dir import RunDir
from andromeda_scale.planning.plan import make_plan
from andromeda_scale.planning.suite_file import read_suite

__all__ = ["empty_folder_where_nothing_may_start"]


@pytest.mark.parametrize("where", ["/proc/andromeda", "a-file", "a-file/below", "/dev/null"])
def test_a_run_directory_that_cannot_be_written(where: str) -> None:
    Path("x.yaml").write_text(GOOD, encoding="utf-8")
    Path("a-file").write_text("mine", encoding="utf-8")
    line = refuse("x.yaml", "--run-dir", where)
    assert where.rpartition("/")[2] in line
    assert line.endswith("choose a writable one with --run-dir")


@pytest.fixture
def _a_locked_folder() -> None:
    Path("x.yaml").write_text(GOOD, encoding="utf-8")
    Path("locked").mkdir(mode=0o500)


@pytest.mark.usefixtures("_a_locked_folder", "unprivileged")
def test_a_run_directory_without_permission() -> None:
    assert "Permission denied" in refuse("x.yaml", "--run-dir", "locked/run")


def test_a_folder_that_holds_something_else() -> None:
    Path("x.yaml").write_text(GOOD, encoding="utf-8")
    Path("thesis").mkdir()
    Path("thesis/draft.txt").write_text("mine", encoding="utf-8")
    line = refuse("x.yaml", "--run-dir", "thesis")
    assert "thesis: is not empty and holds no run; choose another --run-dir" in line


def test_a_run_directory_of_another_suite() -> None:
    suite, name, text, _ = read_suite("quickstart", ["data.source=random"])
    RunDir.create("theirs", make_plan(suite, name, TWO_CORES), text, {})
    Path("x.yaml").write_text(GOOD, encoding="utf-8")
    line = refuse("x.yaml", "--run-dir", "theirs")
    assert "theirs: holds a run of other cases (suite 'quickstart')" in line
    assert "choose another --run-dir, or resume that run with" in line


def test_options_that_contradict_the_run_directory() -> None:
    suite, name, text, _ = read_suite("quickstart", ["data.source=random"])
    RunDir.create("theirs", make_plan(suite, name, TWO_CORES), text, {})
    Path("x.yaml").write_text(GOOD, encoding="utf-8")
    assert "holds a run already; leave out --new" in refuse(
        "x.yaml", "--run-dir", "theirs", "--new"
    )
    assert "holds no run; leave out --only" in refuse(
        "x.yaml", "--run-dir", "none", "--only", "failed"
    )
    assert "no run of x with these cases lies under runs/" in refuse("x.yaml", "--only", "failed")


@pytest.mark.parametrize("command", ["status", "report", "resume"])
def test_a_run_that_is_not_there(command: str) -> None:
    done = CliRunner().invoke(app, [command, "nowhere"])
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert "nowhere" in line
    assert not Path("nowhere").exists()


@pytest.mark.parametrize("damaged", [b'{"suite_name": 3', b"\xff\xfe"])
def test_a_damaged_plan(damaged: bytes) -> None:
    Path("run").mkdir()
    Path("run/plan.json").write_bytes(damaged)
    for command in ("status", "report", "resume"):
        done = CliRunner().invoke(app, [command, "run"])
        assert done.exit_code == 2, done.exception
        assert "plan.json" in done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": 99, "cases": 3}, "schema_version: has format version 99; this reads 1"),
        ({"cases": {}}, "repeats name cases that it does not hold: andromeda-"),
        ({"later": 1}, "later: Extra inputs are not permitted"),
    ],
)
def test_a_plan_of_another_version_or_without_its_cases_is_read_by_no_command(
    change: dict[str, Any], said: str
) -> None:
    suite, name, _, _ = read_suite("quickstart", ["data.source=random"])
    plan = json.loads(make_plan(suite, name, TWO_CORES).model_dump_json())
    Path("run/cases").mkdir(parents=True)
    Path("run/plan.json").write_text(json.dumps(plan | change))
    for command in ("status", "report", "resume"):  # who goes on with a run, and who merges it
        done = CliRunner().invoke(app, [command, "run"])
        assert done.exit_code == 2, done.exception
        assert f"run/plan.json: {said}" in done.stderr
        assert "start a new run" in done.stderr


def test_status_says_nothing_that_a_terminal_would_obey_or_no_launch_can_take() -> None:
    suite, name, text, _ = read_suite("quickstart", ["data.source=random"])
    run = RunDir.create("run", make_plan(suite, name, TWO_CORES), text, {})
    ok, crashed, *_ = run.plan.repeats
    for item, said in (
        (ok, '{"status": "ok", "seconds": Infinity}'),
        (crashed, '{"status": "crashed", "cause": "\\u001b[2J\\u001b]0;mine\\u0007"}'),
    ):
        run.case_dir(item).mkdir(parents=True)
        (run.case_dir(item) / "status.json").write_text(said)
    done = CliRunner().invoke(app, ["status", "run"])
    assert done.exit_code == 0, done.exception
    assert "1 crashed" in done.stdout
    assert done.stdout.replace("\n", "").isprintable()


def test_a_damaged_lock_still_locks_and_is_no_stack_trace() -> None:
    suite, name, text, _ = read_suite("quickstart", ["data.source=random"])
    run = RunDir.create("run", make_plan(suite, name, TWO_CORES), text, {})
    with run.lock():
        Path("run/lock").write_bytes(b"\xff\xfe")
        assert run.holder() is None
        with pytest.raises(UserError, match="is in use by process"), run.lock():
            pass
    Path("run/lock").unlink()
    Path("run/lock").mkdir()
    assert run.holder() is None
    with (
        pytest.raises(UserError, match=r"run/lock: cannot be opened \(Is a directory\)"),
        run.lock(),
    ):
        pass


def test_a_record_that_is_damaged_since_counts_as_failed(tmp_path: Path) -> None:
    case = run_files.make_case("ddp", 2)
    run_files.write_plan(tmp_path, [case], 2)
    whole = [*run_files.rank_lines(0, [0.1]), *run_files.rank_lines(1, [0.1])]
    for repeat in (0, 1):
        place = run_files.write_repeat(tmp_path, case, repeat, whole)
    run = RunDir.open(tmp_path)
    assert run.todo(only_failed=True) == []
    file = place / "node-0.jsonl"
    file.write_bytes(file.read_bytes()[:-30])
    assert [item.repeat for item in run.todo(only_failed=True)] == [1]
    assert run.todo() == []


def test_a_run_that_cannot_be_written_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_files.write_plan(tmp_path / "run", [run_files.make_case("ddp", 1)])

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunDir, "calibrate", full)
    with pytest.raises(UserError, match=r"run: cannot be written \(No space left.*report"):
        sweep.reopen(tmp_path / "run")
