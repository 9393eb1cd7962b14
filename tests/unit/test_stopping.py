"""A command that a signal stops says so last, and how to go on."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from merging import half_measured_run
from refusals import GOOD, TWO_CORES
from typer.testing import CliRunner

from andromeda_scale.cli import app
from andromeda_scale.launch.driver import Outcome
from andromeda_scale.launch.process import ignores

pytestmark = pytest.mark.slow  # most merge a run of their own


@pytest.fixture(autouse=True)
def _a_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("andromeda_scale.hardware.machine.detect_machine", lambda: TWO_CORES)
    Path("x.yaml").write_text(GOOD, encoding="utf-8")


def run(*arguments: str) -> tuple[list[str], str]:
    """(lines on stderr, stdout) of a run that is stopped."""
    done = CliRunner().invoke(app, ["run", "x.yaml", "--run-dir", "my run", *arguments])
    assert done.exit_code == 130, (done.output, done.exception)
    return done.stderr.splitlines(), done.stdout


ON = "launches have ended; go on with: andromeda-scale resume '{}/my run'"


@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
def test_the_driver_that_was_told_says_by_what(
    monkeypatch: pytest.MonkeyPatch, quiet: tuple[str, ...]
) -> None:
    outcome = Outcome({}, told=signal.SIGHUP)
    monkeypatch.setattr("andromeda_scale.launch.driver.run", lambda *_, **__: outcome)
    (*first, last), out = run(*quiet)
    assert first == ([] if quiet else [f"x: 6 launches in {Path.cwd()}/my run"])
    assert last == (
        "andromeda-scale: interrupted: told to stop by SIGHUP (hangup); 0 of 6 "
        + ON.format(Path.cwd())
    )
    assert "results:" not in out


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_before_the_driver_listens_ends_alike(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def told(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.Signals[name])

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr("andromeda_scale.launch.driver.run", told)
    (*_, last), _ = run()
    assert f"told to stop by {name}" in last
    assert last.endswith(ON.format(Path.cwd()))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    monkeypatch.setattr("andromeda_scale.planning.plan.make_plan", told)
    done = CliRunner().invoke(app, ["run", "x.yaml", "--run-dir", "none"])
    assert done.exit_code == 130
    assert "before there was a run; give the command again" in done.stderr
    assert not Path("none").exists()


def test_a_run_with_a_damaged_record_points_to_what_launches_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("andromeda_scale.launch.driver.run", lambda *_, **__: Outcome({}))
    half_measured_run(Path("r"))
    Path("r/fingerprint.json").unlink(missing_ok=True)
    done = CliRunner().invoke(app, ["resume", "r"])
    assert "launch again" not in done.stderr
    (record,) = Path("r").glob("cases/*/0/node-0.jsonl")
    record.write_bytes(record.read_bytes()[:-20])
    last = CliRunner().invoke(app, ["resume", "r"]).stderr.splitlines()[-1]
    again = f"andromeda-scale resume {Path.cwd()}/r --only failed"
    assert last == f"1 launch failed or left a damaged record; launch again: {again}"
    done = CliRunner().invoke(app, ["resume", "r", "--only", "failed"])
    assert "launch again" not in done.stderr


def test_whether_a_process_ignores_a_signal() -> None:
    for trap, found in (('trap "" INT; ', True), ("", False)):
        shell = subprocess.Popen(["sh", "-c", f"{trap}echo; exec sleep 60"], stdout=subprocess.PIPE)
        assert shell.stdout is not None
        with shell:
            shell.stdout.readline()
            assert ignores(shell.pid, signal.SIGINT) is found
            assert not ignores(shell.pid, signal.SIGTERM)
            shell.kill()
    assert not ignores(shell.pid, signal.SIGINT)
