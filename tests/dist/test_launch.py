"""What the launcher makes of ranks that end well, badly, or not at all; real processes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launch_support import (
    WORKER,
    ended,
    make_case,
    make_run,
    start_driver,
    tagged,
    wait_until,
)

from andromeda_scale.contracts.planned import Plan, PlannedRepeat
from andromeda_scale.launch.run_dir import RunDir
from andromeda_scale.suite.config import Limits
from andromeda_scale.suite.world import World

# act of rank 1 -> status, who is named (None: nobody is), and what the cause says. Rank 0 waits
# for rank 1 in an all-reduce, and complains about it.
ENDS = {
    "segfault": ("crashed", 1, "killed by SIGSEGV"),
    "kill": ("crashed", 1, "killed by SIGKILL"),
    "raise": ("crashed", 1, "ValueError: planted: this rank raises"),
    "leave": ("crashed", 1, "left with exit status 0 and no end record"),
    "half_line": ("crashed", 1, "left with exit status 0 and no end record"),
    "oom": ("oom", 1, "planted: no memory"),
    "hang": ("timeout", 1, "rank 1 was late: it alone waited for no other, after step 1 of 5 in w"),
    "silent": ("timeout", 1, "rank 1 was late, before it said anything"),
}


class Sweep:
    """A finished sweep over all acts."""

    def __init__(self, run_dir: RunDir, left_behind: list[Any], exit_code: int) -> None:
        self.run_dir, self.left_behind, self.exit_code = run_dir, left_behind, exit_code
        self.items = {item.case_id.split("_ddp")[0]: item for item in run_dir.plan.repeats}

    def status(self, name: str) -> dict[str, Any]:
        status = self.run_dir.status(self.items[name])
        assert status is not None
        return status

    def lines(self, name: str) -> list[dict[str, Any]]:
        file = self.run_dir.case_dir(self.items[name]) / "node-0.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweep]:
    one = make_case("first", 1)
    reference = make_case("reference", 1)
    cases = [one, *(make_case(act, 2, {1: act}) for act in ENDS), make_case("last", 2)]
    cases.append(make_case("never", 2, {1: "silent", 0: "silent"}, limits=Limits(timeout_s=1)))
    cases.append(make_case("variables", 1, {0: "environment"}, env={"PLANTED": "yes"}))
    cases.append(make_case("large", World(nodes=2, ranks_per_node=1)))
    items = [PlannedRepeat(case_id=reference.case_id, repeat=0, role="reference")]
    items += [
        PlannedRepeat(case_id=c.case_id, repeat=0, reference_id=reference.case_id) for c in cases
    ]
    planned = {case.case_id: case for case in [reference, *cases]}
    plan = Plan(suite_name="acts", question="?", cases=planned, repeats=tuple(items))
    run_dir = RunDir.create(tmp_path_factory.mktemp("acts") / "run", plan, "", {})
    with tagged() as (environment, survivors):
        code = start_driver(run_dir, environment).wait(120)
        yield Sweep(run_dir, survivors(), code)


@pytest.mark.parametrize("act", ENDS)
def test_a_rank_that_fails_gives_the_repeat_its_status_and_is_named(sweep: Sweep, act: str) -> None:
    status, rank, cause = ENDS[act]
    found = sweep.status(act)
    assert (found["status"], found["rank"]) == (status, rank)
    assert cause in found["cause"]
    assert found["host"] == socket.gethostname()


def test_the_sweep_goes_on_after_failures(sweep: Sweep) -> None:
    assert sweep.exit_code == 0
    assert sweep.status("first")["status"] == sweep.status("last")["status"] == "ok"


def test_nothing_is_left_behind_by_ranks_that_hung_crashed_or_started_others(sweep: Sweep) -> None:
    assert sweep.left_behind == []
    assert not list((sweep.run_dir.path / "running").glob("*"))


def test_ranks_that_never_beat_end_at_the_time_limit(sweep: Sweep) -> None:
    found = sweep.status("never")
    assert found["status"] == "timeout"
    assert "not finished after 1 s; rank 0, 1 were late" in found["cause"]


def test_the_stderr_tail_shows_where_a_crashed_and_a_hung_rank_stood(sweep: Sweep) -> None:
    assert any("in _raise" in line for line in sweep.status("raise")["stderr_tail"])
    assert any("in main" in line for line in sweep.status("silent")["stderr_tail"])


def test_half_a_line_of_a_killed_rank_is_no_line_of_the_node_file(sweep: Sweep) -> None:
    kinds = [line["kind"] for line in sweep.lines("half_line") if line["rank"] == 1]
    assert kinds == ["start"]


def test_the_node_file_holds_every_rank_in_order_after_the_node(sweep: Sweep) -> None:
    lines = sweep.lines("last")
    assert [line["rank"] for line in lines] == [None, 0, 0, 0, 1, 1, 1]
    assert "environment" in lines[0]["values"]
    assert [line["status"] for line in lines if line["kind"] == "end"] == ["ok", "ok"]


def test_ranks_reach_the_store_on_loopback_alone(sweep: Sweep) -> None:
    phase = next(line for line in sweep.lines("first") if line["kind"] == "phase")
    assert phase["values"]["host"] == "127.0.0.1"


def test_a_case_has_its_device_and_variables_from_before_the_imports(sweep: Sweep) -> None:
    item = sweep.items["variables"]
    said = (sweep.run_dir.case_dir(item) / "rank-0.stdout").read_text()
    assert eval(said) == {
        "DS_ACCELERATOR": "cpu",
        "PLANTED": "yes",
        "RANK": None,
        "MASTER_PORT": None,
    }


def test_a_world_that_does_not_fit_is_skipped_with_the_reason(sweep: Sweep) -> None:
    found = sweep.status("large")
    assert found["status"] == "skipped"
    assert "needs 2 host(s) with 1 rank(s) each" in found["cause"]


def test_time_outside_the_phases_is_the_launchers_own(sweep: Sweep) -> None:
    found = sweep.status("first")
    phase = next(line for line in sweep.lines("first") if line["kind"] == "phase")
    assert found["outside_s"] == pytest.approx(found["seconds"] - phase["end_s"] + phase["start_s"])


def test_a_case_is_given_the_first_steps_of_its_reference(sweep: Sweep) -> None:
    phase = next(line for line in sweep.lines("last") if line["kind"] == "phase")
    assert phase["values"]["given"] == {
        "losses": [4.0, 3.0, 2.0, 1.0, 0.5],
        "norms": [5.0, 4.0, 3.0, 2.0, 1.0],
    }


def test_a_reference_lies_apart_from_the_cases(sweep: Sweep) -> None:
    place = sweep.run_dir.path / "references" / sweep.items["reference"].case_id / "0"
    assert json.loads((place / "status.json").read_text())["status"] == "ok"


def test_only_failed_runs_again_what_failed_and_keeps_the_rest(tmp_path: Path) -> None:
    good, bad, pending = (make_case(name, 1) for name in ("good", "bad", "pending"))
    run_dir = make_run(tmp_path / "run", [good, bad, pending])
    for item, word in zip(run_dir.plan.repeats, ["ok", "crashed"], strict=False):
        attempt, record = run_dir.begin(item, 0), {"v": 1, "case_id": item.case_id, "repeat": 0}
        end = {**record, "rank": 0, "kind": "end", "status": word}
        (attempt / "node-0.jsonl").write_text(json.dumps(end))
        run_dir.finish(item, attempt, {"status": word, "by": "an earlier driver"})
    with tagged() as (environment, survivors):
        assert start_driver(run_dir, environment, "--only-failed").wait(60) == 0
        assert survivors() == []
    assert ended(run_dir) == {(good.case_id, 0): "ok", (bad.case_id, 0): "ok"}
    kept, again = (run_dir.status(item) or {} for item in run_dir.plan.repeats[:2])
    assert "by" in kept
    assert "by" not in again


# Two agents that believe to be on two hosts, as srun starts them.

# The second agent finds no shared disk, so its files come through the store.
APART = (
    "import sys; from andromeda_scale import agent; from andromeda_scale.launch import member; "
    "member.sees_same_disk = lambda sweep: None; sys.exit(agent.main())"
)
SUITE = """
question: do two nodes make one world?
model: andromeda-tiny
world: [1, 2x1]
device: cpu
parity: "off"
collect: []
measure: {repeats: 3}
"""
AGENT_0 = (
    "import sys; from andromeda_scale import agent; "
    "from andromeda_scale.hardware import environment; "
    "environment.collect = environment.fingerprint = lambda *_: {}; sys.exit(agent.main())"
)


def start_agent(
    index: int, program: str, options: list[str], environment: dict[str, str], port: int
) -> subprocess.Popen[str]:
    variables = {"SLURM_PROCID": str(index), "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}
    variables |= {"SLURMD_NODENAME": f"node{index}", "MASTER_ADDR": "127.0.0.1"}
    return subprocess.Popen(
        [sys.executable, "-c", program, *options],
        env={**environment, **variables, "MASTER_PORT": str(port)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def agent_options(tmp_path: Path, more: str = "") -> list[str]:
    suite = tmp_path / "nodes.yaml"
    suite.write_text(SUITE + more)
    run = ["--run-dir", str(tmp_path / "run"), "--worker", WORKER, "--node-silence-s", "2"]
    return [str(suite), *run]


def test_two_nodes_without_a_shared_disk_and_then_without_one_of_them(tmp_path: Path) -> None:
    with tagged() as (environment, survivors):
        port = free_port()
        options = agent_options(tmp_path, "env: {ACT_1: wait_later}\nlimits: {heartbeat_s: 60}\n")
        programs = enumerate([AGENT_0, APART])
        agents = [start_agent(i, program, options, environment, port) for i, program in programs]
        later = "running/*w2x1*-1-*"  # the second repeat on both nodes
        wait_until(lambda: bool(list(tmp_path.glob(f"run/{later}/rank-0.jsonl"))), later)
        agents[1].kill()
        output = agents[0].communicate(timeout=60)[0]
        agents[1].communicate(timeout=5)
        assert survivors() == []
    run_dir = RunDir.open(tmp_path / "run")
    items = {(i.case_id.split("_")[2], i.repeat): i for i in run_dir.plan.repeats}
    found = {key: run_dir.status(item) or {} for key, item in items.items()}
    assert {found["w1", i]["status"] for i in range(3)} == {"ok"}, output
    # While it was there, the second node's files came through the store.
    assert found["w2x1", 0]["status"] == "ok"
    names = {path.name for path in run_dir.case_dir(items["w2x1", 0]).iterdir()}
    assert {"node-0.jsonl", "node-1.jsonl", "rank-0.stderr", "rank-1.stderr"} <= names
    # It vanished in the next repeat; no world of two fits from then on.
    assert found["w2x1", 1]["status"] == "node_failed"
    assert found["w2x1", 1]["cause"] == "agent 1 on node1 fell silent"
    assert found["w2x1", 2]["status"] == "skipped"
    assert "present are node0: 1" in found["w2x1", 2]["cause"]
