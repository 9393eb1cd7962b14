"""Facts: what ranks read back, kept only where all ranks and launches agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from run_files import DESCRIBED, make_case, rank_lines, write_plan, write_repeat

from andromeda_scale.analysis.fairness_rules import required
from andromeda_scale.hardware import environment
from andromeda_scale.merge import merge_run
from andromeda_scale.suite.config import Case

ENVIRONMENT = environment.collect()


def _facts(directory: Path) -> tuple[dict[str, Any], list[str]]:
    results = merge_run(directory)
    return json.loads(results.cases.iloc[0]["facts"]), results.problems


def _run(directory: Path, *launches: list[dict[str, Any]], case: Case | None = None) -> Path:
    """A run of one case of two ranks; of each launch what its ranks describe."""
    case = case or make_case("ddp", 2)
    write_plan(directory, [case], repeats=len(launches))
    for repeat, ranks in enumerate(launches):
        lines = [
            line
            for rank, says in enumerate(ranks)
            for line in rank_lines(rank, [0.1] * 4, describe=says)
        ]
        write_repeat(directory, case, repeat, lines, environment=ENVIRONMENT)
    return directory


def test_a_case_carries_what_its_ranks_read_back(tmp_path: Path) -> None:
    facts, problems = _facts(_run(tmp_path, [{}, {}]))
    assert problems == []
    assert facts["dtypes.master"] == "float32"
    assert facts["optimizer.class"] == "AdamW"
    assert facts["gradient_clipping"] == 1.0
    assert facts["compile.graphs"] == 0  # null: nothing was compiled
    assert facts["threads"] == 1
    assert facts["device_name"] == "cpu"
    assert facts["data.fingerprint"] == "0123"  # which rank 0 alone writes
    assert facts["global_batch_size"] == 4
    assert facts["software.python"] == ENVIRONMENT["versions"]["python"]
    assert facts["software.source"] == ENVIRONMENT["source_sha256"]
    assert facts["hardware.cpu_model"] == ENVIRONMENT["cpu_model"]
    assert set(required()) <= set(facts)


def test_what_is_measured_is_no_fact(tmp_path: Path) -> None:
    says = {
        "bytes": {"parameters": 7},
        "world_size": 2,
        "compile": {"graphs": 3, "seconds": 1.5, "cold": True, "cache_hits": 2},
    }
    facts, _ = _facts(_run(tmp_path, [says, says]))
    assert {name for name in facts if name.startswith(("bytes", "world", "compile"))} == {
        "compile.graphs"
    }


def test_ranks_that_disagree_are_a_problem_and_never_rank_0s_word(tmp_path: Path) -> None:
    odd = {"dtypes": {**DESCRIBED["dtypes"], "master": "bfloat16"}}
    facts, problems = _facts(_run(tmp_path, [{}, odd]))
    said = "float32 (rank 0); bfloat16 (rank 1)"
    assert facts["dtypes.master"] == said
    (problem,) = problems
    assert problem.endswith(f"/0: dtypes.master is not one value: {said}")


def test_a_rank_that_is_silent_disagrees(tmp_path: Path) -> None:
    facts, problems = _facts(_run(tmp_path, [{}, {"gradient_clipping": None}]))
    assert facts["gradient_clipping"] == "1.0 (rank 0); not read back (rank 1)"
    assert len(problems) == 1


def test_launches_that_disagree_are_a_problem_of_the_case(tmp_path: Path) -> None:
    other = {"optimizer": {**DESCRIBED["optimizer"], "kernel": "foreach"}}
    facts, problems = _facts(_run(tmp_path, [{}, {}], [other, other], [{}, {}]))
    assert facts["optimizer.kernel"] == "fused (in repeat 0, 2); foreach (in repeat 1)"
    (problem,) = problems
    assert problem.startswith(make_case("ddp", 2).case_id + ": optimizer.kernel is not one value")


def test_nodes_whose_variables_differ_are_a_problem(tmp_path: Path) -> None:
    run = _run(tmp_path, [{}, {}])
    (file,) = run.glob("cases/*/0/node-0.jsonl")
    node, *ranks = file.read_text().splitlines(keepends=True)
    other = json.loads(node)
    other["values"]["environment"]["variables"] = {}  # inductor sets some in this process
    file.write_text("".join([json.dumps(other) + "\n", *ranks]))
    other["values"]["environment"]["variables"] = {"NCCL_ALGO": "Ring", "SLURM_JOB_ID": "7"}
    (file.parent / "node-1.jsonl").write_text(json.dumps(other) + "\n")
    facts, problems = _facts(run)
    said = "unset (node 0); Ring (node 1)"
    assert facts["variables.NCCL_ALGO"] == said
    assert "variables.SLURM_JOB_ID" not in facts
    assert [problem.partition(": ")[2] for problem in problems] == [
        f"variables.NCCL_ALGO is not one value: {said}"
    ]


def test_variables_of_the_suite_are_facts(tmp_path: Path) -> None:
    case = make_case("ddp", 2, env={"GLOO_SOCKET_IFNAME": "lo"})
    facts, _ = _facts(_run(tmp_path, [{}, {}], case=case))
    assert facts["variables.GLOO_SOCKET_IFNAME"] == "lo"


def test_units_and_long_lists_are_counted(tmp_path: Path) -> None:
    units = [{"name": str(i), "num_parameters": i, "reshard": i > 0} for i in range(9)]
    says = {"units": units, "buckets": {"bytes": list(range(9)), "few": [1, 2]}}
    facts, _ = _facts(_run(tmp_path, [says, says]))
    assert (facts["units.num"], facts["units.reshard"]) == (9, "false, true")
    assert (facts["buckets.bytes"], facts["buckets.few"]) == ("9 values, 36 in all", "1, 2")


def test_a_kind_of_state_without_a_byte_has_dtype_none_not_an_unknown_one(tmp_path: Path) -> None:
    says = {
        "dtypes": {**DESCRIBED["dtypes"], "gradients": None, "optimizer_state": None},
        "bytes": {"parameters": 8, "gradients": 4, "optimizer_state": 0},
        "world_size": 2,
    }
    facts, _ = _facts(_run(tmp_path, [says, says]))
    assert facts["dtypes.optimizer_state"] == "none"  # SGD keeps nothing
    assert facts["dtypes.gradients"] is None  # bytes of no dtype: not read back


def test_one_rank_reduces_nothing(tmp_path: Path) -> None:
    says = {"dtypes": {**DESCRIBED["dtypes"], "reduction": None}, "bytes": {}, "world_size": 1}
    facts, _ = _facts(_run(tmp_path, [says], case=make_case("single", 1)))
    assert facts["dtypes.reduction"] == "none"


def test_facts_that_are_garbage_cost_no_row(tmp_path: Path) -> None:
    says = {"dtypes": 7, "bytes": [1], "compile": "x", "units": [None, 3], "optimizer": [[]]}
    results = merge_run(_run(tmp_path, [says, says]))
    assert list(results.cases["status"]) == ["ok"]
    assert json.loads(results.cases.iloc[0]["facts"])["dtypes"] == 7


def test_a_launch_that_is_not_ok_has_no_facts(tmp_path: Path) -> None:
    run = _run(tmp_path, [{}, {}])
    (status,) = run.glob("cases/*/0/status.json")
    status.write_text(json.dumps({"status": "crashed", "cause": "x"}))
    assert _facts(run)[0] == {}
