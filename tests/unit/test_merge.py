"""Merging: numbers by hand, and every way a run's files can be incomplete, unlike or damaged."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from merging import ENVIRONMENT, case_row, change_line, even_run, place_of
from run_files import make_case, rank_lines, write_plan, write_repeat

from andromeda_scale.analysis.results import read
from andromeda_scale.contracts.planned import Plan
from andromeda_scale.errors import UserError
from andromeda_scale.merge import load_results, merge_run, write


def _allocated(rank: int, num_bytes: int, device: dict[str, int] | None) -> list[dict[str, Any]]:
    """Lines of a rank: allocated on a device while it was timed, or on a CPU in phase inspect."""
    lines = rank_lines(rank, [0.1] * 4)
    of_phase = {line.get("phase"): line["values"] for line in lines if line["kind"] == "phase"}
    of_phase["measure"]["memory"] = {"peak_memory_bytes": 99, "device": device}
    inspect = {"memory": {"peak_allocated_bytes": num_bytes}}
    head = {"kind": "phase", "rank": rank, "phase": "inspect", "start_s": 4.0, "end_s": 5.0}
    return [*lines[:-1], {**head, "values": inspect}, lines[-1]]


@pytest.mark.parametrize(("device", "most"), [(None, 40), ({"peak_allocated_bytes": 30}, 30)])
def test_an_estimate_is_compared_with_what_the_fullest_rank_allocated(
    tmp_path: Path, device: dict[str, int] | None, most: int
) -> None:
    case = make_case("ddp", 2)
    write_plan(tmp_path, [case], repeats=1)
    plan = Plan.model_validate_json((tmp_path / "plan.json").read_bytes())
    item = plan.repeats[0].model_copy(update={"estimated_memory_bytes": 36})
    plan = plan.model_copy(update={"repeats": (item,)})
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    lines = [*_allocated(0, 20, device), *_allocated(1, 40, device)]
    write_repeat(tmp_path, case, 0, lines, environment=ENVIRONMENT)
    row = merge_run(tmp_path).cases.iloc[0]
    assert row["peak_allocated_bytes"] == most
    assert row["peak_allocated_rank"] == (1 if device is None else 0)
    assert row["estimated_memory_bytes"] == 36
    assert row["estimate_error"] == pytest.approx(36 / most - 1)


def test_numbers_of_two_ranks_by_hand(tmp_path: Path) -> None:
    case = make_case("ddp", 2)
    write_plan(tmp_path, [case], repeats=1)
    lines = [
        # max over ranks per step: 0.2, 0.3, 0.2, 0.5; windows 0.8 and 0.9 s
        *rank_lines(0, [0.2, 0.1, 0.2, 0.3], compute_s=[0.1] * 4, peak_memory_bytes=7),
        *rank_lines(1, [0.1, 0.3, 0.0, 0.5], compute_s=[0.14] * 4, peak_memory_bytes=9),
    ]
    write_repeat(tmp_path, case, 0, lines, environment=ENVIRONMENT)
    results = merge_run(tmp_path)
    assert results.problems == []
    row = results.cases.iloc[0]
    assert row["status"] == "ok"
    assert row["step_time_s"] == pytest.approx(0.25)
    assert row["step_time_mad_s"] == pytest.approx(0.05)
    assert row["tokens_per_s"] == pytest.approx(2 * 128 / 0.9)
    assert row["tokens_per_s_per_gpu"] == pytest.approx(128 / 0.9)
    assert row["window_step_s"] == pytest.approx(0.9 / 4)
    assert row["imbalance"] == pytest.approx(0.14 / 0.12 - 1)
    assert row["nobody_blamed"] == "no charges recorded"
    assert row["comm_exposed_s"] == pytest.approx(0.04)
    assert row["comm_exposed_share"] == pytest.approx(0.2)
    assert row["profile_slowdown"] == pytest.approx(0.2 / 0.25)
    assert (row["peak_memory_bytes"], row["peak_memory_rank"]) == (9, 1)
    assert row["setup_s"] == 2.5
    assert row["first_step_s"] == pytest.approx(0.4)  # twice the longest first step of 0.2
    assert row["efficiency"] == 1.0
    assert row["flop_convention"] == "6n_noemb+causal"
    assert math.isnan(row["mfu"])  # no peak is known of this processor
    assert math.isnan(row["tokens_per_s_low"])  # one launch
    ranks = results.ranks.set_index("rank")
    assert list(ranks["compute_s"]) == pytest.approx([0.1, 0.14])
    assert list(ranks["window_s"]) == pytest.approx([0.8, 0.9])


def test_launches_combine_by_geometric_mean_with_a_t_interval(tmp_path: Path) -> None:
    case = make_case("single", 1)
    write_plan(tmp_path, [case])
    for repeat, step in enumerate((0.1, 0.2, 0.4)):
        lines = rank_lines(0, [step] * 4)
        write_repeat(tmp_path, case, repeat, lines, environment=ENVIRONMENT)
    row = case_row(tmp_path)
    assert row["num_launches"] == 3
    assert row["tokens_per_s"] == pytest.approx(160.0)  # of 320, 160, 80
    half = 4.302652729911275 * math.log(2) / math.sqrt(3)
    assert row["tokens_per_s_low"] == pytest.approx(160.0 * math.exp(-half))
    assert row["tokens_per_s_high"] == pytest.approx(160.0 * math.exp(half))


def test_one_failed_launch_of_three_is_counted_and_named(tmp_path: Path) -> None:
    run, case = even_run(tmp_path)
    status = {
        "status": "oom",
        "rank": 1,
        "host": "n7",
        "phase": "measure",
        "cause": "tried to allocate\n2 GiB",
    }
    (place_of(run, case, 1) / "status.json").write_text(json.dumps(status))
    row = case_row(run)
    assert row["status"] == "ok"
    assert row["statuses"] == "ok x2, oom x1"
    assert (row["num_repeats_ok"], row["num_repeats_planned"]) == (2, 3)
    assert row["cause"] == "rank 1 on n7 in measure: tried to allocate 2 GiB"
    assert row["tokens_per_s"] == pytest.approx(2 * 128 / 0.4)
    assert math.isnan(row["tokens_per_s_low"])  # two launches are left


@pytest.mark.parametrize("status", ["diverged", "oom", "timeout", "crashed", "unavailable"])
def test_a_case_that_is_never_ok_has_its_status_and_no_number(tmp_path: Path, status: str) -> None:
    run, case = even_run(tmp_path)
    for repeat in range(3):  # the records themselves are complete
        (place_of(run, case, repeat) / "status.json").write_text(json.dumps({"status": status}))
    row = case_row(run)
    assert row["status"] == status
    for name in ("tokens_per_s", "step_time_s", "efficiency", "peak_memory_bytes", "mfu"):
        assert math.isnan(row[name])


def test_a_rank_that_says_diverged_outranks_a_status_of_ok(tmp_path: Path) -> None:
    run, case = even_run(tmp_path, repeats=1)
    file = place_of(run, case, 0) / "node-0.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[-1] |= {"status": "diverged", "phase": "warmup", "cause": "loss is nan"}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    row = case_row(run)
    assert (row["status"], row["cause"]) == (
        "diverged",
        "rank 1 on node0 in warmup: loss is nan",
    )
    assert math.isnan(row["tokens_per_s"])


def test_missing_ranks_are_named_and_leave_no_number(tmp_path: Path) -> None:
    run, case = even_run(tmp_path, world=6, repeats=1)
    file = place_of(run, case, 0) / "node-0.jsonl"
    kept = [line for line in file.read_text().splitlines() if json.loads(line)["rank"] in (0, 4)]
    file.write_text("\n".join(kept) + "\n")
    results = merge_run(run)
    row = results.cases.iloc[0]
    assert (row["status"], row["cause"]) == ("invalid", "no end record of ranks 1-3, 5")
    assert row["missing_ranks"] == "repeat 0: ranks 1-3, 5"
    assert math.isnan(row["tokens_per_s"])
    assert list(results.ranks["rank"]) == [0, 1, 2, 3, 4, 5]
    assert list(results.ranks["status"]) == ["ok", "", "", "", "ok", ""]


def test_ranks_with_unequal_numbers_of_steps_are_invalid_not_cut(tmp_path: Path) -> None:
    case = make_case("ddp", 2)
    write_plan(tmp_path, [case], repeats=1)
    lines = [*rank_lines(0, [0.1] * 4), *rank_lines(1, [0.1] * 3)]
    write_repeat(tmp_path, case, 0, lines, environment=ENVIRONMENT)
    results = merge_run(tmp_path)
    assert results.cases.iloc[0]["status"] == "invalid"
    assert any("3 on rank 1; 4 on rank 0" in problem for problem in results.problems)


@pytest.mark.parametrize(
    "value", ["fast", None, [], [0.1, "x"], [math.nan] * 4, [-1] * 4, [10**400]]
)
def test_step_times_that_are_no_numbers_are_never_used(tmp_path: Path, value: Any) -> None:
    case = make_case("single", 1)
    write_plan(tmp_path, [case], repeats=1)
    lines = rank_lines(0, [0.1] * 4)
    measure = next(line for line in lines if line.get("phase") == "measure")
    measure["values"]["step_time"]["step_ns"] = value
    write_repeat(tmp_path, case, 0, lines, environment=ENVIRONMENT)
    row = case_row(tmp_path)
    assert row["status"] == "invalid"
    assert math.isnan(row["tokens_per_s"])


def test_an_untrusted_trace_costs_its_columns_and_is_named(tmp_path: Path) -> None:
    case = make_case("single", 1)
    write_plan(tmp_path, [case], repeats=1)
    lines = rank_lines(0, [0.1] * 4, compute_s=[0.1] * 4)
    profile = next(line for line in lines if line.get("phase") == "profile")
    profile["values"]["communication"] = {"error": "3 events without an entry"}
    write_repeat(tmp_path, case, 0, lines, environment=ENVIRONMENT)
    results = merge_run(tmp_path)
    assert results.cases.iloc[0]["status"] == "ok"
    assert math.isnan(results.cases.iloc[0]["comm_exposed_s"])
    assert results.problems == [
        f"{case.case_id}/0: communication on rank 0: 3 events without an entry"
    ]


def test_launches_on_unlike_systems_are_not_pooled(tmp_path: Path) -> None:
    case = make_case("single", 1)
    write_plan(tmp_path, [case])
    other = json.loads(json.dumps(ENVIRONMENT))
    other["versions"]["torch"] = "0.0.1"
    for repeat, (step, found) in enumerate(((0.1, ENVIRONMENT), (0.4, other), (0.1, ENVIRONMENT))):
        write_repeat(tmp_path, case, repeat, rank_lines(0, [step] * 4), environment=found)
    results = merge_run(tmp_path)
    row = results.cases.iloc[0]
    assert row["mixed"]
    assert (row["num_repeats_ok"], row["num_launches"]) == (3, 2)
    assert row["tokens_per_s"] == pytest.approx(320.0)
    (problem,) = results.problems
    assert "repeats 1 ran on unlike systems" in problem
    assert "torch" in problem


def test_a_run_without_environment_lines_is_merged_and_says_so(tmp_path: Path) -> None:
    case = make_case("single", 1)
    write_plan(tmp_path, [case], repeats=1)
    write_repeat(tmp_path, case, 0, rank_lines(0, [0.1] * 4))
    results = merge_run(tmp_path)
    assert results.cases.iloc[0]["status"] == "ok"
    assert "no node says its environment" in results.problems[0]


def test_skipped_pending_and_unfinished_repeats_are_rows(tmp_path: Path) -> None:
    cases = [make_case("ddp", world) for world in (1, 2, 4)]
    write_plan(tmp_path, cases, repeats=1, skip={cases[0].case_id: "needs 3 GiB"})
    place = write_repeat(tmp_path, cases[2], 0, rank_lines(0, [0.1]))
    (place / "status.json").unlink()
    found = merge_run(tmp_path).cases.set_index("world_size")
    assert list(found["status"]) == ["skipped", "pending", "interrupted"]
    assert found.loc[1, "cause"] == "needs 3 GiB"
    assert found["tokens_per_s"].isna().all()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"status": "fine"}', '{"status": ["ok"]}', '{"v": 2, "status": "ok"}'],
)
def test_a_damaged_status_file_is_a_problem_not_a_crash(tmp_path: Path, text: str) -> None:
    run, case = even_run(tmp_path, repeats=1)
    (place_of(run, case, 0) / "status.json").write_text(text)
    results = merge_run(run)
    assert list(results.cases["status"]) == ["interrupted"]
    assert "status.json" in results.problems[0]
    assert results.cases["cause"][0].startswith("did not finish: status.json: ")


def test_records_of_another_version_are_why_a_repeat_is_invalid(tmp_path: Path) -> None:
    run, case = even_run(tmp_path, repeats=1)
    file = place_of(run, case, 0) / "node-0.jsonl"
    file.write_text(file.read_text().replace('"v": 1', '"v": 2'))
    results = merge_run(run)
    assert list(results.cases["status"]) == ["invalid"]
    assert "node-0.jsonl:1: has format version 2; this reads 1" in results.cases["cause"][0]


def test_a_rank_without_memory_is_named_and_the_others_count(tmp_path: Path) -> None:
    run, case = even_run(tmp_path, repeats=1)

    def silent(line: dict[str, Any]) -> dict[str, Any]:
        del line["values"]["memory"]
        return line

    change_line(place_of(run, case, 0), 1, "measure", silent)
    results = merge_run(run)
    assert results.cases.iloc[0]["peak_memory_bytes"] == 1000
    (problem,) = results.problems
    assert problem.endswith("peak memory of rank 1 is missing: the maximum is over the others")


def test_a_repeat_no_rank_of_which_started_needs_no_environment(tmp_path: Path) -> None:
    case = make_case("ddp", 2)
    write_plan(tmp_path, [case], repeats=1)
    write_repeat(tmp_path, case, 0, [], status={"status": "skipped", "cause": "too large"})
    results = merge_run(tmp_path)
    assert list(results.cases["status"]) == ["skipped"]
    assert results.problems == []


@pytest.mark.parametrize("compiled", [True, False])
def test_graph_breaks_are_of_launches_that_compile(tmp_path: Path, compiled: bool) -> None:
    case = make_case("ddp", 2, train={"compile": compiled})
    write_plan(tmp_path, [case], repeats=1)
    lines = [*rank_lines(0, [0.1] * 4), *rank_lines(1, [0.1] * 4)]
    place = write_repeat(tmp_path, case, 0, lines)
    facts = {"values": {"compile": {"seconds": 1.5, "graph_breaks": 3}}}
    change_line(place, 1, "describe", lambda line: line | facts)
    row = case_row(tmp_path)
    assert row["graph_breaks"] == 3 if compiled else pd.isna(row["graph_breaks"])


def test_rows_are_in_the_order_of_the_suite_not_of_the_launches(tmp_path: Path) -> None:
    cases = [make_case("zero1"), make_case("ddp"), make_case("fsdp2")]
    write_plan(tmp_path, cases, repeats=1)
    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["repeats"].reverse()
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert list(merge_run(tmp_path).cases["strategy"]) == ["zero1", "ddp", "fsdp2"]


def test_parquet_files_give_back_the_results(tmp_path: Path) -> None:
    run, _ = even_run(tmp_path / "run")
    results = merge_run(run)
    write(results, run)
    found = read(run)
    pd.testing.assert_frame_equal(found.cases, results.cases)
    pd.testing.assert_frame_equal(found.repeats, results.repeats)
    pd.testing.assert_frame_equal(found.ranks, results.ranks)
    assert (found.question, found.suite_name) == ("What does a rank buy?", "test")
    assert not list(run.glob(".*"))
    copied = tmp_path / "copied"
    copied.mkdir()
    for file in run.glob("*.parquet"):
        file.rename(copied / file.name)
    pd.testing.assert_frame_equal(load_results(copied).cases, results.cases)


def test_what_is_no_run_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no run \(No such file or directory: plan\.json\)"):
        load_results(tmp_path)
    (tmp_path / "results.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"results\.parquet: cannot be read"):
        load_results(tmp_path)
    pd.DataFrame({"case_id": ["a"]}).to_parquet(tmp_path / "results.parquet")
    with pytest.raises(UserError, match=r"repeats\.parquet: cannot be read \(no such file\); "):
        load_results(tmp_path)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(UserError, match=r"plan\.json: suite_name: Field required; .*a new run"):
        merge_run(tmp_path)


def test_intervals_of_shares_and_times_end_where_such_values_do(tmp_path: Path) -> None:
    case = make_case("ddp", 2)
    write_plan(tmp_path, [case])
    for repeat, compute in enumerate((0.15, 0.15, 0.02)):
        lines = [one for r in (0, 1) for one in rank_lines(r, [0.1] * 4, compute_s=[compute] * 20)]
        write_repeat(tmp_path, case, repeat, lines)
    row = merge_run(tmp_path).cases.iloc[0]
    assert row["host_s_low"] == 0 < row["host_s"] < row["host_s_high"]
    for name in ("host_share", "compute_share", "host_eff"):
        low, centre, high = (row[f"{name}{end}"] for end in ("_low", "", "_high"))
        assert (low, high) == (0, 1)
        assert 0 < centre < 1
