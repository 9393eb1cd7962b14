"""What `run` refuses with, and that nothing came of it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from andromeda_scale.cli import app
from andromeda_scale.hardware.machine import Machine

TWO_CORES = Machine(cpu_cores=2, memory_bytes=16 << 30)

GOOD = """\
question: Is this refused?
model: andromeda-tiny
data: {source: random}
train: {seq_len: 32}
strategy: ddp
world: [1]
"""


@pytest.fixture(autouse=True)  # in every module that imports it
def empty_folder_where_nothing_may_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("a sweep was started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("andromeda_scale.launch.driver.run", started)
    monkeypatch.setattr("andromeda_scale.hardware.machine.detect_machine", lambda: TWO_CORES)


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of what it holds."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refuse(*arguments: str) -> str:
    """The paragraph `run` refuses with; checks status 2, one line, and an untouched folder."""
    before = contents(Path.cwd())
    done = CliRunner().invoke(app, ["run", *arguments])
    assert done.exit_code == 2, (done.output, done.exception)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert contents(Path.cwd()) == before
    assert not Path("runs").exists()
    return line.removeprefix("andromeda-scale: ")


def refuse_suite(old: str, new: str) -> str:
    """As `refuse`, for the good suite with one text changed."""
    assert old in GOOD
    Path("x.yaml").write_text(GOOD.replace(old, new), encoding="utf-8")
    return refuse("x.yaml")
