"""The commands on real processes: run, interrupt, resume."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

COMMAND = [sys.executable, "-m", "andromeda_scale.cli"]
LIMIT_S = 120

SUITE = """\
question: Do the commands work?
model: {base: andromeda-tiny, num_layers: 1}
data: {source: random}
train: {seq_len: 32}
world: [1]
axes: {strategy: [ddp, single]}
measure: {warmup: {min_steps: 5, max_steps: 5}, steps: 5, repeats: 2, profile_steps: 0}
collect: []
threads_per_rank: 1
device: cpu
"""


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=folder, capture_output=True, text=True, timeout=LIMIT_S,
        check=False,
    )  # fmt: skip


def only_run(folder: Path) -> Path:
    (run,) = (folder / "runs").iterdir()
    return run


def test_run_measures_prints_and_writes_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(SUITE, encoding="utf-8")
    done = command(tmp_path, "run", "x.yaml", "--quiet")
    assert done.returncode == 0, done.stderr
    assert "Do the commands work?" in done.stdout
    run = only_run(tmp_path)
    cases = pd.read_parquet(run / "results.parquet")
    assert dict(zip(cases["strategy"], cases["status"], strict=True)) == {
        "ddp": "ok",
        "single": "ok",
    }
    assert (cases["tokens_per_s"] > 0).all()
    ranks = pd.read_parquet(run / "ranks.parquet")
    assert len(ranks) == 2 * 2  # a row a case, repeat and rank
    assert "ddp" in (run / "table.md").read_text(encoding="utf-8")
    assert "tokens_per_s" in (run / "table.csv").read_text(encoding="utf-8")

    # The table is a function of the records alone.
    again = command(tmp_path, "report", str(run))
    assert again.stdout.strip() in done.stdout
    assert "5 of 5 launches ended" in command(tmp_path, "status", str(run)).stdout

    # Nothing is left to do: no launch. The code under test may be edited while a test runs.
    before = {p: p.stat().st_mtime_ns for p in run.glob("cases/*/*/status.json")}
    resumed = command(tmp_path, "resume", str(run), "--quiet", "--allow-mixed")
    assert resumed.returncode == 0, resumed.stderr
    assert before == {p: p.stat().st_mtime_ns for p in run.glob("cases/*/*/status.json")}


def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(tmp_path: Path) -> None:
    single = SUITE.replace("[ddp, single]", "[single]")
    (tmp_path / "x.yaml").write_text(single.replace("repeats: 2", "repeats: 9"), encoding="utf-8")
    sweep = subprocess.Popen(
        [*COMMAND, "run", "x.yaml"], cwd=tmp_path, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        first_end(tmp_path, sweep)
        sweep.send_signal(signal.SIGINT)
        out, err = sweep.communicate(timeout=LIMIT_S)
    finally:
        if sweep.poll() is None:
            os.killpg(sweep.pid, signal.SIGKILL)
    assert sweep.returncode == 130, err
    assert "Traceback" not in out + err
    run = only_run(tmp_path)
    finished = {p: p.stat().st_mtime_ns for p in run.glob("cases/*/*/node-0.jsonl")}
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(run) in str(p.info["cmdline"])]

    (tmp_path / "x.yaml").write_text(single, encoding="utf-8")
    done = command(tmp_path, "run", "x.yaml", "--allow-mixed")
    assert done.returncode == 0, done.stderr
    assert f"going on with {run.relative_to(tmp_path)}" in done.stderr
    assert only_run(tmp_path) == run
    kept = [p for p, changed in finished.items() if p.stat().st_mtime_ns == changed]
    assert kept, "a finished repeat was measured again"
    assert (pd.read_parquet(run / "results.parquet")["status"] == "ok").all()


def test_cancel_ends_what_a_script_started_in_the_background(tmp_path: Path) -> None:
    single = SUITE.replace("[ddp, single]", "[single]").replace("repeats: 2", "repeats: 99")
    (tmp_path / "x.yaml").write_text(single, encoding="utf-8")
    # Of a command with `&` a shell without job control lets SIGINT be ignored.
    sweep = subprocess.Popen(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *COMMAND, "run", "x.yaml"], cwd=tmp_path,
        start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        first_end(tmp_path, sweep)
        told = command(tmp_path, "cancel", str(only_run(tmp_path)))
        assert told.stdout == f"told process {sweep.pid} to stop\n"
        _, err = sweep.communicate(timeout=LIMIT_S)
    finally:
        if sweep.poll() is None:
            os.killpg(sweep.pid, signal.SIGKILL)
    assert sweep.returncode == 130, err
    assert "told to stop by SIGTERM (`andromeda-scale cancel` or kill)" in err


def first_end(folder: Path, sweep: subprocess.Popen[Any]) -> None:
    """Wait until the first launch has ended."""
    deadline = time.monotonic() + LIMIT_S
    while not list(folder.glob("runs/*/cases/*/*/status.json")):
        assert time.monotonic() < deadline
        assert sweep.poll() is None
        time.sleep(0.05)


@pytest.mark.thorough
def test_a_closed_pipe_ends_the_printing_and_not_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(SUITE.replace("[ddp, single]", "[single]"), encoding="utf-8")
    sweep = subprocess.Popen(
        [*COMMAND, "run", "x.yaml"], cwd=tmp_path, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        assert sweep.stdout is not None
        sweep.stdout.close()  # as `| head -1` does after its line
        assert sweep.wait(LIMIT_S) == 0
    finally:
        if sweep.poll() is None:
            os.killpg(sweep.pid, signal.SIGKILL)
    cases = pd.read_parquet(only_run(tmp_path) / "results.parquet")
    assert list(cases["status"]) == ["ok"]
    assert (only_run(tmp_path) / "table.md").exists()


@pytest.mark.thorough
def test_a_closed_terminal_ends_as_an_interrupt_with_the_tables_written(tmp_path: Path) -> None:
    single = SUITE.replace("[ddp, single]", "[single]").replace("repeats: 2", "repeats: 99")
    (tmp_path / "x.yaml").write_text(single, encoding="utf-8")
    master, terminal = os.openpty()
    sweep = subprocess.Popen(
        [*COMMAND, "run", "x.yaml"], cwd=tmp_path, start_new_session=True,
        stdin=terminal, stdout=terminal, stderr=terminal, env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    try:
        os.close(terminal)
        first_end(tmp_path, sweep)
        os.close(master)
        for _ in range(2):  # from the kernel and from the shell
            sweep.send_signal(signal.SIGHUP)
        assert sweep.wait(LIMIT_S) == 130
    finally:
        if sweep.poll() is None:
            os.killpg(sweep.pid, signal.SIGKILL)
    assert (only_run(tmp_path) / "table.md").exists()
