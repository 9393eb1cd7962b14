"""What a run answers in words: each sentence from rows, with its interval, and none without."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from noisy_runs import noisy_run, other_torch
from run_files import make_case, rank_lines, write_plan, write_repeat

from andromeda_scale.analysis import rivals
from andromeda_scale.analysis.comparison import compare_launches
from andromeda_scale.merge import Results, load_results, merge_run, write
from andromeda_scale.report.scaling import scaling_table
from andromeda_scale.report.tables import as_text
from andromeda_scale.report.verdict import Sentence, verdict
from andromeda_scale.suite.config import Case

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
    pays, stops = _said(answered, "scaling")
    assert pays.text.startswith("More ranks pay as far as was measured: ")
    for name in ("ddp", "zero1"):
        assert f"{name} to 4 (2 to 4 ranks: 1.9" in pays.text
    assert "1.5x for twice the ranks): zero3 at 2 (2 to 4 ranks: 1.1" in stops.text
    assert len(stops.rows) == 3
    (gain,) = stops.numbers.values()
    assert gain == pytest.approx(2 * 0.12 / 0.21, abs=0.03)


def test_what_a_base_gains_is_the_speedup_of_the_table(tmp_path: Path) -> None:
    pair = [(make_case("ddp", 1), 0.1), (make_case("ddp", 2), 0.11)]
    results = _verdict_of(tmp_path, pair)
    row = results.cases.set_index("world_size").loc[2]
    centre, low, high = (row[f"speedup{end}"] for end in ("", "_low", "_high"))
    assert f"(1 to 2 ranks: {centre:.3f}x [{low:.3f}, {high:.3f}])" in _texts(results, "scaling")


def test_a_step_that_noise_hides_is_neither_paid_nor_lost(tmp_path: Path) -> None:
    pair = [(make_case("ddp", 1), 0.1), (make_case("ddp", 2), 0.2 / 1.5)]
    (said,) = _said(_verdict_of(tmp_path, pair, noise=20), "scaling")
    assert said.text.startswith("These launches do not tell whether more ranks pay (paying: ")
    assert "ddp to 2 (1 to 2 ranks: " in said.text


def test_rows_are_not_told_apart_exactly_where_the_interval_said_contains_1(tmp_path: Path) -> None:
    step_s = {"ddp": 0.1, "zero1": 0.1004, "zero2": 0.1007, "zero3": 0.104, "fsdp2": 0.2}
    results = _verdict_of(tmp_path, [(make_case(name, 2), t) for name, t in step_s.items()])
    text = _texts(results, "noise")
    said = re.findall(r"x \[([\d.]+), ([\d.]+)\]", text)
    assert said
    for low, high in said:
        assert float(low) <= 1 <= float(high)
    alone = rivals.samples_of(results)
    best = alone[_said(results, "fastest")[0].rows[0]]
    told = [name for name in step_s if name not in text]
    assert "fsdp2" in told
    for case_id in results.cases.set_index("strategy").loc[told, "case_id"]:
        assert alone[case_id] is best or compare_launches(best, alone[case_id]).differs


def test_rows_of_two_drivers_have_two_names(tmp_path: Path) -> None:
    cases = [(make_case("ddp", 2, driver=one), 0.1) for one in ("native", "accelerate")]
    assert "ddp, driver native from ddp, driver accelerate" in _texts(
        _verdict_of(tmp_path, cases), "noise"
    ) or "ddp, driver accelerate from ddp, driver native" in _texts(merge_run(tmp_path), "noise")


def test_a_program_gets_the_rows_and_numbers_of_every_sentence(answered: Results) -> None:
    said = json.loads(scaling_table(answered).to_json())["verdict"]
    assert [one["text"] for one in said] == [one.text for one in verdict(answered)]
    assert all(one["case_ids"] for one in said)
    assert said[0]["numbers"]["tokens_per_s"] == answered.cases["tokens_per_s"].max()


def test_the_cheapest_per_token_is_the_best_per_rank(answered: Results) -> None:
    (cheapest,) = _said(answered, "cheapest")
    best = answered.cases.loc[answered.cases["tokens_per_s_per_gpu"].idxmax()]
    assert cheapest.rows[0] == best["case_id"]
    assert "the next, takes 1.0" in cheapest.text
    assert cheapest.numbers["rank_hours_per_gtoken"] == pytest.approx(
        1e9 / best["tokens_per_s_per_gpu"] / 3600
    )


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
    assert "Too few launches to tell: at world 2 ddp from zero1" in text


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
    assert "No case has been measured" in as_text(scaling_table(failed))


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
    assert "No efficiency against world 1: micro_batch_size 4 against 2: ddp at world 2." in refused


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
    text = as_text(scaling_table(_verdict_of(tmp_path, [(case, 0.1)])), 300)
    assert "\x1b" not in text
    assert "Fastest: ddp" in text


def test_the_fastest_says_that_launches_of_it_failed_and_what_it_does_not_know(
    tmp_path: Path,
) -> None:
    ddp, zero = make_case("ddp", 2), make_case("zero1", 2)
    noisy_run(tmp_path, [(ddp, 0.1), (zero, 0.2)], repeats=3)
    for repeat in ("1", "2"):
        (tmp_path / "cases" / ddp.case_id / repeat / "status.json").write_text(json.dumps(OOM))
    results = merge_run(tmp_path)
    (fastest,) = _said(results, "fastest")
    assert "launches of it failed (ok x1, oom x2: 2 GiB)" in fastest.text
    (note,) = [note for note in scaling_table(results).notes if "widest interval" in note]
    assert "(1 of 2 rows have one)" in note
    assert "matched or beaten in all" in _texts(results, "front")  # as much memory is no worse


def test_a_row_of_one_step_has_no_spread(tmp_path: Path) -> None:
    case = make_case("ddp", 1)
    write_plan(tmp_path, [case])
    for repeat in range(3):
        write_repeat(tmp_path, case, repeat, rank_lines(0, [0.1], tokens=32))
    table = scaling_table(merge_run(tmp_path)).to_markdown()
    assert "100.0" in table
    assert "100.0 +-" not in table


def test_a_slow_size_between_two_good_ones_stops_nothing(tmp_path: Path) -> None:
    noisy_run(tmp_path, [(make_case("ddp", n), t) for n, t in ((1, 0.1), (2, 0.2), (4, 0.1))])
    results = merge_run(tmp_path)
    assert "stop paying" not in _texts(results, "scaling")
    assert "pay as far as was measured: ddp to 4" in _texts(results, "scaling")
    assert "ddp at world 2" in _texts(results, "odd")


def test_an_error_in_markdown_keeps_its_angle_brackets_and_pipes(tmp_path: Path) -> None:
    case = make_case("ddp", 1)
    died = {"v": 1, "status": "crashed", "cause": "TypeError: <class 'X'> | </details>"}
    noisy_run(tmp_path, [(case, 0.1)], status={case.case_id: died})
    text = scaling_table(merge_run(tmp_path)).to_markdown()
    assert "TypeError: &lt;class 'X'> | &lt;/details>" in text
    assert "<" not in text


def test_launches_of_the_best_alone_do_not_make_its_rivals_pairs_say_the_opposite(
    tmp_path: Path,
) -> None:
    """ddp is the fastest by two launches that fsdp2 did not survive, and slower in the pairs."""
    step_s = {
        "ddp": (0.1, 0.1005, 0.0998, 0.077, 0.077),
        "fsdp2": (0.095, 0.0953, 0.0949, None, None),
    }
    cases = {name: make_case(name, 2) for name in step_s}
    write_plan(tmp_path, [*cases.values()], 5)
    for name, times in step_s.items():
        for repeat, time_s in enumerate(times):
            lines = [line for rank in (0, 1) for line in rank_lines(rank, [time_s or 0.1] * 4)]
            write_repeat(tmp_path, cases[name], repeat, lines, None if time_s else OOM)
    results = merge_run(tmp_path)
    (fastest,) = _said(results, "fastest")
    rates = results.cases.set_index("strategy")["tokens_per_s"]
    assert fastest.text.startswith("Fastest: ddp at world 2")
    assert fastest.numbers["ratio"] == pytest.approx(rates["ddp"] / rates["fsdp2"])
    assert "the next there, which noise could explain" in fastest.text
