"""`submit` on a real SLURM: one allocation, nested worlds, one table; every value quoted."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
from cluster import Cluster
from submitted import Login, acting_template

from andromeda_scale.launch import jobs
from andromeda_scale.suite.resources import TOP

HOSTILE = """a b"c'd$(touch pwned)`touch pwned`;touch pwned #\\e"""


class Followed(NamedTuple):
    login: Login
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def followed(running: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Followed]:
    """A suite that was submitted, and followed to its end, from a folder with an evil name and
    with evil values."""
    folder = tmp_path_factory.mktemp("followed") / "a b'$(touch pwned)"
    folder.mkdir()
    shipped = (TOP / "slurm" / "allocation.sbatch").read_text(encoding="utf-8")
    shouting = shipped.replace("@setup@", 'module() { echo "$@"; }\n@setup@')
    (folder / "mine.sbatch").write_text(shouting, encoding="utf-8")
    section = {"nodes": 3, "time": "10:00", "gres": "gpu:1", "template": "mine.sbatch"}
    section |= {"modules": [HOSTILE], "extra": [f"--comment={HOSTILE}"]}
    login = Login(running, folder, f"world: [1, 2x1]\nslurm: {json.dumps(section)}\n")
    once = ["--set", "measure.repeats=1"]
    done = login.type("submit", "x.yaml", "--run-dir", "run", "--wait", *once)
    yield Followed(login, done)
    running.mend()


def test_a_suite_becomes_one_table_over_nested_worlds_of_one_allocation(followed: Followed) -> None:
    login, done = followed
    assert done.returncode == 0, done.stdout + done.stderr
    assert "does it run on nodes?" in done.stdout
    assert login.words() == {("1", 0): "ok", ("2x1", 0): "ok"}
    # Every world is a prefix of the same nodes, in SLURM's order.
    for line in login.lines("start"):
        assert line["host"] == f"n{line['rank'] + 1}"
    job_ids = {line["values"]["environment"]["slurm"]["job_id"] for line in login.lines("node")}
    shown = login.type("status", "run").stdout
    assert job_ids == {shown.partition(":")[0].removeprefix("job ")}
    assert "COMPLETED on n[1-3]" in shown
    assert "2 of 2 launches ended" in shown


def test_values_of_a_suite_reach_sbatch_as_they_are_and_no_shell(followed: Followed) -> None:
    login, _ = followed
    (job_id,) = jobs.of_run(login.run)
    assert HOSTILE in login.cluster.ask("scontrol", "show", "job", job_id)
    assert f"load {HOSTILE}\n" in login.log()
    assert not list(login.folder.parent.rglob("pwned"))
    assert not Path("pwned").exists()


def test_the_jobs_of_a_login_see_no_module_of_the_folder_they_run_in(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    path = Login(cluster, tmp_path, "").environment["PYTHONPATH"]
    assert "" not in path.split(os.pathsep)


def test_what_sbatch_refuses_is_said_and_no_job_is_recorded(
    cluster: Cluster, tmp_path: Path
) -> None:
    login = Login(cluster, tmp_path, "world: 1\nslurm: {partition: nosuch}")
    done = login.type("submit", "x.yaml", "--run-dir", "run")
    assert done.returncode == 2
    assert "nosuch" in done.stderr or "partition" in done.stderr
    assert not (tmp_path / "run/slurm/jobs.jsonl").exists()


@pytest.mark.thorough
def test_wait_leaves_with_status_1_when_nothing_was_measured(
    cluster: Cluster, tmp_path: Path
) -> None:
    more = f"world: 1\nenv: {{ACT_0: kill}}\nslurm: {{{acting_template(tmp_path)}}}"
    login = Login(cluster, tmp_path, more)
    assert login.type("submit", "x.yaml", "--run-dir", "run", "--wait").returncode == 1
    assert login.words() == {("1", 0): "crashed", ("1", 1): "crashed"}


@pytest.mark.thorough
def test_an_array_runs_each_case_in_a_job_of_its_size_and_merges_one_table(
    cluster: Cluster, tmp_path: Path
) -> None:
    login = Login(cluster, tmp_path, "world: [1, 2x1]\nslurm: {array: true}")
    once = ["--set", "measure.repeats=1"]
    done = login.type("submit", "x.yaml", "--run-dir", "run", "--wait", *once)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "does it run on nodes?" in done.stdout
    assert login.words() == {("1", 0): "ok", ("2x1", 0): "ok"}
    assert len(login.type("status", "run").stdout.split("COMPLETED")) == 1 + 3
    cases = pd.read_parquet(tmp_path / "run" / "results.parquet").set_index("world_size")
    assert cases.loc[2, "base_world_size"] == 1
    again = login.type("resume", "run", "--wait")  # nothing is left to run: the same table
    assert again.returncode == 0
    assert pd.read_parquet(tmp_path / "run" / "results.parquet")["step_time_s"].tolist() == (
        cases["step_time_s"].tolist()
    )
