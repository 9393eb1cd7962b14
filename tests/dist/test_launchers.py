"""launch/*.sh: the agents that every launcher starts make the rows that `run` makes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from launch_support import tagged

from andromeda_scale.merge.blame import COLUMNS

SCRIPTS = Path(__file__).resolve().parents[2] / "launch"
LAUNCHERS = {"torchrun": "torchrun", "accelerate": "accelerate", "deepspeed": "deepspeed"}
LAUNCHERS["mpirun"] = "apt-get install openmpi-bin"
LIMIT_S = 240

SUITE = """\
question: Do all launchers make one sweep?
model: {base: andromeda-tiny, num_layers: 1}
data: {source: random}
train: {seq_len: 32}
world: 2
parity: "off"
measure: {warmup: {min_steps: 2, max_steps: 2}, steps: 3, repeats: 1, profile_steps: 2}
device: cpu
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a suite lies, and what `run` made of it in `run/`."""
    folder = tmp_path_factory.mktemp("launchers")
    (folder / "x.yaml").write_text(SUITE, encoding="utf-8")
    start(folder, sys.executable, "-m", "andromeda_scale.cli", "run", "x.yaml", "--run-dir", "run")
    return folder


def start(folder: Path, *command: str) -> None:
    """Run a command, which must end well and leave no process behind."""
    with tagged() as (environment, survivors):
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True,
            timeout=LIMIT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Do all launchers make one sweep?" in done.stdout
        assert survivors() == []


def rows(run_dir: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(what does not depend on the clock, where there is a value) of results.parquet."""
    table = pd.read_parquet(run_dir / "results.parquet")
    table["facts"] = [without_launcher(facts) for facts in table["facts"]]
    timeless = table.select_dtypes(exclude="float64").drop(
        columns=["software", *COLUMNS, "peak_memory_rank"]
    )
    # Of the loopback device nothing is said while others send on it.
    return timeless, table.notna().drop(columns=[*COLUMNS, "blame_s", "comm_loopback_bytes"])


def without_launcher(facts: str) -> dict[str, Any]:
    """What was read back, without the OpenMP variables that accelerate sets on Intel's CPUs."""
    return {k: v for k, v in json.loads(facts).items() if not k.startswith("variables.KMP_")}


@pytest.mark.parametrize(
    "launcher",
    # These two set torchrun's variables, and only take longer to start.
    [
        pytest.param(one, marks=pytest.mark.thorough) if one in ("accelerate", "deepspeed") else one
        for one in LAUNCHERS
    ],
)
def test_a_launcher_makes_the_rows_that_run_makes(launcher: str, folder: Path) -> None:
    if shutil.which(launcher, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") is None:
        assert not os.environ.get("CI"), f"{launcher} is not installed"
        pytest.skip(f"needs {LAUNCHERS[launcher]}")
    script = str(SCRIPTS / f"{launcher}.sh")
    start(folder, script, "x.yaml", "2", "--quiet", "--run-dir", launcher)
    expected, found = rows(folder / "run"), rows(folder / launcher)
    assert list(expected[0]["status"]) == ["ok"]
    for table, other in zip(expected, found, strict=True):
        pd.testing.assert_frame_equal(table, other)
    ranks = pd.read_parquet(folder / launcher / "ranks.parquet")
    assert sorted(zip(ranks["world_size"], ranks["rank"], strict=True)) == [(2, 0), (2, 1)]


def test_every_script_says_how_it_is_used() -> None:
    for script in SCRIPTS.iterdir():
        done = subprocess.run([script], capture_output=True, text=True, timeout=10, check=False)
        assert done.returncode != 0
        assert f"usage: {script.name} SUITE [N]" in done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train: {seqlen: 32}", r"train.seqlen: unknown key (x.yaml); did you mean seq_len?"),
        ("device: cuda", "device: cuda cannot run: needs 2 GPUs per node, 0 here"),
        ("data: {source: files, files: [few.txt]}", "data: 3 tokens in all are too few"),
    ],
)
def test_an_agent_names_the_file_of_a_mistake_as_run_does(
    change: str, said: str, tmp_path: Path
) -> None:
    key = change.partition(":")[0]
    lines = [line for line in SUITE.splitlines() if not line.startswith(f"{key}:")]
    (tmp_path / "x.yaml").write_text("\n".join([*lines, change]), encoding="utf-8")
    (tmp_path / "few.txt").write_text("few", encoding="utf-8")
    answers = []
    for program in (["agent", "x.yaml"], ["cli", "run", "x.yaml"]):
        command = [sys.executable, "-m", f"andromeda_scale.{program[0]}", *program[1:]]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        answers.append(done.stderr.strip().splitlines()[-1].partition(": ")[2])
    assert answers[0] == answers[1]
    assert said in answers[0]
    assert "x.yaml" in answers[0]
    assert not (tmp_path / "runs").exists()
