"""Where the time goes: the factors by hand, their product, their range, and the tables."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from merging import ENVIRONMENT, change_line, place_of
from run_files import make_case, rank_lines, write_plan, write_repeat

from andromeda_scale.analysis.breakdown import (
    FACTORS,
    REASONS,
    SERIES,
    additive,
    by_step,
    factors,
    out_of_range,
)
from andromeda_scale.analysis.stats import Sample, log_ratio_interval, mean_interval
from andromeda_scale.merge import merge_run
from andromeda_scale.metrics import METRICS
from andromeda_scale.report.catalogue import make_table
from andromeda_scale.report.rows import interval_of
from andromeda_scale.report.scaling import scaling_table
from andromeda_scale.report.tables import as_text


def series_of(**classes: list[list[float]]) -> dict[str, np.ndarray]:
    """(ranks, steps) of each class; a step is their sum."""
    shape = np.shape(next(iter(classes.values())))
    found = {name: np.array(classes.get(name, np.zeros(shape))) for name in SERIES}
    found["step_s"] = sum(np.array(x) for x in classes.values())
    found["comm_exposed_s"] = found["exposed_wait_s"] + found["exposed_transfer_s"]
    return found


BY_HAND = series_of(
    compute_s=[[6.0, 5.0], [4.0, 6.0]],
    exposed_wait_s=[[0.5, 1.0], [2.0, 0.5]],
    exposed_transfer_s=[[1.0, 2.0], [1.5, 2.0]],
    data_s=[[0.5, 0.25], [0.25, 0.5]],
    host_s=[[1.0, 0.5], [1.5, 0.5]],
)


def test_factors_by_hand() -> None:
    found = additive(BY_HAND)
    # longest ranks 9.25 and 9.5; minima of data 0.25 and 0.25, host 1 and 0.5, transfer 1 and 2
    total, data, host, transfer = 18.75, 0.5, 1.5, 3.0
    assert found["data_eff"] == pytest.approx((total - data) / total)
    assert found["host_eff"] == pytest.approx((total - data - host) / (total - data))
    rest = total - data - host - transfer
    assert found["transfer_eff"] == pytest.approx(rest / (total - data - host))
    assert found["serialisation_eff"] == pytest.approx(12 / rest)  # most compute 6 and 6
    assert found["load_balance"] == pytest.approx(10.5 / 12)  # mean compute 5 and 5.5
    product = math.prod(found[name] for name in FACTORS)
    assert product == pytest.approx(found["compute_s"] / found["profile_step_s"])
    assert factors(found) == {name: found[name] for name in FACTORS}
    assert out_of_range(BY_HAND) == ""


def test_classes_that_overlap_are_out_of_range() -> None:
    wrong = BY_HAND | {"compute_s": BY_HAND["compute_s"] + 4}
    assert out_of_range(wrong).startswith("serialisation_eff is 1.4")
    wrong = BY_HAND | {"data_s": BY_HAND["step_s"] + 1}
    assert "data_eff is -" in out_of_range(wrong)


def scaled_run(directory: Path, clock_s: float | None = 0.2, **settings: Any) -> list[Any]:
    """ddp on one rank, and on two of which one computes longer."""
    strong = settings.get("regime") == "strong"
    cases = [
        make_case("ddp", world, train={"micro_batch_size": 4 // world if strong else 2}, **settings)
        for world in (1, 2)
    ]
    write_plan(directory, cases, 1)
    for case in cases:
        tokens = 4 * case.train.micro_batch_size * case.train.seq_len
        lines = []
        for rank in range(case.world.size):
            compute_s = [0.12 + 0.02 * rank if case.world.size > 1 else 0.15] * 20
            lines += rank_lines(rank, [0.1] * 4, tokens=tokens, compute_s=compute_s)
        write_repeat(directory, case, 0, lines, environment=ENVIRONMENT)
        for rank in range(case.world.size if clock_s else 0):

            def clocked(line: dict[str, Any]) -> dict[str, Any]:
                line["values"]["step_time"] = {"step_ns": [clock_s * 1e9] * 20}
                return line

            change_line(place_of(directory, case, 0), rank, "profile", clocked)
    return cases


@pytest.mark.parametrize("regime", ["weak", "strong"])
def test_the_product_explains_the_efficiency_of_the_profiled_steps(
    tmp_path: Path, regime: str
) -> None:
    cases = scaled_run(tmp_path, regime=regime)
    results = merge_run(tmp_path)
    assert not any("explain" in problem for problem in results.problems)
    base, row = results.cases.to_dict("records")
    # weak: the same tokens a rank; both worlds take 0.2 s a profiled step
    expected = 1.0 if regime == "weak" else 0.5
    assert row["profile_efficiency"] == pytest.approx(expected)
    assert row["explained_efficiency"] == pytest.approx(expected)
    assert row["compute_scaling"] == pytest.approx(0.15 / 0.13 * expected)
    assert row["profile_clock_step_s"] == pytest.approx(0.2)
    assert math.isnan(base["explained_efficiency"])
    assert {case.regime for case in cases} == {regime}


def test_steps_that_their_own_clock_does_not_confirm_are_a_problem(tmp_path: Path) -> None:
    (_, two) = scaled_run(tmp_path)
    for rank in range(2):

        def slower(line: dict[str, Any]) -> dict[str, Any]:
            line["values"]["step_time"]["step_ns"] = [0.21e9] * 20
            return line

        change_line(place_of(tmp_path, two, 0), rank, "profile", slower)
    (problem,) = (p for p in merge_run(tmp_path).problems if "explain" in p)
    assert problem == (
        f"{two.case_id}: its factors explain an efficiency of 100.0%, but its profiled steps by "
        "their own clock have 95.2%"
    )


def test_records_without_the_clock_are_not_judged_by_it(tmp_path: Path) -> None:
    scaled_run(tmp_path, clock_s=None)
    results = merge_run(tmp_path)
    assert not any("explain" in problem for problem in results.problems)
    assert results.cases["explained_efficiency"].iloc[1] == pytest.approx(1.0)
    assert math.isnan(results.cases["profile_efficiency"].iloc[1])


def test_a_factor_out_of_range_costs_the_numbers_of_the_phase_and_is_named(tmp_path: Path) -> None:
    two = scaled_run(tmp_path)[1]

    def overlapping(line: dict[str, Any]) -> dict[str, Any]:
        line["values"]["communication"]["compute_s"] = [0.25] * 20  # of steps of 0.2 s
        return line

    change_line(place_of(tmp_path, two, 0), 1, "profile", overlapping)
    results = merge_run(tmp_path)
    _, row = results.cases.to_dict("records")
    assert (row["status"], row["tokens_per_s"]) == ("ok", pytest.approx(640.0))
    assert all(math.isnan(row[name]) for name in (*FACTORS, "comm_exposed_s", "imbalance"))
    named = [p for p in results.problems if p.startswith(f"{two.case_id}/0: ")]
    assert any("phase profile are not used: serialisation_eff is 1.667" in p for p in named)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"host_s": 0.0}, "the classes of a step of rank 1 in step 0 do not add up: 0.0"),
        ({"comm_exposed_s": 0.19}, "the exposed wait and transfer of rank 1 in step 0 do not add"),
        ({"comm_total_s": 0.9}, "the exposed and overlapped seconds of rank 1 in step 0 do not"),
        (dict.fromkeys(SERIES, 0.0), "a step took no time"),
    ],
)
def test_seconds_that_contradict_each_other_are_not_used(
    changed: dict[str, float], problem: str, tmp_path: Path
) -> None:
    two = scaled_run(tmp_path)[1]

    def contradict(line: dict[str, Any]) -> dict[str, Any]:
        values = line["values"]["communication"]
        values |= {name: [seconds] * len(values["step_s"]) for name, seconds in changed.items()}
        return line

    for rank in (0, 1) if len(changed) > 1 else (1,):
        change_line(place_of(tmp_path, two, 0), rank, "profile", contradict)
    results = merge_run(tmp_path)
    _, row = results.cases.to_dict("records")
    assert row["status"] == "ok"
    assert all(math.isnan(row[name]) for name in (*FACTORS, "comm_exposed_s", "imbalance"))
    assert any(f"phase profile are not used: {problem}" in said for said in results.problems)


@pytest.mark.parametrize("mode", ["train_step", "forward"])
def test_steps_of_several_ranks_without_a_collective_are_an_error_and_no_zero(
    mode: str, tmp_path: Path
) -> None:
    case = make_case("ddp", 2, train={"mode": mode})
    write_plan(tmp_path, [case], 1)
    lines = [one for rank in (0, 1) for one in rank_lines(rank, [0.1] * 4, compute_s=[0.06] * 20)]
    for line in lines:
        if line.get("phase") == "profile":
            values = line["values"]["communication"]
            values |= {name: [0.0] * 20 for name in values if name.startswith(("comm_", "exposed"))}
            values["host_s"] = [0.138] * 20
    write_repeat(tmp_path, case, 0, lines, environment=ENVIRONMENT)
    results = merge_run(tmp_path)
    (row,) = results.cases.to_dict("records")
    assert row["status"] == "ok"
    if mode == "forward":  # of replicas: nothing to say to each other
        assert (row["comm_exposed_s"], results.problems) == (0.0, [])
    else:
        assert all(
            math.isnan(row[name]) for name in ("comm_total_s", "comm_exposed_s", "imbalance")
        )
        assert any("no collective in any profiled step" in said for said in results.problems)


def test_every_efficiency_stands_beside_factors_that_multiply_to_it(tmp_path: Path) -> None:
    scaled_run(tmp_path)
    table = scaling_table(merge_run(tmp_path))
    assert table.under is not None
    (cells,) = table.under.cells()
    shown = dict(zip([column.header for column in table.under.columns], cells, strict=True))
    assert (shown["measured %"], shown["profiled %"]) == ("100.0", "100.0")
    signs = [name for name in shown if name[:2] in ("= ", "x ")]
    assert math.prod(float(shown[name]) for name in signs) == pytest.approx(1.0, abs=0.003)
    assert "Where the percents go" in as_text(table)
    assert "### Where the percents go" in table.to_markdown()
    assert "Where the percents go" in table.to_html()


def test_without_a_second_world_there_is_nothing_to_explain(tmp_path: Path) -> None:
    case = make_case("ddp", 2)
    write_plan(tmp_path, [case], 1)
    lines = [x for rank in range(2) for x in rank_lines(rank, [0.1] * 4, compute_s=[0.1] * 20)]
    write_repeat(tmp_path, case, 0, lines, environment=ENVIRONMENT)
    assert scaling_table(merge_run(tmp_path)).under is None


def test_a_factor_and_a_share_have_the_interval_of_their_launches(tmp_path: Path) -> None:
    cases = [make_case("ddp", 1), make_case("ddp", 2)]
    write_plan(tmp_path, cases, 3)
    for case in cases:
        for repeat, compute_s in enumerate((0.1, 0.104, 0.11)):
            seconds = [compute_s * case.world.size**0.1] * 20
            lines = [
                line
                for rank in range(case.world.size)
                for line in rank_lines(rank, [0.1] * 4, compute_s=seconds)
            ]
            write_repeat(tmp_path, case, repeat, lines, environment=ENVIRONMENT)
    results = merge_run(tmp_path)
    base, row = results.cases.to_dict("records")
    launches = results.repeats.groupby("case_id")
    of_base, of_row = (launches.get_group(one["case_id"]) for one in (base, row))
    for name in ("host_eff", "serialisation_eff"):
        by_hand = log_ratio_interval(of_row[name].tolist(), of_base[name].tolist())
        found = interval_of(row, f"{name}_vs_base")
        assert found.centre == row[name] / base[name]
        assert found.high / found.low == pytest.approx(by_hand.high / by_hand.low)
        assert found.low < found.centre < found.high
    assert interval_of(row, "compute_share") == pytest.approx(
        mean_interval((of_row["compute_s"] / of_row["profile_step_s"]).tolist())
    )
    assert math.isnan(interval_of(base, "host_eff_vs_base").low)


def test_a_factor_lies_within_its_interval_where_one_launch_is_many_times_as_long(
    tmp_path: Path,
) -> None:
    case = make_case("single")
    write_plan(tmp_path, [case], 5)
    for repeat, step_s in enumerate((0.2, 0.2, 0.2, 0.2, 5.0)):
        lines = rank_lines(0, [0.1] * 4, compute_s=[0.1] * 20)
        series = next(x for x in lines if x.get("phase") == "profile")["values"]["communication"]
        data_s = step_s - 0.19 + 0.001 * repeat
        series |= {"step_s": [step_s] * 20, "data_s": [data_s] * 20}
        series["host_s"] = [step_s - data_s - 0.14] * 20
        write_repeat(tmp_path, case, repeat, lines, environment=ENVIRONMENT)
    (row,) = merge_run(tmp_path).cases.to_dict("records")
    for name in FACTORS:
        found = interval_of(row, name)
        assert found.low <= found.centre <= found.high
    assert row["data_eff"] == pytest.approx(0.16, abs=0.01)  # of all seconds; of launches 0.8


def test_the_means_of_the_steps_are_the_launches_ratios_nearly() -> None:
    found, steps = additive(BY_HAND), by_step(BY_HAND)
    assert steps.keys() == found.keys()
    for name, x in steps.items():
        assert x.shape == (2,)
        assert x.mean() == pytest.approx(found[name], rel=1e-9 if name.endswith("_s") else 0.02)
    assert by_step({name: x[:, :1] for name, x in BY_HAND.items()}) == {}


def test_a_ratio_that_one_step_alone_has_is_bounded_by_its_launches(tmp_path: Path) -> None:
    """Without the one step that computes there is no balance, and nothing to draw steps from."""
    case = make_case("ddp", 2)
    write_plan(tmp_path, [case], 6)
    for repeat in range(6):
        compute_s = [0.0] * 7 + [0.1]
        lines = [one for r in (0, 1) for one in rank_lines(r, [0.1] * 4, compute_s=compute_s)]
        write_repeat(tmp_path, case, repeat, lines, environment=ENVIRONMENT)
    (row,) = merge_run(tmp_path).cases.to_dict("records")
    assert interval_of(row, "load_balance") == (1.0, 1.0, 1.0)


def test_from_six_launches_a_share_is_bounded_by_its_steps_too(tmp_path: Path) -> None:
    write_plan(tmp_path, [make_case("ddp", 1)], 6)
    rng = np.random.default_rng(1)
    of_launch = [0.1 * np.exp(0.1 * rng.standard_normal(20)) for _ in range(6)]
    for repeat, compute_s in enumerate(of_launch):
        lines = rank_lines(0, [0.1] * 4, compute_s=compute_s.tolist())
        write_repeat(tmp_path, make_case("ddp", 1), repeat, lines, environment=ENVIRONMENT)
    results = merge_run(tmp_path)
    (row,) = results.cases.to_dict("records")
    values = dict(enumerate(results.repeats["compute_s"]))
    assert interval_of(row, "compute_s") == pytest.approx(
        mean_interval(Sample(values, dict(enumerate(of_launch))))
    )
    assert interval_of(row, "compute_s") != pytest.approx(mean_interval([*values.values()]))


def test_the_additive_table_sums_to_the_step(tmp_path: Path) -> None:
    scaled_run(tmp_path)
    table = make_table(merge_run(tmp_path), "breakdown")
    frame = table.to_frame()
    parts = ["compute_s", "exposed_transfer_s", "exposed_wait_s", "data_s", "host_s", "end_skew_s"]
    assert frame[parts].sum(axis=1).to_numpy() == pytest.approx(frame["profile_step_s"])
    assert frame["host_eff_vs_base"].iloc[0] == 1.0
    shares = [f"{name[:-2]}_share" for name in parts]
    assert frame[shares].sum(axis=1).to_numpy() == pytest.approx(1.0)
    bounded = [*parts, *shares, *FACTORS, *REASONS, "comm_exposed_s", "profile_step_s"]
    assert {f"{name}_{end}" for name in bounded for end in ("low", "high")} <= set(frame)
    names = {name.removesuffix("_low").removesuffix("_high") for name in frame}
    assert names - {"case_id", *_identity()} <= set(METRICS)
    assert table.cells()[1][3].startswith("130.0")


def _identity() -> set[str]:
    return {"strategy", "options", "world_size", "nodes", "ranks_per_node"}
