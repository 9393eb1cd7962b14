"""The commands that start nothing, and which directory a run goes to."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from merging import half_measured_run
from run_files import make_case, write_plan
from typer.testing import CliRunner

from andromeda_scale import api
from andromeda_scale.cli import app
from andromeda_scale.commands import choosing, doctor, sweep
from andromeda_scale.commands.looking import Kind
from andromeda_scale.commands.showing import Shown
from andromeda_scale.contracts.planned import Plan, PlannedRepeat
from andromeda_scale.errors import UserError
from andromeda_scale.hardware import environment
from andromeda_scale.hardware.machine import Machine
from andromeda_scale.launch.run_dir import RunDir
from andromeda_scale.metrics import METRICS
from andromeda_scale.planning.plan import make_plan
from andromeda_scale.planning.suite_file import read_suite
from andromeda_scale.planning.table import duration, summary
from andromeda_scale.registry import COLLECTORS, STRATEGIES
from andromeda_scale.report import catalogue
from andromeda_scale.report.exports import EXPORTERS

TWO_CORES = Machine(cpu_cores=2, memory_bytes=16 << 30)
WHERE = Path("runs/quickstart-1")


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("andromeda_scale.hardware.machine.detect_machine", lambda: TWO_CORES)


def invoke(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout


def quickstart(*axes: str) -> Plan:
    suite, name, *_ = read_suite("quickstart", ["data.source=random"], axes)
    return make_plan(suite, name, TWO_CORES)


def end(run: RunDir, statuses: dict[str, str], **fields: Any) -> None:
    """Let repeats of a run end: case id -> status word."""
    for item in run.plan.repeats:
        if item.case_id in statuses and item.skip is None:
            attempt = run.begin(item, 0)
            run.finish(item, attempt, {"status": statuses[item.case_id], **fields})


def started(run: RunDir, item: PlannedRepeat) -> Path:
    """An attempt whose only rank has ended."""
    attempt = run.begin(item, 0)
    end = {"v": 1, "case_id": item.case_id, "repeat": item.repeat, "rank": 0, "kind": "end"}
    (attempt / "node-0.jsonl").write_text(json.dumps({**end, "status": "ok"}))
    return attempt


# Commands that print


def test_help_names_every_command() -> None:
    text = invoke("--help")
    for command in ("run", "plan", "report", "status", "resume", "list", "doctor", "schema"):
        assert re.search(rf"\b{command}\b", text)


def test_plan_prints_cases_memory_skips_and_launches() -> None:
    text = invoke("plan", "quickstart", "--set", "data.source=random")
    assert "Which strategy trains a small Andromeda fastest here" in text
    assert "skipped: single runs on one rank only" in text
    assert "MiB" in text
    assert "35 launches: 33 of cases, 2 parity references; 1 cases skipped" in text
    assert "time: not estimated" in text
    assert "order shuffled by seed and repeat" in text
    assert not list(Path.cwd().iterdir())  # a dry run writes nothing


def test_plan_shows_the_settings_that_tell_cases_apart() -> None:
    text = invoke("plan", "quickstart", "--set", "data.source=random",
                  "--axis", "train.seq_len=32,64", "--axis", "env.A=[red],b")  # fmt: skip
    assert "seq_len=32" in text
    assert "seq_len=64" in text
    assert "A=[red]" in text  # never read as markup


def test_plan_knows_the_time_of_cases_that_ended_on_this_hardware_and_of_no_other() -> None:
    plan = quickstart("world=1", "strategy=ddp,single")
    here = environment.fingerprint(environment.collect())
    first, *others = [
        case_id for case_id in plan.cases if "_ddp_" in case_id or "single" in case_id
    ]
    run = RunDir.create(WHERE, plan, "", here)
    elsewhere = RunDir.create("runs/quickstart-2", plan, "", {**here, "cpu_model": "another"})
    arguments = ["quickstart", "--set", "data.source=random", "--axis", "world=1"]
    arguments += ["--axis", "strategy=ddp,single"]
    end(elsewhere, dict.fromkeys(plan.cases, "ok"), seconds=900.0)
    end(run, {others[0]: "crashed"}, seconds=900.0)
    assert "time: not estimated, no launch of these cases has ended" in invoke("plan", *arguments)
    end(run, {first: "ok"}, seconds=20.0)
    known = sum(item.case_id == first for item in plan.repeats)
    text = invoke("plan", *arguments)
    assert f"time: about {20 * known} s for {known} launches, and" in text
    end(run, dict.fromkeys(plan.cases, "ok"), seconds=10.0)
    launched = len(plan.repeats)
    text = invoke("plan", *arguments)
    assert f"time: about {10 * launched} s, the medians of {launched} earlier launches" in text


def test_plan_of_what_cannot_run_here_still_says_why() -> None:
    text = invoke("plan", "quickstart", "--set", "device=cuda", "--set", "data.source=random")
    assert text.count("needs 2 GPUs per node, 0 here") == 5
    assert "nothing to launch: all 12 cases are skipped here" in text


def test_list_names_everything_there_is() -> None:
    assert [line.split()[0] for line in invoke("list", "strategies").splitlines()] == (
        list(STRATEGIES)
    )
    assert "needs deepspeed" in invoke("list", "strategies")
    assert "reshard_after_forward=True" in invoke("list", "strategies")
    collectors = [line.split()[0] for line in invoke("list", "collectors").splitlines()]
    assert collectors == list(COLLECTORS)
    assert [line.split()[0] for line in invoke("list", "metrics").splitlines()] == list(METRICS)
    assert "cs336" in invoke("list", "suites")
    # Published count of the shape; CHECKLIST of sizes: 128.63 M parameters.
    assert re.search(r"cs336-small +llama, 0\.129 B parameters", invoke("list", "models"))


def test_list_alone_names_every_kind_and_what_is_of_it() -> None:
    *kinds, more = invoke("list").splitlines()
    listed = {kind: names for kind, _, names in (line.partition(": ") for line in kinds)}
    assert list(listed) == [kind.value for kind in Kind]
    assert listed["strategies"] == ", ".join(STRATEGIES)
    assert "quickstart" in listed["suites"]
    assert "andromeda-scale list models|suites|" in more


def test_the_doctor_names_each_tracker_with_the_package_it_needs() -> None:
    assert doctor._TRACKERS.keys() == EXPORTERS.keys()
    check = doctor._tracker("mlflow", "a-package-that-nobody-has")
    assert (check.ok, check.needed) == (False, False)
    assert "report --to mlflow" in check.detail
    assert check.remedy == "pip install a-package-that-nobody-has"
    assert doctor._tracker("x", "typer").ok


def test_every_table_has_its_name_on_the_command_line_and_in_python() -> None:
    names = list(catalogue.TABLES)
    assert [shown.value for shown in Shown] == names
    others = ["fairness", "cases", "repeats", "ranks", "steps"]  # which are no tables of a report
    assert list(api.TABLES) == [*names, *others]


@pytest.mark.parametrize("key", ["train.seq_len", "world", "strategy", "model", "train.precision"])
def test_an_axis_in_brackets_is_refused_with_the_axis_without_them(key: str) -> None:
    with pytest.raises(UserError, match=rf"; drop the brackets: --axis {key}=1, 2$"):
        read_suite("quickstart", (), [f"{key}=[1, 2]"])


def test_schema_is_json() -> None:
    schema = json.loads(invoke("schema"))
    assert schema["properties"]["train"]
    assert "world" in schema["required"]


def test_status_says_what_ended_what_failed_and_how_long_is_left() -> None:
    plan = quickstart("strategy=ddp,fsdp2", "world=1")
    run = RunDir.create("r", plan, "", {})
    first = next(i for i in plan.repeats if i.role == "measure")
    text = invoke("status", "r")
    assert "quickstart: 0 of 7 launches ended" in text
    assert "time left: not estimated yet" in text
    reference = next(i for i in plan.repeats if i.role == "reference")
    run.finish(reference, run.begin(reference, 0), {"status": "ok", "seconds": 0.5})
    assert "time left: not estimated yet" in invoke("status", "r")  # a reference is no case
    run.finish(first, started(run, first), {"status": "ok", "seconds": 30.0})
    second = next(i for i in plan.repeats if i.role == "measure" and i.case_id != first.case_id)
    run.finish(second, run.begin(second, 0), {"status": "oom", "cause": "rank 0: 3 GiB"})
    text = invoke("status", "r")
    assert "3 of 7 launches ended" in text
    assert "2 ok, 1 oom, 4 pending" in text
    assert f"oom: {second.case_id} repeat 0: rank 0: 3 GiB" in text
    assert "launch these again: andromeda-scale resume" in text
    assert "time left: about 2 min" in text  # 4 launches of 30 s
    run.begin(second, 1)
    under_way = f"{second.case_id} repeat 0 (launch 1)"
    assert f"its driver is gone: {under_way}" in invoke("status", "r")
    with run.lock():
        assert f"running: {under_way}" in invoke("status", "r")


def test_status_calls_invalid_what_a_merge_does() -> None:
    half_measured_run(Path("r"))
    assert "1 ok" in invoke("status", "r")
    (record,) = Path("r").glob("cases/*/0/node-0.jsonl")
    record.write_bytes(record.read_bytes()[: record.stat().st_size // 2])
    for _ in range(2):
        text = invoke("status", "r")
        assert "1 invalid" in text
        assert "its record lacks the end of a rank" in text
        assert f"launch these again: andromeda-scale resume {Path.cwd()}/r --only failed" in text
        record.write_bytes(b"")
    record.with_name("status.json").write_bytes(b'{"sta')
    assert "interrupted: " in invoke("status", "r")


def test_report_prints_the_table_as_text_markdown_and_csv() -> None:
    half_measured_run(Path("r"))
    assert "What does a rank buy?" in invoke("report", "r")
    assert "| ddp" in invoke("report", "r", "--format", "md")
    rows = list(csv.DictReader(io.StringIO(invoke("report", "r", "--format", "csv"))))
    assert [row["status"] for row in rows] == ["ok", "pending"]
    assert sorted(p.name for p in Path("r").iterdir()) == ["cases", "plan.json"]  # only printed


def test_finish_writes_the_tables_beside_the_records_and_says_where(
    capsys: pytest.CaptureFixture[str],
) -> None:
    half_measured_run(Path("r"))
    assert sweep.finish(Path("r")) == 0
    said = re.search(r"^results: r/(.*)$", capsys.readouterr().out, re.MULTILINE)
    assert said is not None
    there = {path.name for path in Path("r").iterdir()}
    assert set(said[1].split(", ")) == there - {"cases", "plan.json"}


def test_a_run_that_measured_nothing_ends_with_status_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_plan(Path("r"), [make_case()], repeats=1)
    assert sweep.finish(Path("r")) == 1
    assert "results:" not in capsys.readouterr().out


# Where a run goes


def test_a_new_run_gets_a_directory_named_by_suite_and_time() -> None:
    plan = quickstart("world=1")
    path, resumed = choosing.choose(plan, Path("runs"), None)
    assert re.fullmatch(r"runs/quickstart-\d{8}-\d{6}", str(path))
    assert not resumed
    assert not path.exists()  # named, not made
    path.mkdir(parents=True)
    again, _ = choosing.choose(plan, Path("runs"), None)
    assert again != path


def test_the_newest_unfinished_run_of_the_same_cases_is_resumed_unless_new() -> None:
    plan, other = quickstart("world=1"), quickstart("world=2")
    old = RunDir.create(WHERE, plan, "", {})
    RunDir.create("runs/quickstart-2", other, "", {})
    assert choosing.choose(plan, Path("runs"), None) == (WHERE, True)
    assert choosing.choose(plan, Path("runs"), None, new=True)[1] is False
    RunDir.create("runs/quickstart-3", plan, "", {})
    os.utime(old.path / "plan.json", (1, 1))
    assert choosing.choose(plan, Path("runs"), None) == (Path("runs/quickstart-3"), True)


def test_another_number_of_repeats_goes_on_with_the_same_run() -> None:
    suite, name, *_ = read_suite("quickstart", ["data.source=random", "measure.repeats=5"])
    RunDir.create(WHERE, quickstart(), "", {})
    assert choosing.choose(make_plan(suite, name, TWO_CORES), Path("runs"), None) == (WHERE, True)


def test_a_finished_run_is_not_resumed_but_its_failures_can_be_rerun() -> None:
    plan = quickstart("world=1")
    run = RunDir.create(WHERE, plan, "", {})
    words = dict.fromkeys(plan.cases, "ok")
    words[next(iter(plan.cases))] = "crashed"
    end(run, words)
    assert choosing.choose(plan, Path("runs"), None)[1] is False
    chosen = choosing.choose(plan, Path("runs"), None, only_failed=True)
    assert chosen == (WHERE, True)


def test_an_interrupted_repeat_makes_a_run_unfinished() -> None:
    plan = quickstart("world=1")
    run = RunDir.create(WHERE, plan, "", {})
    end(run, dict.fromkeys(plan.cases, "interrupted"))
    assert choosing.choose(plan, Path("runs"), None) == (WHERE, True)


def test_damaged_runs_are_passed_over() -> None:
    plan = quickstart("world=1")
    WHERE.mkdir(parents=True)
    Path("runs/quickstart-1/plan.json").write_text("{", encoding="utf-8")
    assert choosing.choose(plan, Path("runs"), None)[1] is False


def test_a_named_directory_is_taken_as_it_is() -> None:
    plan = quickstart("world=1")
    assert choosing.choose(plan, Path("runs"), Path("mine")) == (Path("mine"), False)
    RunDir.create("mine", plan, "", {})
    assert choosing.choose(plan, Path("runs"), Path("mine")) == (Path("mine"), True)
    with pytest.raises(UserError, match="holds a run already"):
        choosing.choose(plan, Path("runs"), Path("mine"), new=True)


# Words


@pytest.mark.parametrize(
    ("seconds", "text"), [(45, "45 s"), (600, "10 min"), (12_000, "3 h 20 min")]
)
def test_durations_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_summary_bounds_the_time_by_the_limits() -> None:
    # 35 launches x 120 s
    assert any("at most 70 min" in line for line in summary(quickstart(), {}))
