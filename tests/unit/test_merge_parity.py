"""Parity in the results: by a parity launch on the shallow model, or by comparing cases."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from run_files import make_case, rank_lines, write_plan, write_repeat

from andromeda_scale.merge import merge_run
from andromeda_scale.metrics import METRICS
from andromeda_scale.suite.config import Case

ENVIRONMENT = {"software": {"torch": "2.13"}}
LOSSES = (5.0, 4.0, 3.5, 3.2, 3.0)
NORMS = (2.0, 1.9, 1.8, 1.7, 1.6)
Steps = tuple[float | None, ...]


def first_steps(losses: Steps = LOSSES, norms: Steps = NORMS) -> dict[str, Any]:
    """What a rank of 10 tokens a step writes."""
    return {
        "loss_sum": [(loss or 0.0) * 10 for loss in losses],
        "tokens": [10] * len(losses),
        "gradient_norm": [math.inf if norm is None else norm for norm in norms],
    }


def write(run: Path, case: Case, repeat: int, losses: Any) -> None:
    """An ok repeat that recorded these first steps."""
    lines = [line for rank in range(case.world.size) for line in rank_lines(rank, [0.1] * 4)]
    for line in lines:
        if line.get("phase") == "warmup":
            line["values"] |= {"losses": losses, "parity": {"rounding": case.train.precision}}
    write_repeat(run, case, repeat, lines, environment=ENVIRONMENT)


def cross(run: Path, *steps: Any, repeats: int = 1, **settings: Any) -> list[dict[str, Any]]:
    """The rows of one case for each of these first steps, of another strategy each."""
    names = ("ddp", "fsdp2", "zero1", "zero2")
    cases = [
        make_case(n, 2, parity="cross", **settings) for n, _ in zip(names, steps, strict=False)
    ]
    write_plan(run, cases, repeats)
    for case, of_case in zip(cases, steps, strict=True):
        if of_case is not None:
            for repeat in range(repeats):
                write(run, case, repeat, of_case)
    return merge_run(run).cases.to_dict("records")


GOOD = first_steps()
NEAR = first_steps(
    tuple(loss * (1 + 1e-6) for loss in LOSSES), tuple(n * (1 - 2e-6) for n in NORMS)
)
TWICE = first_steps(norms=tuple(norm * 2 for norm in NORMS))
FAR = first_steps(tuple(loss * 1.1 for loss in LOSSES))


def test_cases_that_agree_are_ok_with_their_largest_difference(tmp_path: Path) -> None:
    rows = cross(tmp_path, GOOD, NEAR, GOOD)
    assert {(row["status"], row["parity"], row["parity_kind"]) for row in rows} == {
        ("ok", "ok", "cross")
    }
    for row in rows:
        assert row["parity_loss_difference"] == pytest.approx(1e-6, rel=1e-3)
        assert row["parity_norm_difference"] == pytest.approx(2e-6, rel=1e-3)
        assert (row["parity_steps"], row["parity_norm_steps"]) == (5, 5)


def test_the_odd_one_out_of_three_is_diverged_and_has_no_number(tmp_path: Path) -> None:
    ddp, fsdp2, zero1 = cross(tmp_path, GOOD, TWICE, GOOD, repeats=3)
    assert (ddp["parity"], zero1["parity"]) == ("ok", "ok")
    assert (fsdp2["status"], fsdp2["statuses"]) == ("diverged", "diverged x3")
    assert fsdp2["parity"] == "diverged"
    assert fsdp2["parity_cause"].startswith("gradient norm 4 at step 0 is not that of tiny_ddp_w2")
    assert fsdp2["parity_cause"].endswith(
        "2 times the reference's: gradients summed instead of averaged?; 2 of 3 cases agree"
    )
    assert fsdp2["parity_norm_difference"] == pytest.approx(1.0)
    numbers = set(METRICS) - {"parity_loss_difference", "parity_norm_difference"}
    assert all(math.isnan(fsdp2[name]) for name in numbers)
    repeats = merge_run(tmp_path).repeats.set_index("case_id").loc[fsdp2["case_id"]]
    assert repeats["tokens"].isna().all()
    assert not repeats["pooled"].any()


def test_of_two_that_disagree_nobody_knows_which_is_right(tmp_path: Path) -> None:
    ddp, fsdp2 = cross(tmp_path, GOOD, FAR)
    assert (ddp["status"], fsdp2["status"]) == ("diverged", "diverged")
    assert ddp["cause"].startswith("loss 5 at step 0 is not that of tiny_fsdp2_w2")
    assert fsdp2["cause"].startswith("loss 5.5 at step 0 is not that of tiny_ddp_w2")
    assert ddp["cause"].endswith("; 1 of 2 cases agree")


def test_two_against_two_is_no_majority(tmp_path: Path) -> None:
    rows = cross(tmp_path, GOOD, FAR, GOOD, FAR)
    assert [row["status"] for row in rows] == ["diverged"] * 4
    assert all(row["cause"].endswith("2 of 4 cases agree") for row in rows)


@pytest.mark.parametrize("other", [None, {"loss_sum": [1.0], "tokens": [1]}, {"tokens": "x"}, 7])
def test_a_case_alone_has_nothing_to_compare_with(tmp_path: Path, other: Any) -> None:
    row = cross(tmp_path, GOOD, other)[0]
    assert (row["status"], row["parity"]) == ("ok", "unavailable")
    assert row["parity_cause"] == "nothing to compare with"


def test_a_launch_of_too_few_steps_says_so(tmp_path: Path) -> None:
    cases = [make_case(name, 1, parity="cross") for name in ("ddp", "fsdp2")]
    write_plan(tmp_path, cases, 1)
    for case in cases:
        lines = rank_lines(0, [0.1] * 2, tokens=64)
        few = first_steps(LOSSES[:4], NORMS[:4])
        lines = [
            line | {"values": line["values"] | {"losses": few}}
            if line.get("phase") == "warmup"
            else line
            for line in lines
        ]
        write_repeat(tmp_path, case, 0, lines, environment=ENVIRONMENT)
    causes = set(merge_run(tmp_path).cases["parity_cause"])
    assert causes == {
        "its 4 steps are fewer than the 5 that are compared; raise measure.steps or "
        "measure.warmup.min_steps"
    }


def test_the_program_of_references_needs_nothing_to_compare_with(tmp_path: Path) -> None:
    case = make_case("single", 1, parity="cross")
    write_plan(tmp_path, [case], 1)
    write(tmp_path, case, 0, GOOD)
    (row,) = merge_run(tmp_path).cases.to_dict("records")
    assert (row["status"], row["parity"], row["parity_cause"]) == ("ok", "reference", "")


def test_one_launch_that_differs_from_its_case_is_diverged_alone(tmp_path: Path) -> None:
    cases = [make_case(name, 2, parity="cross") for name in ("ddp", "fsdp2")]
    write_plan(tmp_path, cases, 2)
    for case, repeat, steps in ((0, 0, GOOD), (0, 1, FAR), (1, 0, GOOD), (1, 1, GOOD)):
        write(tmp_path, cases[case], repeat, steps)
    ddp, fsdp2 = merge_run(tmp_path).cases.to_dict("records")
    assert (ddp["status"], ddp["statuses"], ddp["parity"]) == ("ok", "ok x1, diverged x1", "ok")
    assert fsdp2["num_launches"] == 2


def test_cases_of_another_global_batch_or_device_are_not_compared(tmp_path: Path) -> None:
    cases = [make_case("ddp", world, parity="cross") for world in (1, 2)]
    write_plan(tmp_path, cases, 1)
    for case, steps in zip(cases, (GOOD, FAR), strict=True):
        write(tmp_path, case, 0, steps)
    rows = merge_run(tmp_path).cases.to_dict("records")
    assert {row["parity_cause"] for row in rows} == {"nothing to compare with"}


def test_a_coarser_reduction_of_one_case_is_judged_by_its_rounding(tmp_path: Path) -> None:
    cases = [make_case(name, 2, parity="cross") for name in ("ddp", "fsdp2")]
    write_plan(tmp_path, cases, 1)
    write(tmp_path, cases[0], 0, GOOD)
    write(tmp_path, cases[1], 0, first_steps(norms=tuple(norm * 1.001 for norm in NORMS)))
    assert set(merge_run(tmp_path).cases["status"]) == {"diverged"}
    file = tmp_path / "cases" / cases[1].case_id / "0" / "node-0.jsonl"
    file.write_text(file.read_text().replace('"rounding": "fp32"', '"rounding": "bf16"'))
    assert set(merge_run(tmp_path).cases["status"]) == {"ok"}


def test_steps_that_all_skipped_compare_no_update(tmp_path: Path) -> None:
    skipped = first_steps(norms=(None, 1.9, 1.8, 1.7, 1.6))
    rows = cross(tmp_path / "one", skipped, skipped, train={"precision": "fp16"})
    assert {row["parity"] for row in rows} == {"ok"}
    assert rows[0]["parity_cause"].startswith("fp16's scaler skipped step 0: ")
    skipped = first_steps(norms=(None,) * 5)
    rows = cross(tmp_path / "all", skipped, skipped, train={"precision": "fp16"})
    assert {row["parity"] for row in rows} == {"unavailable"}
    assert rows[0]["parity_cause"].startswith("fp16's scaler skipped step 0, 1, 2, 3, 4: ")


# shallow


def shallow(run: Path, status: dict[str, Any] | None, values: Any = None) -> dict[str, Any]:
    """The row of an ok case whose parity launch ended so."""
    case = make_case("ddp", 2, parity="shallow")
    launch = make_case("ddp", 2, parity="off", seed=7)
    write_plan(run, [case], 1)
    plan = json.loads((run / "plan.json").read_text())
    plan["cases"][launch.case_id] = json.loads(launch.model_dump_json())
    plan["repeats"][0]["parity_id"] = launch.case_id
    plan["repeats"].insert(0, {"case_id": launch.case_id, "repeat": 0, "role": "parity"})
    (run / "plan.json").write_text(json.dumps(plan))
    write(run, case, 0, GOOD)
    if status is not None:
        write(run, launch, 0, GOOD)
        place = run / "parity" / launch.case_id
        place.parent.mkdir()
        (run / "cases" / launch.case_id).rename(place)
        (place / "0" / "status.json").write_text(json.dumps(status))
        file = place / "0" / "node-0.jsonl"
        text = file.read_text().replace('{"rounding": "fp32"}', json.dumps(values or {}))
        file.write_text(text)
    (row,) = merge_run(run).cases.to_dict("records")
    return row


def test_the_parity_launch_stands_for_its_case(tmp_path: Path) -> None:
    values = {"steps_compared": 5, "norms_compared": 5, "loss_difference": 1e-7}
    row = shallow(tmp_path, {"status": "ok"}, values | {"norm_difference": 2e-7})
    assert (row["status"], row["parity"], row["parity_kind"]) == ("ok", "ok", "shallow")
    assert (row["parity_loss_difference"], row["parity_norm_difference"]) == (1e-7, 2e-7)


def test_what_was_measured_before_its_parity_launch_diverged_has_no_number(tmp_path: Path) -> None:
    row = shallow(tmp_path, {"status": "diverged", "cause": "gradient norm 2 is not 1"})
    assert (row["status"], row["parity"]) == ("diverged", "diverged")
    assert row["parity_cause"] == "on the shallow model: gradient norm 2 is not 1"
    assert math.isnan(row["tokens_per_s"])


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (None, "the parity launch did not finish"),
        ({"status": "crashed", "cause": "killed\nby SIGKILL"}, "is crashed: killed by SIGKILL"),
        ({"status": "unavailable", "cause": "its reference is oom"}, "is unavailable: its refer"),
        ({"status": "ok"}, "the parity launch is ok"),  # and compared nothing
    ],
)
def test_a_parity_launch_that_says_nothing_leaves_its_case_unverified(
    tmp_path: Path, status: dict[str, Any] | None, cause: str
) -> None:
    row = shallow(tmp_path, status)
    assert (row["status"], row["parity"]) == ("ok", "unavailable")
    assert cause in row["parity_cause"]


def test_a_diverged_launch_says_how_far_it_was(tmp_path: Path) -> None:
    case = make_case("ddp", 1)
    write_plan(tmp_path, [case], 1)
    write(tmp_path, case, 0, GOOD)
    place = tmp_path / "cases" / case.case_id / "0"
    file = place / "node-0.jsonl"
    values = {"steps_compared": 5, "loss_difference": 0.1, "norm_difference": 1.0}
    file.write_text(file.read_text().replace('{"rounding": "fp32"}', json.dumps(values)))
    (place / "status.json").write_text('{"status": "diverged", "cause": "loss 1 is not 2"}')
    (row,) = merge_run(tmp_path).cases.to_dict("records")
    assert (row["parity"], row["parity_cause"]) == ("diverged", "loss 1 is not 2")
    assert (row["parity_loss_difference"], row["parity_norm_difference"]) == (0.1, 1.0)
