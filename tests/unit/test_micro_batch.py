"""`micro_batch_size: auto`, `strategy: auto`: what is tried, what is planned, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from planning import AUTO, EIGHT_GPUS, GIB, measured, plan, suite

from andromeda_scale.contracts.planned import Plan
from andromeda_scale.errors import UserError
from andromeda_scale.hardware.machine import Machine
from andromeda_scale.planning.expand import expand
from andromeda_scale.planning.search import Found, settle
from andromeda_scale.planning.table import print_plan
from andromeda_scale.registry import STRATEGIES
from andromeda_scale.suite.micro_batch import at_size, largest, largest_that_ran, next_size, sizes

STRONG = {"strong": {"global_batch_size": 48}}


def search(of: Any, first: int, most: int) -> tuple[int | None, dict[int, bool]]:
    """What is found, and every trial, where sizes up to `most` run."""
    ran: dict[int, bool] = {}
    while (size := next_size(of, first, ran)) is not None:
        assert size not in ran
        ran[size] = size <= most
    return largest_that_ran(of, ran), ran


@pytest.mark.parametrize("of", [range(1, 30), [1, 2, 3, 4, 6, 8, 12, 24], [1]])
def test_a_search_finds_the_largest_size_that_runs_wherever_it_begins(of: Any) -> None:
    for first in of:
        for most in range(of[-1] + 3):
            known = [size for size in of if size <= most]
            found, ran = search(of, first, most)
            assert found == (known[-1] if known else None)
            assert len(ran) <= 14


def test_a_good_guess_needs_few_trials() -> None:
    assert list(search(range(1, 10**6), 6, 6)[1]) == [6, 7]
    assert list(search(range(1, 10**6), 7, 6)[1]) == [7, 6]
    assert len(search(range(1, 10**6), 200, 210)[1]) <= 7
    assert list(search(range(1, 10**6), 1, 5)[1]) == [1, 2, 4, 8, 6, 5]  # no closed form


@pytest.mark.parametrize("fixed", [0.0, 0.05, 0.3, 0.85])
@pytest.mark.parametrize("most", [1, 2, 57, 400])
@pytest.mark.parametrize("error", [0.5, 0.9, 1.0, 1.04, 2.0])
def test_what_trials_used_leads_to_the_largest_that_runs(
    fixed: float, most: int, error: float
) -> None:
    of, first = range(1, 10**6), max(1, round(most * error))
    growth = (0.9 - fixed) / (most + 0.5)
    ran: dict[int, bool] = {}
    used: dict[int, float] = {}
    while (size := next_size(of, first, ran, used)) is not None:
        assert size not in ran
        ran[size] = size <= most
        if (share := fixed + growth * size) <= 1:  # else it was refused memory
            used[size] = share
    assert largest_that_ran(of, ran) == most
    assert len(ran) <= len(search(of, first, most)[1]) + 1
    if used and fixed <= 0.3 and abs(error - 1) < 0.1:
        assert len(ran) <= 4


@pytest.mark.parametrize(("most", "first"), [(10, 13), (100, 130), (7, 100), (333, 100)])
def test_an_allocator_that_frees_its_cache_in_need_misleads_little(most: int, first: int) -> None:
    ran: dict[int, bool] = {}
    used: dict[int, float] = {}
    while (size := next_size(range(1, 10**6), first, ran, used)) is not None:
        ran[size] = size <= most
        used[size] = min(0.97, 0.9 * size / (most + 0.5))
    assert largest_that_ran(range(1, 10**6), ran) == most
    assert len(ran) <= len(search(range(1, 10**6), first, most)[1]) + 1


def test_trials_that_ended_by_something_else_than_memory_draw_no_line() -> None:
    ran: dict[int, bool] = {}
    used: dict[int, float] = {}
    while (size := next_size(range(1, 10**6), 400, ran, used)) is not None:
        ran[size], used[size] = size < 300, size / 1000  # there is room for 900
    assert largest_that_ran(range(1, 10**6), ran) == 299
    assert len(ran) <= 12
    assert min(ran) > 100


def test_a_size_above_one_that_does_not_run_does_not_run_either() -> None:
    assert largest_that_ran(range(1, 9), {2: True, 3: False, 5: True}) == 2


def test_the_guess_is_the_largest_that_a_closed_form_lets_fit() -> None:
    for most in range(10):
        assert largest(range(1, 9), lambda size, most=most: size <= most) == min(8, max(1, most))


def test_a_cases_name_knows_no_guess() -> None:
    small, large = (
        measured(plan(Machine(2, memory_bytes=size * GIB), train=AUTO, world=[1]))[0][0]
        for size in (2, 8)
    )
    assert small.train.micro_batch_size < large.train.micro_batch_size
    assert small.case_id == large.case_id
    assert at_size(small, 4).case_id == at_size(large, 4).case_id
    (given, _) = measured(plan(train=AUTO | {"micro_batch_size": 4}, world=[1]))[0]
    assert at_size(small, 4).case_id == given.case_id  # a size that was found is one as any other


def test_another_limit_of_memory_is_another_search() -> None:
    def of(size: Any, limits: dict[str, Any]) -> set[str]:
        train = {"seq_len": 256, "micro_batch_size": size}
        return {c.case_id for c, _ in measured(plan(train=train, world=[1], limits=limits))}

    assert of("auto", {"memory_gib": 1}) != of("auto", {"memory_gib": 2})
    assert of("auto", {"timeout_s": 60}) == of("auto", {})
    assert of(4, {"memory_gib": 1}) == of(4, {"memory_gib": 2})  # measured alike


def test_strong_scaling_tries_what_shares_a_ranks_sequences_out_evenly() -> None:
    case = measured(plan(train=AUTO, scaling=STRONG, world=[2]))[0][0]
    assert sizes(case) == [1, 2, 3, 4, 6, 8, 12, 24]
    for size in sizes(case):
        assert at_size(case, size).global_batch_size == 48


def test_searches_come_first_and_references_wait_for_them() -> None:
    made = plan(train=AUTO, axes={"strategy": ["ddp", "fsdp2"]}, measure={"repeats": 2})
    roles = [item.role for item in made.repeats]
    assert roles == ["search"] * 4 + ["measure"] * 8
    assert all(item.search_id == item.case_id for item in made.repeats if item.role == "measure")


def test_a_plan_says_that_its_batches_are_guesses(capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(plan(train=AUTO, world=[1, 2]))
    text = " ".join(capsys.readouterr().out.split())
    assert "micro_batch_size auto, about " in text
    assert "10 launches: 10 of cases, 0 parity references; 0 cases skipped; 2 micro batches" in text
    assert "the batches and bytes of these cases are a guess by closed forms" in text
    assert "auto_worlds gives the worlds of a row one" in text
    assert "(launches x limits.timeout_s), and limits.timeout_s for every trial of a search" in text


def settled(made: Plan, **by_strategy: int | None) -> Plan:
    found = {
        item.case_id: Found(size, "" if size else "not enough memory for micro_batch_size 1: x")
        for item in made.repeats
        if item.role == "search"
        for size in [by_strategy[made.cases[item.case_id].strategy.name]]
    }
    return settle(made, found)


def test_what_was_found_is_the_plan_that_would_have_been_written() -> None:
    keys: dict[str, Any] = {"world": [2], "measure": {"repeats": 2}, "seed": 3}
    asked = {"axes": {"strategy": ["ddp", "fsdp2"]}, **keys}
    made = settled(plan(train=AUTO, **asked), ddp=4, fsdp2=4)
    written = plan(train=AUTO | {"micro_batch_size": 4}, **asked)
    named = ("role", "case_id", "repeat", "reference_id", "estimated_memory_bytes", "device")

    def said(p: Plan) -> list[tuple[Any, ...]]:
        return [tuple(getattr(i, n) for n in named) for i in p.repeats if i.role != "search"]

    assert said(made) == said(written)
    assert {k: c for k, c in made.cases.items() if c.auto is None} == written.cases
    assert settle(made, {}) == made  # nothing new is known
    assert settled(made, ddp=4, fsdp2=4) == made


def test_each_found_size_has_a_reference_of_its_batch() -> None:
    made = settled(plan(train=AUTO, axes={"strategy": ["ddp", "zero1"]}, world=[2]), ddp=4, zero1=6)
    for case, item in measured(made):
        reference = made.cases[str(item.reference_id)]
        assert reference.global_batch_size == case.global_batch_size
        assert reference.train.micro_batch_size == case.train.micro_batch_size
    assert sorted(c.train.micro_batch_size for c, _ in measured(made)) == [4, 6]
    again = settled(made, ddp=4, zero1=4)  # a search that was made again found another
    assert [i.role for i in again.repeats[:2]] == ["reference", "search"]
    assert len(again.cases) == 5


def test_a_case_of_which_no_size_runs_is_a_row_with_its_reason() -> None:
    made = settled(plan(train=AUTO, axes={"strategy": ["ddp", "zero1"]}, world=[2]),
                   ddp=None, zero1=3)  # fmt: skip
    skips = {case.strategy.name: item.skip for case, item in measured(made)}
    assert skips == {"ddp": "not enough memory for micro_batch_size 1: x", "zero1": None}


def test_a_size_that_is_asked_for_too_is_measured_once() -> None:
    made = plan(axes={"train.micro_batch_size": [4, "auto"]}, train={"seq_len": 256}, world=[1])
    (case,) = {case.case_id for case, _ in measured(settled(made, ddp=4))}
    assert len([i for i in settled(made, ddp=4).repeats if i.case_id == case]) == 5


def test_auto_worlds_gives_the_worlds_of_a_row_the_smallest() -> None:
    for word, sizes_found in (("auto", [6, 4]), ("auto_worlds", [4, 4])):
        made = plan(train=AUTO | {"micro_batch_size": word}, world=[1, 2])
        found = {
            item.case_id: Found(size) for item, size in zip(made.repeats, (6, 4), strict=False)
        }
        given = [case.train.micro_batch_size for case, _ in measured(settle(made, found))]
        assert sorted(given, reverse=True) == sizes_found


def test_a_size_that_no_case_can_have_is_no_size() -> None:
    made = plan(train=AUTO, scaling=STRONG, world=[2])
    (_, item), *_ = measured(settled(made, ddp=5))
    assert item.skip == "its search for a micro batch found 5, which it cannot have"


def test_auto_is_every_strategy_and_what_does_not_fit_is_said() -> None:
    train = {"seq_len": 2048, "precision": "bf16"}
    made = plan(EIGHT_GPUS, model="andromeda-7b", world=[8], strategy="auto", train=train)
    skips = {case.strategy.name: item.skip for case, item in measured(made)}
    assert set(skips) == set(STRATEGIES)
    assert skips["fsdp2"] is None
    assert skips["zero3"] is None
    assert "GiB per rank, has 78.25 GiB of GPU memory for tensors" in str(skips["ddp"])
    assert skips["single"] == "single runs on one rank only"
    both = plan(EIGHT_GPUS, model="andromeda-7b", world=[8], strategy="auto",
                train=train | {"micro_batch_size": "auto"})  # fmt: skip
    searched = [both.cases[i.case_id] for i in both.repeats if i.role == "search"]
    assert {c.strategy.name for c in searched} == {n for n, skip in skips.items() if skip is None}
    assert all(c.train.micro_batch_size > 1 for c in searched)


def test_a_strategy_of_an_axis_may_be_auto() -> None:
    points = expand(suite(axes={"strategy": [{"name": "ddp", "static_graph": True}, "auto"]}), "x")
    assert len({p.case.case_id for p in points}) == 2 * (1 + len(STRATEGIES))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"train": {"micro_batch_size": "atuo"}},
            "'atuo' is no micro batch (x.yaml); use a number",
        ),
        ({"train": {"micro_batch_size": 0}}, "0 is not a positive integer (x.yaml); use 1 or more"),
        ({"strategy": "auot"}, "strategy: 'auot' is no strategy (x); did you mean auto?"),
        (
            {"strategy": {"name": "auto", "bucket_cap_mb": 3}},
            "strategy.bucket_cap_mb: auto takes every strategy as it comes (x); remove it",
        ),
        (
            {"train": AUTO, "faults": [{"kind": "memory", "rank": 0, "mib": 1}]},
            "auto, and faults[0] changes what fits on one rank (x); give a number",
        ),
        (
            {
                "train": AUTO,
                "scaling": {"strong": {"global_batch_size": 8, "shrink": "micro_batch"}},
            },
            "micro_batch says it already (x); use shrink: accumulation",
        ),
        (
            {"train": {"micro_batch_size": "auto_worlds"}, "scaling": STRONG},
            "auto_worlds, and strong scaling compares worlds with any (x); use auto",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        expand(suite(**keys), "x")
    assert said in str(error.value)
