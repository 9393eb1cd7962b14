"""A rehearsal of the tables of GPU results: tiny shapes on this CPU, the same path."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_results.py"


def _run(table: str, out: Path, *options: str) -> str:
    words = [sys.executable, str(SCRIPT), table, f"--out={out}", *options]
    done = subprocess.run(words, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0 or "--show" in options, done.stderr
    return done.stdout


@pytest.mark.thorough
def test_a_table_is_run_and_printed_again_from_its_files(tmp_path: Path) -> None:
    said = _run("cs336", tmp_path, "--rehearse")
    assert said.count("| single ") == 3
    assert "failed" not in said
    assert _run("cs336", tmp_path, "--show") == said
    assert (tmp_path / "cs336" / "table.md").read_text() == said.removesuffix("\n")


@pytest.mark.thorough
def test_ours_takes_turns_with_the_bare_loop(tmp_path: Path) -> None:
    said = _run("llama", tmp_path, "--rehearse")
    assert "of one of bare_loop (bare_loop-0, ours-0, ours-1, bare_loop-1)" in said
    for name in ("bare_loop-0", "bare_loop-1"):
        about = json.loads((tmp_path / "llama" / name / "peer.json").read_text())
        assert about["step_s"] > 0, about["cause"]


@pytest.mark.thorough
@pytest.mark.parametrize(
    "table",
    [
        "levers",
        "weak",
        "andromeda",
        "zero3",
        "auto",
        "context",
        "batch",
        "checkpointing",
        "attention",
    ],
)
def test_every_table_can_be_rehearsed(tmp_path: Path, table: str) -> None:
    said = _run(table, tmp_path, "--rehearse")
    assert not any(word in said for word in ("failed:", "skipped:", "unavailable:", "diverged:"))


@pytest.mark.thorough
@pytest.mark.parametrize("table", ["probe", "overhead"])
def test_a_table_of_an_instrument_is_printed_again_from_its_record(
    tmp_path: Path, table: str
) -> None:
    _run(table, tmp_path, "--rehearse")
    (record,) = (tmp_path / table).glob("*.parquet")
    printed = (tmp_path / table / "table.md").read_text()
    assert _run(table, tmp_path, "--show") == printed + "\n"
    assert record.stem == table
    assert "| ddp" in printed or table == "probe"


def test_the_bare_loop_does_the_work_it_is_asked_for_or_says_that_it_does_not() -> None:
    loop = str(SCRIPT.with_name("bare_loop.py"))
    words = [sys.executable, loop, "llama-tiny", "--set=grad_accum=2"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert done.stderr.endswith("ValueError: train.grad_accum: the loop does not follow 2\n")
