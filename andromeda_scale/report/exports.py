"""Results to the trackers that teams have: TensorBoard, MLflow, Weights & Biases. No torch.

Each is an extra, imported where it is used, and set up as its own variables say
(MLFLOW_TRACKING_URI, WANDB_MODE, ...). Names are those of metrics.py; every tracker gets

    of each case            settings and numbers, intervals beside them
    of each launch          the time of every step, warm-up first
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from andromeda_scale.analysis.results import Results
from andromeda_scale.errors import UserError
from andromeda_scale.metrics import METRICS, SETTINGS
from andromeda_scale.metrics.formats import clean
from andromeda_scale.report.rows import arrange, case_name, has

LONGEST = 150  # bytes of a folder's name; file systems take 255
_BOUNDS = ("", "_low", "_high")


def export(results: Results, to: str, run_dir: Path) -> str:
    """Send a run's measured cases; says where they went. Raises UserError without the library, or
    without a measured case."""
    rows, axes = arrange(results.cases)
    cases = {clean(case_name(row, axes)): row for row in rows if has(row, "tokens_per_s")}
    if not cases:
        raise UserError(f"{run_dir}: no case was measured: there is nothing to export")
    suite = clean(results.suite_name) or "andromeda_scale"
    try:
        return EXPORTERS[to](cases, results.steps, suite, run_dir)
    except OSError as error:
        raise UserError(
            f"--to {to}: {error.filename or run_dir / to}: cannot be written "
            f"({error.strerror or error}); free space there, or mend who may write it"
        ) from None


Cases = Mapping[str, dict[str, Any]]  # by name


def _tensorboard(cases: Cases, steps: pd.DataFrame, suite: str, run_dir: Path) -> str:
    """A TensorBoard run a case: its numbers at the step of its world size, so that worlds of one
    strategy lie beside each other, and a series of steps a launch."""
    writers = _library("tensorboard.summary", "tensorboard")
    folder = run_dir / "tensorboard"
    for name, row in cases.items():
        place = folder / _file_name(name, row["case_id"])
        for old in place.glob("events.out.tfevents.*"):  # of an earlier export of this run
            old.unlink()
        with _silent_threads():
            writer = writers.Writer(str(place))
            for metric, value in _numbers(row):
                writer.add_scalar(metric, value, int(row["world_size"]))
            for repeat, index, seconds in _steps(steps, row["case_id"]):
                writer.add_scalar(f"step_time_s/launch {repeat}", seconds, index)
            writer.close()
    return f"{len(cases)} cases: tensorboard --logdir {folder}"


@contextmanager
def _silent_threads() -> Iterator[None]:
    """A writer's thread prints no stack of the error that its writer raises too."""
    before = threading.excepthook
    threading.excepthook = lambda failed: None
    try:
        yield
    finally:
        threading.excepthook = before


def _mlflow(cases: Cases, steps: pd.DataFrame, suite: str, run_dir: Path) -> str:
    """An MLflow run a case in an experiment named after the suite."""
    mlflow = _library("mlflow", "mlflow-skinny")
    try:
        mlflow.set_experiment(suite)
    except mlflow.MlflowException as error:
        raise UserError(
            f"--to mlflow: {_first_line(error)}; set MLFLOW_TRACKING_URI to your server, or "
            "install all of mlflow, which brings a database"
        ) from None
    client = mlflow.MlflowClient()
    for name, row in cases.items():
        with mlflow.start_run(run_name=name) as run:
            mlflow.log_params(_settings(row))
            mlflow.set_tag("case_id", row["case_id"])
            mlflow.log_metrics(dict(_numbers(row)))
            points = [
                mlflow.entities.Metric(f"step_time_s_launch_{repeat}", seconds, 0, index)
                for repeat, index, seconds in _steps(steps, row["case_id"])
            ]
            for start in range(0, len(points), 1000):  # MLflow's limit of a batch
                client.log_batch(run.info.run_id, metrics=points[start : start + 1000])
    return f"{len(cases)} cases: experiment {suite} of {mlflow.get_tracking_uri()}"


def _wandb(cases: Cases, steps: pd.DataFrame, suite: str, run_dir: Path) -> str:
    """A W&B run a case in a project named after the suite; grouped by this run's directory."""
    wandb = _library("wandb", "wandb")
    quiet = wandb.Settings(quiet=True)
    for name, row in cases.items():
        try:
            run = wandb.init(
                project=suite,
                name=name,
                group=run_dir.name,
                config=_settings(row),
                dir=str(run_dir),
                settings=quiet,
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"--to wandb: {_first_line(error)}; `wandb login`, or WANDB_MODE=offline and "
                "`wandb sync` later"
            ) from None  # fmt: skip
        with run:
            for repeat, index, seconds in _steps(steps, row["case_id"]):
                run.log({f"step_time_s/launch {repeat}": seconds, f"step/launch {repeat}": index})
            run.summary.update(dict(_numbers(row)))
    return f"{len(cases)} cases: project {suite}"


def _file_name(name: str, case_id: str) -> str:
    """A case's name as a file system takes it: options may be of any length."""
    text = name.replace("/", "_")
    if len(text.encode()) <= LONGEST:
        return text
    return f"{text.encode()[:LONGEST].decode(errors='ignore')} {case_id[-8:]}"


Exporter = Callable[[Cases, pd.DataFrame, str, Path], str]
# A new tracker is a function, one line here and its name in the command line's `Tracker`.
EXPORTERS: dict[str, Exporter] = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}


def _library(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"--to {module.partition('.')[0]}: {error}; install it with `pip install {package}`"
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """What a case has of METRICS, with the ends of intervals."""
    for metric in METRICS:
        for name in (f"{metric}{bound}" for bound in _BOUNDS):
            if has(row, name):
                yield name, float(row[name])


def _settings(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a case was."""
    names = ("world_size", "nodes", *SETTINGS)
    return {name: clean(str(row[name])) for name in names if has(row, name)}


def _steps(steps: pd.DataFrame, case_id: str) -> Iterator[tuple[int, int, float]]:
    """(launch, step, seconds) of a case."""
    if steps.empty:
        return
    of_case = steps[steps["case_id"] == case_id]
    for row in of_case.to_dict("records"):
        yield int(row["repeat"]), int(row["step"]), float(row["step_time_s"])
