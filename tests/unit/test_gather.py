"""One run of the runs of an array's tasks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_files import make_case, write_plan

from andromeda_scale.launch import gather
from andromeda_scale.launch.run_dir import RunDir


def test_a_task_whose_plan_is_damaged_costs_its_case_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [make_case("ddp", 1), make_case("ddp", 2)]
    write_plan(tmp_path, cases, 1)
    for index, case in enumerate(cases):
        task = tmp_path / gather.TASKS / str(index)
        ended = task / "cases" / case.case_id / "0"
        ended.mkdir(parents=True)
        (ended / "status.json").write_text(json.dumps({"status": "oom", "cause": "too large"}))
        write_plan(task, [case], 1)
    (tmp_path / gather.TASKS / "0" / "plan.json").write_bytes(b"\xff{")
    run = RunDir.open(tmp_path)
    gather.gather(run)
    assert {item.case_id: word for item, word in run.statuses()} == {
        cases[0].case_id: "pending",
        cases[1].case_id: "oom",
    }
    said = capsys.readouterr().err
    assert said.startswith("problem: ")
    assert "tasks/0" in said
