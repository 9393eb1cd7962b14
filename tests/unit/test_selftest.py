"""The selftest's rows: what is planted where, and what verdict follows from what was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from andromeda_scale import selftest
from andromeda_scale.errors import UserError
from andromeda_scale.hardware.machine import Machine
from andromeda_scale.selftest.evidence import Finding, Launch, judge, milliseconds, ratio
from andromeda_scale.selftest.place import NULL, Null, Place, Row, next_at_most
from andromeda_scale.selftest.rows import rows
from andromeda_scale.suite.faults import falls_on

GIB = 1 << 30
TWO, ONE = Place("cpu", 2), Place("cpu", 1)
QUIET = Null(late_s=0.001, noise_s=0.001, step_s=0.02, wire_bytes=2.6e6)


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(cpu_cores=4, memory_bytes=64 * GIB)
    monkeypatch.setattr("andromeda_scale.selftest.detect_machine", lambda: machine)


def launch(waits: Sequence[float], compute: Sequence[float], **row: Any) -> Launch:
    """A launch of two ranks; `row` is what its row of repeats.parquet holds beside."""
    plain = {"blamed_ranks": "", "blame_cause": "", "blame_kind": "", "late_s": 0.001}
    ranks = pd.DataFrame({"exposed_wait_s": waits, "compute_s": compute})
    imbalance = max(compute) / (sum(compute) / len(compute)) - 1
    return Launch(plain | {"imbalance": imbalance} | row, {}, ranks)


def row_of(words: str, place: Place = TWO, null: Null = QUIET) -> Row:
    (found,) = [row for row in rows(place, null, quick=True) if words in row.planted]
    return found


NULLS = [launch([0.001 * k, 0.0], [0.01, 0.01]) for k in (1, 2, 3)]  # rank 0 waits for 2 ms
BLAMED = {"blamed_ranks": "1", "blame_cause": "compute", "blame_kind": "persistent"}


def late(waited: float, compute: float, **row: Any) -> Launch:
    return launch([waited + 0.002, 0.0], [0.01, 0.01 + compute], **{**BLAMED, **row})


def test_every_row_is_planned_to_run_on_cores_of_its_own(four_cores: None) -> None:
    planted = rows(Place("cpu", 4), QUIET, quick=False)
    assert not any(row.unavailable for row in planted)
    plan, cases, _ = selftest.make(Place("cpu", 4), planted)
    assert len(cases) == len(plan.cases) == sum(len(row.cases) for row in planted)
    assert not any(item.skip for item in plan.repeats)
    assert {case.world.size for case in plan.cases.values()} == {4}
    launched = Counter(item.case_id for item in plan.repeats)
    for row in planted:
        assert {launched[cases[name].case_id] for name in row.cases} == {row.num_launches}


def test_launches_go_there_and_back(four_cores: None) -> None:
    planted = [row for row in rows(TWO, QUIET, quick=True) if not row.unavailable]
    plan, cases, _ = selftest.make(TWO, planted)
    turns = [[i.case_id for i in plan.repeats if i.repeat == repeat] for repeat in (0, 1)]
    assert turns[0] == [case.case_id for case in cases.values()]
    assert turns[1] == turns[0][::-1]


def test_the_steps_that_are_late_are_that_share_of_those_looked_at(four_cores: None) -> None:
    _, cases, _ = selftest.make(TWO, [row_of("30% of steps")])
    (case,) = cases.values()
    first = case.measure.warmup.max_steps + case.measure.steps
    steps = range(first, first + case.measure.profile_steps)
    late_in = sum(falls_on(step, 0.3, case.seed, 0) for step in steps)
    assert late_in == round(0.3 * case.measure.profile_steps)


def verdicts(row: Row, found: dict[str, list[Launch]]) -> list[str]:
    return [one.verdict.partition(":")[0] for one in row.judge({NULL: NULLS, **found})]


def test_a_delay_that_is_found_passes_and_one_that_is_not_fails() -> None:
    row, delay = row_of("rank 1 computes 50"), 0.05
    right = [late(delay, delay)] * 3
    assert verdicts(row, {"compute": right}) == ["pass", "pass", "pass"]
    short = [late(0.88 * delay, delay)] * 3
    assert verdicts(row, {"compute": short}) == ["pass", "fail", "pass"]
    other_rank = [*right[:2], late(delay, delay, blamed_ranks="0")]
    assert verdicts(row, {"compute": other_rank}) == ["fail", "pass", "pass"]
    not_compute = [late(delay, 0.0, blame_cause="host")] * 3
    assert verdicts(row, {"compute": not_compute}) == ["fail", "pass", "fail"]
    host = row_of("sleeps")
    assert verdicts(host, {"host": not_compute}) == ["pass", "pass", "pass"]
    assert verdicts(host, {"host": right}) == ["fail", "pass", "fail"]


def test_what_launches_alike_disagree_on_is_too_noisy_with_the_null() -> None:
    row = row_of("rank 1 computes 50")
    found = row.judge({NULL: NULLS, "compute": [late(x, 0.05) for x in (0.04, 0.05, 0.06)]})
    assert found[1].verdict == ("unavailable: too noisy (null 2.0 ms, launches differ by 10.0 ms)")
    noisier = [launch([0.002, 0.0], [0.01, 0.01], late_s=0.02)]
    named = row.judge({NULL: noisier, "compute": [late(0.05, 0.05)]})[0]
    assert named.verdict == "unavailable: too noisy (null 20.0 ms)"


def test_what_no_noise_explains_fails_however_much_launches_differ() -> None:
    def verdict(*values: float) -> str:
        return judge("x", "y", [0.05], values, text=milliseconds).verdict.partition(":")[0]

    assert verdict(0.494, 0.5, 0.506) == verdict(0.0, 0.0, 0.006) == "fail"
    assert verdict(0.05, 0.058, 0.064) == verdict(0.044, 0.05, 0.056) == "unavailable"


def test_nobody_may_be_blamed_where_nothing_is_planted() -> None:
    row = row_of(NULL)
    blaming = launch([0.0, 0.0], [0.01, 0.01], **BLAMED)
    assert verdicts(row, {}) == ["pass"]
    assert verdicts(row, {NULL: [*NULLS, blaming]}) == ["unavailable"]
    assert verdicts(row, {NULL: [*NULLS, blaming, blaming]}) == ["fail"]
    assert verdicts(row, {NULL: [*NULLS * 7, blaming]}) == ["pass"]


def test_a_number_that_is_missing_fails() -> None:
    found = judge("x", "y", [1.0], [float("nan")], text=ratio)
    assert found.verdict == "fail: a launch has no such number"
    busy = selftest._excused(found, QUIET, 0.5)
    assert busy == found


def test_what_fails_beside_other_programs_is_undecided() -> None:
    found = Finding("x", "y", "1", "2", "0.1", "fail")
    assert selftest._excused(found, QUIET, 0.01) == found
    assert selftest._excused(found, QUIET, 0.5).verdict == (
        "unavailable: too noisy (null 1.0 ms, other programs had 50% of the cores)"
    )


def test_the_delay_follows_from_the_null_and_a_noisy_machine_has_none() -> None:
    assert QUIET.delay_s == 0.05
    assert Null(0.03, 0.001, 0.02, 0.0).delay_s == pytest.approx(0.09)
    assert Null(0.001, 0.008, 0.02, 0.0).delay_s == pytest.approx(0.08)
    noisy = Null(0.08, 0.001, 0.02, 0.0)
    reasons = {row.planted: row.unavailable for row in rows(TWO, noisy, quick=True)}
    assert reasons.pop(NULL) == ""
    assert reasons.pop("rank 1 holds 512 MiB more") == ""
    assert reasons.pop("communication removed") == ""
    two_late = next(name for name in reasons if "two ranks" in name)
    assert "needs 3 ranks" in reasons.pop(two_late)
    said = "unavailable: too noisy (null 80.0 ms, launches differ by 1.0 ms)"
    assert set(reasons.values()) == {said}


def test_a_rank_alone_waits_for_nobody() -> None:
    reasons = [row.unavailable for row in rows(ONE, QUIET, quick=True)]
    assert sum("needs 2 ranks with a core each, 1 here" in reason for reason in reasons) == 7
    assert sum(reason == "" for reason in reasons) == 3  # slow data twice, memory


def test_exposed_seconds_are_held_against_steps_without_communication() -> None:
    """2 % of 100 ms above what is gained without communication; on GPUs not far below either, when
    what communication takes from compute is added."""

    def silent(*exposed_s: float, place: Place = TWO, contention_s: float = 0.0) -> str:
        row = row_of("communication removed", place)
        same = {"ablation_s": 0.03, "profile_step_s": 0.1, "ablation_error_s": 0.001}
        same["contention_s"] = contention_s
        mine = [launch([0.0, 0.0], [0.1, 0.1], comm_exposed_s=x, **same) for x in exposed_s]
        (verdict,) = verdicts(row, {"silent ddp": mine})
        return verdict

    assert silent(0.030, 0.0315, 0.033) == "pass"
    assert silent(0.036, 0.036, 0.036) == "fail"
    assert silent(0.030, 0.0325, 0.035) == "unavailable"
    assert silent(0.01, 0.01) == "pass"  # contention
    assert silent(0.01, 0.01, place=Place("cuda", 2)) == "fail"
    assert silent(0.028, 0.028, place=Place("cuda", 2)) == "pass"
    assert silent(0.01, 0.01, place=Place("cuda", 2), contention_s=0.02) == "pass"
    assert silent(float("nan")) == "fail"


def test_two_late_ranks_are_named_in_order() -> None:
    row = row_of(";", Place("cpu", 4))
    both = launch([0.1, 0.1, 0, 0], [0.1] * 4, **{**BLAMED, "blamed_ranks": "3, 2"})
    assert verdicts(row, {"two": [both]}) == ["pass"]
    assert verdicts(row, {"two": [late(0.1, 0.1)]}) == ["fail"]


def test_the_world_is_as_large_as_there_are_gpus_or_cores() -> None:
    gpus = Machine(cpu_cores=64, gpus=[80 * GIB] * 2, memory_bytes=GIB)
    assert selftest.choose(gpus, "auto") == Place("cuda", 2)
    assert selftest.choose(gpus, "cpu") == Place("cpu", 8)
    assert selftest.choose(Machine(cpu_cores=2), "auto") == Place("cpu", 2)
    with pytest.raises(UserError, match="--device cuda: no GPU can be used here; use --device cpu"):
        selftest.choose(Machine(cpu_cores=2), "cuda")
    link = row_of("link", Place("cuda", 2))
    assert "NVLink" in link.unavailable


def test_the_table_names_what_is_planted_once_and_counts() -> None:
    found = [
        Finding("a", "x", "1", "1", "0.1", "pass"),
        Finding("a", "y", "1", "2", "0.1", "fail"),
        Finding("b", "", "", "", "", "unavailable: needs 3 ranks"),
    ]
    text = selftest.to_table(found)
    assert text.count("| a ") == 1
    assert text.endswith("1 passed, 1 failed, 1 unavailable\n")
    assert milliseconds(0.0501) == "50.1 ms"


def test_the_floor_is_what_one_more_launch_would_hardly_exceed() -> None:
    """t(0.99, 2) = 6.965: 2 + 6.965 * 1 * sqrt(4/3); of equal launches the largest."""
    assert next_at_most([1.0, 2.0, 3.0]) == pytest.approx(2 + 6.9646 * (4 / 3) ** 0.5, rel=1e-4)
    assert next_at_most([0.5, 0.5]) == 0.5
    assert next_at_most([0.25]) == 0.25


@pytest.mark.parametrize("there", ["mine", "mine-null"])
def test_a_directory_that_exists_is_named_before_anything_starts(
    tmp_path: Path, there: str
) -> None:
    (tmp_path / there).mkdir()
    with pytest.raises(UserError, match=rf"--run-dir \S+/mine: \S+/{there} exists"):
        selftest.run("cpu", tmp_path / "mine", quick=True, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == [there]
