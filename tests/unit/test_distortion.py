"""What debugging leaves in a shell is said before a run, and beside its numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from merging import ENVIRONMENT
from refusals import GOOD, TWO_CORES
from run_files import make_case, rank_lines, write_plan, write_repeat
from typer.testing import CliRunner

from andromeda_scale.cli import app
from andromeda_scale.commands.doctor import examine
from andromeda_scale.hardware.distortion import NAMES, distortions
from andromeda_scale.hardware.environment import relevant_variables
from andromeda_scale.launch.driver import Outcome
from andromeda_scale.merge import merge_run

DETAIL = "TORCH_DISTRIBUTED_DEBUG=DETAIL: ranks compare every collective before it starts"


@pytest.fixture(autouse=True)
def _a_plain_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("name", "value", "on"),
    [
        ("TORCH_DISTRIBUTED_DEBUG", "DETAIL", {"cpu", "cuda"}),
        ("TORCH_DISTRIBUTED_DEBUG", "INFO", set()),
        ("CUDA_LAUNCH_BLOCKING", "1", {"cuda"}),
        ("CUDA_LAUNCH_BLOCKING", "0", set()),
        ("NCCL_P2P_DISABLE", "1", {"cuda"}),
        ("NVIDIA_TF32_OVERRIDE", "0", {"cuda"}),
        ("NVIDIA_TF32_OVERRIDE", "1", set()),
        ("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "100", set()),
        ("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "50", {"cuda"}),
        ("PYTHONMALLOC", "pymalloc_debug", {"cpu", "cuda"}),
        ("PYTHONMALLOC", "malloc", set()),
        ("ATEN_CPU_CAPABILITY", "default", {"cpu"}),
        ("ONEDNN_MAX_CPU_ISA", "ALL", set()),
    ],
)
def test_a_variable_distorts_by_its_value_where_the_device_minds(
    name: str, value: str, on: set[str]
) -> None:
    found = {device for device in ("cpu", "cuda") if distortions({name: value}, device)}
    assert found == on
    assert not distortions({name: value}, "cuda", asked=[name])


def test_each_is_recorded() -> None:
    assert relevant_variables(dict.fromkeys(NAMES, "1")) == dict.fromkeys(sorted(NAMES), "1")


def _run(directory: Path, distorted: int, **settings: Any) -> list[str]:
    """Problems of a run of three launches, so many of them in a shell for debugging."""
    case = make_case("ddp", **settings)
    write_plan(directory, [case], 3)
    for repeat in range(3):
        variables = {"TORCH_DISTRIBUTED_DEBUG": "DETAIL"} if repeat < distorted else {}
        environment = ENVIRONMENT | {"variables": variables}
        write_repeat(directory, case, repeat, rank_lines(0, [0.1] * 4), environment=environment)
    return merge_run(directory).problems


def test_the_table_says_it_once_and_of_how_many_launches(tmp_path: Path) -> None:
    (problem,) = _run(tmp_path / "all", 3)
    assert problem.startswith(DETAIL)
    problems = _run(tmp_path / "some", 2)
    assert problems[0].startswith(f"in 2 of 3 launches {DETAIL}")
    assert "variables.TORCH_DISTRIBUTED_DEBUG is not one value" in problems[1]
    assert not _run(tmp_path / "none", 0)


def test_what_a_suite_asks_for_is_a_setting(tmp_path: Path) -> None:
    assert not _run(tmp_path, 3, env={"TORCH_DISTRIBUTED_DEBUG": "DETAIL"})


@pytest.mark.parametrize("variables", [None, 7, {"CUDA_LAUNCH_BLOCKING": 1}])
def test_variables_that_are_no_text_say_nothing(tmp_path: Path, variables: Any) -> None:
    case = make_case("ddp")
    write_plan(tmp_path, [case], 1)
    environment = json.loads(json.dumps(ENVIRONMENT)) | {"variables": variables}
    write_repeat(tmp_path, case, 0, rank_lines(0, [0.1] * 4), environment=environment)
    assert not merge_run(tmp_path).problems


def test_it_is_said_before_the_first_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("andromeda_scale.hardware.machine.detect_machine", lambda: TWO_CORES)
    monkeypatch.setattr("andromeda_scale.launch.driver.run", lambda *_, **__: Outcome({}))
    Path("x.yaml").write_text(GOOD, encoding="utf-8")
    monkeypatch.setenv("TORCH_DISTRIBUTED_DEBUG", "DETAIL")
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")  # nothing to a CPU
    said = CliRunner().invoke(app, ["run", "x.yaml", "--run-dir", "run"]).stderr
    assert said.splitlines()[0].startswith(f"problem: {DETAIL}")
    assert "CUDA_LAUNCH_BLOCKING" not in said
    asked = ["--set", "env.TORCH_DISTRIBUTED_DEBUG=OFF"]
    done = CliRunner().invoke(app, ["run", "x.yaml", "--run-dir", "other", *asked])
    assert "problem: TORCH" not in done.stderr


def test_the_doctor_names_it_with_what_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_DISTRIBUTED_DEBUG", "DETAIL")
    monkeypatch.setenv("PYTHONTRACEMALLOC", "1")
    (check,) = [
        check
        for _, check in zip(range(6), examine(tmp_path), strict=False)
        if check.name == "variables"
    ]
    assert not check.ok
    assert check.remedy == "unset PYTHONTRACEMALLOC TORCH_DISTRIBUTED_DEBUG"
