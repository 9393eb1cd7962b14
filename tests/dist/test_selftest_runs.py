"""`andromeda-scale selftest` on this machine: real launches, planted and judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from andromeda_scale.hardware import calibration
from andromeda_scale.selftest import read_findings, to_table
from andromeda_scale.selftest.place import next_at_most


@pytest.mark.thorough
def test_selftest_plants_every_row_prints_it_and_keeps_the_null_floors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What passes depends on who else computes here; nothing may break, and numbers be there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = [sys.executable, "-m", "andromeda_scale.cli", "selftest", "--quick", "--device=cpu"]
    done = subprocess.run(
        [*command, "--quiet"], cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True,
        timeout=400, check=False,
    )  # fmt: skip
    run, null = sorted((tmp_path / "runs").glob("selftest-*"))
    assert null.name == f"{run.name}-null"
    assert (run / "selftest.md").read_text(encoding="utf-8") == done.stdout
    assert to_table(read_findings(run / "selftest.parquet")) in done.stdout
    for words in ("computes", "sleeps", "of steps", "the batch", "MB/s", "read ahead", "MiB more"):
        assert words in done.stdout
    assert "a launch ended as" not in done.stdout
    assert "no such number" not in done.stdout
    failed = "| fail" in done.stdout
    assert done.returncode == int(failed), done.stderr
    repeats = pd.concat(pd.read_parquet(path / "repeats.parquet") for path in (run, null))
    assert set(repeats["status"]) == {"ok"}
    (kept,) = calibration.directory().glob("*.json")
    floors = json.loads(kept.read_text())["floors"]
    late = pd.read_parquet(null / "repeats.parquet")["late_s"]
    assert floors["cpu/2"]["blame_s"] == pytest.approx(next_at_most(list(late)))
    assert json.loads((run / calibration.FILE).read_text())["floors"] == floors
