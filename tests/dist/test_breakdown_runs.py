"""The factors of real runs explain the efficiency that the steps' own clock gives, within 1 %."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from group import Line, tiny_case

from andromeda_scale.analysis.breakdown import AGREEMENT, FACTORS, HIGH
from andromeda_scale.contracts.planned import Plan, PlannedRepeat
from andromeda_scale.merge import merge_run
from andromeda_scale.report.catalogue import make_table
from andromeda_scale.suite.config import Case
from andromeda_scale.suite.world import World

RunCase = Callable[..., list[list[Line]]]


def scaling_case(strategy: str, world: int, regime: str) -> Case:
    """A step of some tens of milliseconds, so that its edges do not weigh."""
    rows = 8 // world if regime == "strong" else 4
    return tiny_case(
        strategy,
        train={"seq_len": 128, "micro_batch_size": rows},
        measure={"steps": 2, "profile_steps": 8},
        collect=("communication",),
        regime=regime,
        world=World(ranks_per_node=world),
    )


def write_run(directory: Path, runs: list[tuple[Case, list[list[Line]]]]) -> Path:
    """A run directory of one launch a case, as agents write it."""
    plan = Plan(
        suite_name="breakdown",
        question="Where does the time go?",
        cases={case.case_id: case for case, _ in runs},
        repeats=tuple(PlannedRepeat(case_id=case.case_id, repeat=0) for case, _ in runs),
    )
    (directory / "plan.json").write_text(plan.model_dump_json())
    for case, ranks in runs:
        place = directory / "cases" / case.case_id / "0"
        place.mkdir(parents=True)
        lines = [json.dumps(line) + "\n" for rank in ranks for line in rank]
        (place / "node-0.jsonl").write_text("".join(lines))
        (place / "status.json").write_text('{"status": "ok"}')
    return directory


def test_the_product_explains_the_efficiency_within_1_percent(
    run_case: RunCase, tmp_path: Path
) -> None:
    wanted = [("ddp", "weak"), ("ddp", "strong"), ("fsdp2", "weak")]
    cases = [scaling_case(name, world, regime) for name, regime in wanted for world in (1, 2)]
    runs = [(case, run_case(case, case.world.size)) for case in cases]
    results = merge_run(write_run(tmp_path, runs))
    assert set(results.cases["status"]) == {"ok"}
    assert not [problem for problem in results.problems if "explain" in problem]
    for name in FACTORS:
        assert results.cases[name].between(0, HIGH).all()
    scaled = results.cases[results.cases["world_size"] == 2]
    own = scaled["profile_efficiency"].to_numpy()
    assert scaled["explained_efficiency"].to_numpy() == pytest.approx(own, rel=AGREEMENT)
    assert (own > 0).all()
    assert (results.cases["optimizer_compute_s"] > 0).all()
    assert (results.cases["optimizer_compute_s"] < results.cases["compute_s"]).all()
    table = make_table(results, "breakdown")
    assert len(table.rows) == len(cases)
    assert table.under is not None
    assert len(table.under.rows) == len(wanted)
