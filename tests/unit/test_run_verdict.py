"""What a run answers in words: each sentence from rows, with its interval, and none without."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from noisy_runs import noisy_run, other_torch
from run_files import make_case, write_plan

from andromeda_scale.config import Case
from andromeda_scale.merge import Results, load_results, merge_run, write
from andromeda_scale.report.scaling import scaling_table
from andromeda_scale.report.verdict import Sentence, verdict

OOM = {"v": 1, "status": "oom", "cause": "2 GiB"}


def _said(results: Results, kind: str) -> list[Sentence]:
    return [one for one in verdict(results) if one.kind == kind]


def _texts(results: Results, kind: str) -> str:
    return "\n".join(one.text for one in _said(results, kind))


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """ddp scales to 4, zero1 is 1 % from it at 4, zero3 falls apart at 4, fsdp2 does not fit."""
    step_s = {
        "ddp": {1: 0.1, 2: 0.102, 4: 0.105},
        "zero1": {1: 0.1, 2: 0.103, 4: 0.1055},
        "zero3": {1: 0.11, 2: 0.12, 4: 0.21},
        "fsdp2": {4: 0.1},
    }
    cases = [(make_case(name, n), t) for name, of in step_s.items() for n, t in of.items()]
    failed = {case.case_id: OOM for case, _ in cases if case.strategy.name == "fsdp2"}
    run = noisy_run(tmp_path_factory.mktemp("run"), cases, seed=11, status=failed)
    return merge_run(run)


def test_every_sentence_names_rows_of_the_run_and_has_an_interval(answered: Results) -> None:
    known = set(answered.cases["case_id"])
    for sentence in verdict(answered):
        assert sentence.rows
        assert set(sentence.rows) <= known
        assert sentence.text.endswith(".")
        assert "nan" not in sentence.text
        assert re.search(r"\[[^\]]+, [^\]]+\]", sentence.text), sentence.text


def test_the_fastest_that_fits_is_named_with_what_does_not(answered: Results) -> None:
    (fastest,) = _said(answered, "fastest")
    row = answered.cases.set_index("case_id").loc[fastest.rows[0]]
    assert row["tokens_per_s"] == answered.cases["tokens_per_s"].max()
    assert fastest.numbers["tokens_per_s"] == row["tokens_per_s"]
    assert fastest.text.startswith("Fastest: ddp at world 4, ")
    assert "does not fit there: fsdp2" in fastest.text


def test_rivals_within_noise_are_not_told_apart(answered: Results) -> None:
    (fastest,) = _said(answered, "fastest")
    assert "zero1, the next there, which noise could explain" in fastest.text
    at_4 = next(one for one in _said(answered, "noise") if "world 4" in one.text)
    assert "zero1" in at_4.text
    assert "zero3" not in at_4.text


def test_a_strategy_that_stops_paying_is_named_with_the_world(answered: Results) -> None:
    said = {one.text.split()[0]: one for one in _said(answered, "scaling")}
    assert said["ddp"].text.startswith("ddp pays up to 4, the largest measured")
    assert said["zero3"].text.startswith("zero3 stops paying at 2: from 2 to 4 ranks")
    # 2 * 0.12 / 0.21 - 1
    assert said["zero3"].numbers["marginal"] == pytest.approx(0.143, abs=0.03)
    assert len(said["zero3"].rows) == 3


def test_the_cheapest_per_token_is_the_best_per_rank(answered: Results) -> None:
    (cheapest,) = _said(answered, "cheapest")
    best = answered.cases.loc[answered.cases["tokens_per_s_per_gpu"].idxmax()]
    assert cheapest.rows == (best["case_id"],)
    assert cheapest.numbers["hours"] == pytest.approx(1e9 / best["tokens_per_s_per_gpu"] / 3600)


def test_the_largest_loss_is_a_share_of_the_profile_with_its_remedy(answered: Results) -> None:
    (loss,) = _said(answered, "loss")  # 0.058 s of host in steps of 0.2 s
    assert loss.numbers["share"] == pytest.approx(0.058 / 0.2)
    assert "host, 29.0% [29.0%, 29.0%] of a profiled step" in loss.text
    assert "train.compile" in loss.text


def _verdict_of(directory: Path, cases: Sequence[tuple[Case, float]], **more: Any) -> Results:
    return merge_run(noisy_run(directory, cases, **more))


def test_one_launch_gives_no_interval_and_says_what_would(tmp_path: Path) -> None:
    pair = [(make_case("ddp", 2), 0.1), (make_case("zero1", 2), 0.2)]
    results = _verdict_of(tmp_path, pair, repeats=1)
    text = "\n".join(one.text for one in verdict(results))
    assert "nan" not in text
    assert "[" not in text
    assert "Too few launches to tell zero1 from ddp at world 2" in text


def test_one_rank_alone_has_no_scaling_and_no_rival(tmp_path: Path) -> None:
    results = _verdict_of(tmp_path, [(make_case("ddp", 1), 0.1)])
    assert [one.kind for one in verdict(results)] == ["fastest", "cheapest", "loss"]


def test_a_run_without_a_measured_case_says_so_and_nothing_else(tmp_path: Path) -> None:
    case = make_case("ddp", 2)
    failed = _verdict_of(tmp_path / "a", [(case, 0.1)], status={case.case_id: OOM})
    (said,) = verdict(failed)
    assert (said.kind, said.text) == ("nothing", "No case has been measured: oom x1.")
    write_plan(tmp_path / "b", [case])
    assert verdict(merge_run(tmp_path / "b"))[0].text == "No case has been measured: pending x1."
    assert "No case has been measured" in scaling_table(failed).to_text()


def test_rows_of_unequal_arithmetic_are_not_ranked_and_the_fact_is_named(tmp_path: Path) -> None:
    cases = [
        (make_case(name, 2), t) for name, t in (("ddp", 0.1), ("zero1", 0.11), ("zero2", 0.05))
    ]
    noisy_run(tmp_path, cases)
    for file in (tmp_path / "cases" / cases[2][0].case_id).glob("*/node-0.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines:
            if line["kind"] == "describe":
                line["values"]["dtypes"] |= {"reduction": "float16"}
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = merge_run(tmp_path)
    assert _said(results, "fastest")[0].text.startswith("Fastest of the rows ranked: ddp")
    (refused,) = _said(results, "refused")
    assert "dtypes.reduction" in refused.text
    assert refused.rows == (cases[2][0].case_id,)


def test_worlds_of_unlike_batches_are_refused_with_the_key(tmp_path: Path) -> None:
    small, large = make_case("ddp", 1), make_case("ddp", 2, train={"micro_batch_size": 4})
    refused = _texts(_verdict_of(tmp_path, [(small, 0.1), (large, 0.1)]), "refused")
    assert "has no efficiency against world 1: micro_batch_size 4 against 2" in refused


def test_launches_on_mixed_software_do_not_break_the_verdict(tmp_path: Path) -> None:
    case = make_case("ddp", 2)
    noisy_run(tmp_path, [(case, 0.1)])
    file = tmp_path / "cases" / case.case_id / "1" / "node-0.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0]["values"]["environment"] = other_torch()
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = merge_run(tmp_path)
    assert bool(results.cases["mixed"].item())
    assert _texts(results, "fastest").startswith("Fastest: ddp at world 2")


def test_the_verdict_of_the_tables_alone_is_that_of_the_records(
    answered: Results, tmp_path: Path
) -> None:
    write(answered, tmp_path)
    assert verdict(load_results(tmp_path)) == verdict(answered)


def test_hostile_text_is_one_line_of_a_terminal(tmp_path: Path) -> None:
    case = make_case("ddp", 2, options={"x": "\x1b[31m\n[red]"})
    text = scaling_table(_verdict_of(tmp_path, [(case, 0.1)])).to_text(300)
    assert "\x1b" not in text
    assert "Fastest: ddp" in text
