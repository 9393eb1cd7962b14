"""`report --follow`: it shows each change, ends with the run, and leaves who measures alone."""

from __future__ import annotations

import fcntl
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_files import make_case, rank_lines, write_plan, write_repeat
from typer.testing import CliRunner

from andromeda_scale.cli import app


def finish(directory: Path, world: int) -> None:
    lines = [line for rank in range(world) for line in rank_lines(rank, [0.1] * 4)]
    write_repeat(directory, make_case("ddp", world), 0, lines)


@pytest.fixture
def going_on(tmp_path: Path) -> Any:
    """A run of two launches of which one has ended, held as its driver holds it."""
    write_plan(tmp_path, [make_case("ddp", 1), make_case("ddp", 2)], repeats=1)
    finish(tmp_path, 1)
    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield tmp_path, lock


def command(directory: Path) -> list[str]:
    arguments = ["-m", "andromeda_scale.cli", "report", str(directory), "--follow"]
    return [sys.executable, *arguments]


def test_each_launch_that_ends_is_said_and_the_table_comes_last(going_on: Any) -> None:
    directory, _ = going_on
    with subprocess.Popen(command(directory), stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        first = following.stdout.readline()
        finish(directory, 2)
        rest = following.stdout.read()
    assert following.returncode == 0
    assert first == "test: 1 of 2 launches ended (1 ok, 1 pending)\n"
    assert rest.startswith("test: 2 of 2 launches ended (2 ok)\n")
    assert "What does a rank buy?" in rest


def test_a_run_that_nobody_runs_any_more_is_not_waited_for(going_on: Any) -> None:
    directory, lock = going_on
    fcntl.flock(lock, fcntl.LOCK_UN)
    done = CliRunner().invoke(app, ["report", str(directory), "--follow"])
    assert done.exit_code == 0
    assert "1 launches have not ended and nobody runs them" in done.stderr
    assert "pending" in done.stdout


def test_on_a_terminal_the_table_is_drawn_in_place(going_on: Any) -> None:
    directory, _ = going_on
    ours, theirs = pty.openpty()
    finish(directory, 2)
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "130", "LINES": "40"}
    with subprocess.Popen(command(directory), stdout=theirs, env=environment) as following:
        os.close(theirs)
        text = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            text += part
    os.close(ours)
    assert following.returncode == 0
    assert b"2 of 2 launches ended" in text
    assert text.count(b"What does a rank buy?") == 2  # live, and what stays


def test_follow_draws_a_terminals_table_alone(going_on: Any) -> None:
    directory, _ = going_on
    done = CliRunner().invoke(app, ["report", str(directory), "--follow", "--format", "csv"])
    assert done.exit_code == 2
    assert "--follow: draws a table on the terminal" in done.stderr
