"""Whole sweeps in which one strategy has gradients of twice the size, and what a resume does."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from andromeda_scale.hardware.machine import Machine
from andromeda_scale.launch import driver
from andromeda_scale.launch.run_dir import RunDir
from andromeda_scale.merge import merge_run
from andromeda_scale.planning.plan import make_plan
from andromeda_scale.report.scaling import scaling_table
from andromeda_scale.suite.config import Suite
from andromeda_scale.suite.validation import validate

pytestmark = pytest.mark.thorough

MODEL = {
    "family": "llama",
    "vocab_size": 256,
    "d_model": 32,
    "d_ff": 64,
    "num_layers": 4,
    "num_heads": 4,
}
WORKER = "faults:ddp_twice"  # one strategy is wrong, the others are right


@pytest.fixture(autouse=True)
def _found_by_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def start(path: Path, **keys: Any) -> RunDir:
    """A run of tiny cases on two ranks."""
    suite: dict[str, Any] = {
        "question": "same model?",
        "model": MODEL,
        "train": {"seq_len": 16, "micro_batch_size": 2},
        "world": [2],
        "measure": {
            "warmup": {"min_steps": 5, "max_steps": 5},
            "steps": 2,
            "repeats": 1,
            "profile_steps": 0,
        },
        "collect": [],
        "device": "cpu",
    }
    machine = Machine(cpu_cores=2, memory_bytes=1 << 34)
    plan = make_plan(validate(Suite, suite | keys, "x"), "x", machine)
    return RunDir.create(path, plan, "", {"code": "test"})


def launch(run: RunDir, **options: Any) -> None:
    outcome = driver.run(run, quiet=True, **{"worker": WORKER} | options)
    assert outcome.error is None


def rows(run: RunDir) -> dict[str, dict[str, Any]]:
    """The results' rows by strategy."""
    cases = merge_run(run.path).cases
    return {row["strategy"]: row for row in cases.to_dict("records")}


def roles(run: RunDir) -> Counter[tuple[str, str]]:
    return Counter((item.role, word) for item, word in run.statuses())


def test_shallow_finds_it_on_two_layers_and_does_not_launch_the_case(tmp_path: Path) -> None:
    run = start(tmp_path / "run", parity="shallow", axes={"strategy": ["ddp", "fsdp2"]})
    launch(run)
    found = rows(run)
    assert (found["ddp"]["status"], found["ddp"]["parity"]) == ("diverged", "diverged")
    assert found["ddp"]["parity_cause"].startswith("on the shallow model: gradient norm ")
    assert found["ddp"]["parity_cause"].endswith("gradients summed instead of averaged?")
    assert (found["fsdp2"]["status"], found["fsdp2"]["parity"]) == ("ok", "ok")
    assert 0 <= found["fsdp2"]["parity_norm_difference"] < 1e-6
    (ddp,) = (i for i in run.plan.repeats if i.role == "measure" and "_ddp_" in i.case_id)
    assert not list(run.case_dir(ddp).glob("node-*.jsonl"))
    assert any(
        note.startswith("parity shallow: losses within ")
        for note in scaling_table(merge_run(run.path)).notes
    )
    # What failed is tried again with its parity launch; the worker is right now.
    launch(run, only_failed=True, worker="andromeda_scale.worker:main")
    assert rows(run)["ddp"]["parity"] == "ok"
    assert set(roles(run)) == {("reference", "ok"), ("parity", "ok"), ("measure", "ok")}


def test_cross_names_the_odd_one_of_three(tmp_path: Path) -> None:
    run = start(tmp_path / "run", parity="cross", axes={"strategy": ["ddp", "fsdp2", "zero1"]})
    launch(run)
    found = rows(run)
    assert {name: row["parity"] for name, row in found.items()} == {
        "ddp": "diverged",
        "fsdp2": "ok",
        "zero1": "ok",
    }
    assert found["ddp"]["cause"].endswith("2 of 3 cases agree")


def test_full_finds_it_and_a_lost_reference_costs_only_its_check(tmp_path: Path) -> None:
    run = start(tmp_path / "run", axes={"strategy": ["ddp", "fsdp2"]})
    reference = run.plan.repeats[0]
    attempt = run.begin(reference, 0)
    run.finish(reference, attempt, {"status": "crashed", "cause": "killed by SIGKILL"})
    for item in run.plan.repeats[1:]:
        run.finish(item, run.begin(item, 1), {"status": "interrupted"})
    kept = (run.case_dir(reference) / "status.json").read_text()
    launch(run)  # a resume: the reference is needed, so it is tried again
    assert (run.case_dir(reference) / "status.json").read_text() != kept
    found = rows(run)
    assert found["ddp"]["parity"] == "diverged"
    assert "2 times the reference's" in found["ddp"]["cause"]
    assert found["fsdp2"]["parity"] == "ok"
    file = next(run.case_dir(reference).glob("node-*.jsonl"))
    file.write_text("".join(line for line in file.open() if '"losses"' not in line))
    (fsdp2,) = (i for i in run.plan.repeats if "_fsdp2_" in i.case_id)
    run.finish(fsdp2, run.begin(fsdp2, 2), {"status": "interrupted"})
    launch(run)
    row = rows(run)["fsdp2"]
    assert (row["status"], row["parity"]) == ("ok", "unavailable")
    assert row["parity_cause"] == "repeat 0 compared no losses: the reference is ok"


def test_a_parity_launch_without_its_reference_is_not_made(tmp_path: Path) -> None:
    run = start(tmp_path / "run", parity="shallow", strategy="fsdp2", limits={"timeout_s": 60})
    reference, parity_launch, measured = run.plan.repeats
    plan = run.plan.model_copy(
        update={
            "repeats": (
                reference.model_copy(update={"skip": "needs more memory"}),
                parity_launch,
                measured,
            )
        }
    )
    (run.path / "plan.json").write_text(plan.model_dump_json())
    run = RunDir.open(run.path)
    launch(run)
    status = json.loads((run.case_dir(parity_launch) / "status.json").read_text())
    assert (status["status"], status["ranks"]) == ("unavailable", {})
    row = rows(run)["fsdp2"]
    assert (row["status"], row["parity"]) == ("ok", "unavailable")
    assert row["parity_cause"] == (
        "the parity launch is unavailable: its reference is skipped: needs more memory"
    )
