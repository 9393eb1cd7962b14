"""`report` of a run that has not ended, and of one whose tables on disk are older."""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from merging import even_run, half_measured_run
from run_files import make_case
from typer.testing import CliRunner

from andromeda_scale.cli import app
from andromeda_scale.commands.sweep import tables
from andromeda_scale.merge import merge_run, write

pytestmark = pytest.mark.slow  # each merges a run of its own

OF_THOSE = "1 of 2 launches ended; the table is of those"


def report(run: Path, *arguments: str) -> Any:
    done = CliRunner().invoke(app, ["report", str(run), *arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return done


@pytest.mark.parametrize("arguments", [(), ("--table", "memory"), ("--format", "md")])
def test_a_run_under_way_says_so_first(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    run = half_measured_run(tmp_path)
    with open(run / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _, said, *rest = filter(None, report(run, *arguments).stdout.splitlines())
    assert said.strip("*") == f"under way: {OF_THOSE}"
    assert "not started" not in " ".join(rest)


def test_a_run_whose_driver_is_gone_names_the_remedy_in_every_form(tmp_path: Path) -> None:
    run = half_measured_run(tmp_path)
    said = f"left unfinished, its driver is gone: {OF_THOSE}; go on with: andromeda-scale resume"
    assert said in report(run).stdout
    found = json.loads(report(run, "--format", "json").stdout)
    assert found["standing"] == f"{said} {run}"
    assert said in report(run, "--format", "latex").stdout
    report(run, "--format", "html")
    assert f'<p class="standing"><strong>{said} {run}</strong></p>' in (
        (run / "report.html").read_text()
    )


def test_a_run_that_ended_and_a_copy_of_its_tables_say_nothing(tmp_path: Path) -> None:
    run, _ = even_run(tmp_path / "run", repeats=1)
    assert json.loads(report(run, "--format", "json").stdout)["standing"] is None
    copy = tmp_path / "copy"
    copy.mkdir()
    half = half_measured_run(tmp_path / "half")
    write(merge_run(half), copy)
    shutil.copy(half / "plan.json", copy)
    assert "driver" not in report(copy).stdout


def test_tables_on_disk_that_are_older_are_named(tmp_path: Path) -> None:
    run, _ = even_run(tmp_path, repeats=2)
    assert report(run).stderr == ""  # none was written
    tables(run)
    assert report(run).stderr == ""
    before = (run / "table.md").read_bytes()
    shutil.rmtree(run / "cases" / make_case("ddp", 2).case_id / "1")
    for arguments in ((), ("--table", "memory"), ("--format", "html")):
        said = report(run, *arguments).stderr
        assert f"{run}: table.md, table.csv are older than what is shown" in said
        assert said.count("\n") == 1
    assert (run / "table.md").read_bytes() == before
