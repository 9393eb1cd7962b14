"""`report --to`: the trackers read back what the results hold."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from full_disk import no_room
from noisy_runs import noisy_run
from run_files import make_case, write_plan
from typer.testing import CliRunner

from andromeda_scale.cli import app
from andromeda_scale.merge import merge_run

REPLAY = Path(__file__).parents[1] / "replay" / "run"
DDP_2 = "ddp at world 2"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(REPLAY, tmp_path / "run"))


def export(run: Path, to: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["report", str(run), "--to", to])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout if code == 0 else done.stderr


@pytest.mark.parametrize("other", ["--output=x", "--table=memory", "--format=csv", "--fairness"])
def test_an_export_takes_no_option_that_it_would_ignore(run: Path, other: str) -> None:
    done = CliRunner().invoke(app, ["report", str(run), "--to", "tensorboard", other])
    assert done.exit_code == 2
    assert "--to tensorboard: sends every number; leave the other options out" in done.stderr
    assert not (run / "tensorboard").exists()


@pytest.mark.slow
def test_tensorboard_shows_numbers_by_world_and_every_step(run: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # a second export takes the place of the first
        said = export(run, "tensorboard")
    assert said == f"3 cases: tensorboard --logdir {run}/tensorboard\n"
    results = merge_run(run)
    events: Any = EventAccumulator(str(run / "tensorboard" / DDP_2)).Reload()

    def values(tag: str) -> list[tuple[int, float]]:
        found = events.Tensors(tag)
        return [(one.step, float(one.tensor_proto.float_val[0])) for one in found]

    cases = results.cases.set_index(["strategy", "world_size"])
    for name in ("efficiency", "efficiency_low", "tokens_per_s"):
        assert values(name) == [(2, pytest.approx(float(cases.loc[("ddp", 2), name])))]
    case_id = cases.loc[("ddp", 2), "case_id"]
    steps = results.steps
    of_launch = steps[steps["case_id"].eq(case_id) & steps["repeat"].eq(1)]
    assert values("step_time_s/launch 1") == [
        (int(row["step"]), pytest.approx(row["step_time_s"]))
        for row in of_launch.to_dict("records")
    ]


def test_a_case_of_a_name_longer_than_a_file_may_have_is_exported(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    cases = [make_case("ddp", 1, options={"x": one * 300}) for one in ("\u00e9", "a")]
    assert export(noisy_run(tmp_path, [(case, 0.1) for case in cases], repeats=1), "tensorboard")
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_a_full_disk_is_said_with_its_path_and_no_stack(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    with no_room():
        said = export(run, "tensorboard", code=2)
    assert f"--to tensorboard: {run}/tensorboard: cannot be written (File too large)" in said
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.thorough
def test_mlflow_has_a_run_a_case(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (run / "mlruns").as_uri())
    export(run, "mlflow")
    client = mlflow.MlflowClient(tracking_uri=(run / "mlruns").as_uri())
    experiment = client.get_experiment_by_name(merge_run(run).suite_name)
    runs = {one.info.run_name: one for one in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"ddp at world 1", DDP_2, "fsdp2 at world 2"}
    found = runs[DDP_2]
    assert found.data.params["strategy"] == "ddp"
    assert found.data.metrics["efficiency"] == pytest.approx(0.9)
    assert len(client.get_metric_history(found.info.run_id, "step_time_s_launch_0")) == 6


@pytest.mark.thorough
def test_wandb_writes_a_run_a_case_offline(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    export(run, "wandb")
    files = list(run.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 3
    found = b"".join(file.read_bytes() for file in files)
    for text in (DDP_2, "efficiency_common", "step_time_s/launch 2"):
        assert text.encode() in found


@pytest.mark.parametrize("to", ["tensorboard", "mlflow", "wandb"])
def test_a_library_that_is_not_there_is_named_with_its_remedy(
    run: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    for name in ("tensorboard", "tensorboard.summary", "mlflow", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
    said = export(run, to, code=2)
    assert f"--to {to}: " in said
    assert "install it with `pip install " in said


def test_a_run_without_a_measured_case_exports_nothing(tmp_path: Path) -> None:
    write_plan(tmp_path, [make_case("ddp", 1)])
    assert "no case was measured" in export(tmp_path, "tensorboard", code=2)
    assert not (tmp_path / "tensorboard").exists()
