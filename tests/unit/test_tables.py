"""The scaling table: what a reader sees, in every medium, for every kind of row."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from run_files import make_case, rank_lines, write_plan, write_repeat

from andromeda_scale import api
from andromeda_scale.commands import showing
from andromeda_scale.hardware.machine import Machine
from andromeda_scale.merge import merge_run
from andromeda_scale.metrics import METRICS
from andromeda_scale.metrics.formats import binary, percent, significant
from andromeda_scale.planning.plan import make_plan
from andromeda_scale.planning.suite_file import mapping_suite
from andromeda_scale.planning.table import print_plan
from andromeda_scale.report import catalogue
from andromeda_scale.report.columns import Column, setting
from andromeda_scale.report.scaling import scaling_table
from andromeda_scale.report.tables import PLAIN_WIDTH, Table, as_text
from andromeda_scale.suite.config import Case


def _table(directory: Path, *cases: Case, repeats: int = 3, **status: Any) -> Table:
    """Every case at 0.1 s a step and 128 tokens a rank, with a slower second rank."""
    write_plan(directory, list(cases), repeats)
    for case in cases:
        for repeat in range(repeats):
            lines = [
                line
                for rank in range(case.world.size)
                for line in rank_lines(
                    rank,
                    [0.1] * 4,
                    tokens=4 * case.train.micro_batch_size * case.train.seq_len,
                    compute_s=[0.1 + 0.02 * rank] * 20,
                    charged_s=[0.03 * rank] * 20,
                    peak_memory_bytes=2**30,
                )
            ]
            found = status if case is cases[-1] and status else None
            write_repeat(directory, case, repeat, lines, status=found)
    return scaling_table(merge_run(directory))


def _cells(table: Table, row: int = 0) -> dict[str, str]:
    return dict(zip([column.header for column in table.columns], table.cells()[row], strict=True))


def test_a_row_shows_every_number_with_its_unit(tmp_path: Path) -> None:
    table = _table(tmp_path, make_case("ddp", 1), make_case("ddp", 2))
    assert _cells(table, 1) == {
        "strategy": "ddp",
        "world": "2",
        "status": "ok",
        "tokens/s": "640.0",
        "per rank": "320.0",
        "step ms +-MAD": "100.0 +-0",
        "speedup": "2.00x",
        "efficiency %": "100.0 [100.0, 100.0]",
        "exposed ms": "40.0 (20%)",
        "imbalance": "9.1% r1",
        "peak memory": "1.00 GiB r0",
    }
    assert _cells(table, 0)["efficiency %"] == "base"
    assert _cells(table, 0)["imbalance"] == "-"
    notes = "\n".join(table.notes)
    assert "ddp at world 1: 320.0" in notes
    assert "3 launches a row" in notes
    assert "95 % t interval" in notes
    assert "threads per rank 1" in notes
    assert "ddp at world 2: rank 1 on node0 (cpu), 20.00 ms a step, persistent, compute" in notes
    assert "no null floor stored" in notes
    assert "MFU" not in notes


def test_under_three_launches_no_interval_is_shown_and_the_note_says_so(tmp_path: Path) -> None:
    table = _table(tmp_path, make_case("ddp", 1), make_case("ddp", 2), repeats=2)
    assert _cells(table, 1)["efficiency %"] == "100.0"
    assert any("under 3 launches there is no interval" in note for note in table.notes)


def test_a_failed_case_shows_its_status_no_number_and_its_cause(tmp_path: Path) -> None:
    status = {"status": "oom", "rank": 1, "host": "n7", "phase": "measure", "cause": "2 GiB"}
    table = _table(tmp_path, make_case("ddp", 1), make_case("zero3", 2), **status)
    cells = _cells(table, 1)
    assert cells.pop("strategy") == "zero3"
    assert cells.pop("world") == "2"
    assert cells.pop("status") == "oom [1]"
    assert set(cells.values()) == {"-"}
    assert table.notes[0] == "[1] oom x3: rank 1 on n7 in measure: 2 GiB"


def test_a_case_with_a_failed_launch_says_how_many_counted(tmp_path: Path) -> None:
    case = make_case("ddp", 1)
    table = _table(tmp_path, case)
    place = tmp_path / "cases" / case.case_id / "2" / "status.json"
    place.write_text(json.dumps({"status": "crashed", "cause": "killed by SIGKILL"}))
    table = scaling_table(merge_run(tmp_path))
    assert _cells(table)["status"] == "ok 2/3 [1]"
    assert table.notes[0] == "[1] ok x2, crashed x1: killed by SIGKILL"


def test_text_from_records_is_neither_markup_nor_a_terminal_escape(tmp_path: Path) -> None:
    cause = "[red]x[/red] [/bold] \x1b[31m\nsecond | line"
    table = _table(tmp_path, make_case("ddp", 1), status="crashed", cause=cause)
    file = io.StringIO()
    Console(file=file, width=200, force_terminal=True).print(table.to_rich())
    for text in (file.getvalue(), as_text(table, 200), table.to_markdown()):
        assert "[red]x[/red] [/bold]" in text
        assert "\x1b[31m" not in text
    assert "\n" not in "".join(_cells(table).values())


def test_text_from_records_is_no_tag_of_the_page_that_markdown_becomes(tmp_path: Path) -> None:
    table = _table(
        tmp_path, make_case("ddp", 1), status="crashed", cause="<script>x</script> 1 < 2"
    )
    markdown = table.to_markdown()
    assert "&lt;script>x&lt;/script> 1 &lt; 2" in markdown
    assert "<script" not in markdown


def test_the_terminal_table_fits_120_columns_unfolded(tmp_path: Path) -> None:
    cases = [make_case("fsdp2", 1), make_case("fsdp2", 2)]
    text = as_text(_table(tmp_path, *cases))
    assert max(map(len, text.splitlines())) <= PLAIN_WIDTH
    (line,) = (line for line in text.splitlines() if "100.0 [100.0, 100.0]" in line)
    assert line.split()[:5] == ["fsdp2", "2", "ok", "640.0", "320.0"]
    assert line.endswith("1.00 GiB r0")


def test_settings_that_tell_rows_apart_become_columns_and_others_do_not(tmp_path: Path) -> None:
    cases = [
        make_case("ddp", 1, train={"seq_len": length, "compile": compiled})
        for length in (16, 32)
        for compiled in (False, True)
    ]
    table = _table(tmp_path, *cases, repeats=1)
    headers = [column.header for column in table.columns]
    assert headers[:3] == ["strategy", "seq_len", "compile"]
    assert [cells[1:3] for cells in table.cells()] == [
        ["16", "false"],
        ["16", "true"],
        ["32", "false"],
        ["32", "true"],
    ]
    assert not any(note.startswith("all rows") and "seq_len" in note for note in table.notes)


def test_options_are_part_of_the_strategys_name(tmp_path: Path) -> None:
    case = make_case("fsdp2", 1, options={"reshard_after_forward": False})
    assert _cells(_table(tmp_path, case))["strategy"] == "fsdp2 reshard_after_forward=false"


def test_an_efficiency_across_unlike_batches_is_refused_with_the_key(tmp_path: Path) -> None:
    cases = [
        make_case("ddp", 1, train={"micro_batch_size": 4}),
        make_case("ddp", 2, train={"micro_batch_size": 10}),
    ]
    table = _table(tmp_path, *cases)
    assert _cells(table, 1)["efficiency %"] == "base"
    assert any(
        note.endswith("is not compared with world 1: micro_batch_size 10 against 4")
        for note in table.notes
    )


def test_without_a_second_world_there_is_no_column_of_bases(tmp_path: Path) -> None:
    table = _table(tmp_path, make_case("ddp", 2), make_case("fsdp2", 2))
    assert not {"speedup", "efficiency %"} & set(_cells(table))
    assert any("there is no speed-up, and no efficiency" in note for note in table.notes)
    assert "speedup" in table.to_csv().partition("\n")[0]


def test_csv_holds_full_precision_and_every_row(tmp_path: Path) -> None:
    table = _table(tmp_path, make_case("ddp", 1), make_case("ddp", 2))
    results = merge_run(tmp_path)
    found = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert [float(row["tokens_per_s"]) for row in found] == list(results.cases["tokens_per_s"])
    assert float(found[1]["imbalance"]) == results.cases["imbalance"].iloc[1]
    assert [row["base_world_size"] for row in found] == ["1", "1"]
    assert found[0]["imbalance"] == ""


def test_markdown_is_the_question_the_verdict_and_a_pipe_table(tmp_path: Path) -> None:
    text = _table(tmp_path, make_case("ddp", 1), make_case("ddp", 2)).to_markdown()
    title, blank, said, *rest = text.splitlines()
    assert title == "## What does a rank buy?"
    assert blank == ""
    assert said == "- Fastest: ddp at world 2, 640.0 tokens/s [640.0, 640.0]."
    head, rule, row = [line for line in rest if line.startswith("|")][:3]
    assert {line.count("|") for line in (head, rule, row)} == {12}


def test_a_run_with_nothing_measured_still_has_a_table(tmp_path: Path) -> None:
    write_plan(tmp_path, [make_case("ddp", 1)])
    table = scaling_table(merge_run(tmp_path))
    assert _cells(table)["status"] == "pending [1]"
    assert table.notes == ["[1] pending x3: not ended"]


def test_many_bases_are_counted_not_all_printed(tmp_path: Path) -> None:
    sizes = range(1, 11)
    cases = [
        make_case("ddp", world, train={"micro_batch_size": size})
        for size in sizes
        for world in (1, 2)
    ]
    (note,) = [note for note in _table(tmp_path, *cases, repeats=1).notes if "base" in note]
    assert note.count(" at world 1: ") == 8
    assert note.endswith("; and 2 more, marked base")


def test_a_terminal_says_where_all_problems_are_listed_and_they_are(tmp_path: Path) -> None:
    table = _table(tmp_path, *(make_case("ddp", world) for world in (1, 2, 3)))
    assert len(table.problems) == 9
    printed = " ".join(as_text(table).split())
    assert printed.count("problem: ") == 8
    assert printed.endswith("and 1 more problems: report --format md, or json, lists all")
    notes = json.loads(table.to_json())["notes"]
    for problem in table.problems:
        assert f"problem: {problem}" in notes
        assert f"- problem: {problem}\n" in table.to_markdown()


def test_no_control_character_of_a_question_reaches_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = {"question": "a\x1b[31mb\0c", "model": "andromeda-tiny", "world": 1}
    suite["data"] = {"source": "random"}
    plan = make_plan(mapping_suite(suite).suite, "x", Machine(cpu_cores=2))
    print_plan(plan)
    made = replace(_table(tmp_path, make_case("ddp", 1)), title=plan.question)
    for text in (capsys.readouterr().out, as_text(made), made.to_markdown()):
        assert "a [31mb c" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234.5678, "1,235"),
        (12.345678, "12.35"),
        (0.00123456, "0.001235"),
        (99999.6, "100,000"),
        (9.99996, "10.000"),
        (83_712_345.0, "83,710,000"),
        (float("nan"), "-"),
    ],
)
def test_four_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text


def test_shares_print_as_percent_and_bytes_in_binary_units() -> None:
    assert percent(0.1234) == "12.3%"
    assert binary(3 * 2**30) == "3.00 GiB"
    assert binary(5 * 2**20) == "5.0 MiB"
    assert [binary(size) for size in (0, 4, 2048, 300_000)] == ["0 B", "4 B", "2.0 KiB", "293 KiB"]
    assert [binary(2**20 * size) for size in (1.6, 16, 1000)] == ["1.6 MiB", "16 MiB", "1,000 MiB"]


def test_every_metric_says_its_unit_rule_and_meaning() -> None:
    for name, metric in METRICS.items():
        assert metric.meaning
        assert metric.why
        unit = {"_s": "s", "_bytes": "bytes"}
        for suffix, expected in unit.items():
            if name.endswith(suffix) and "per_s" not in name:
                assert metric.unit == expected, name
        assert metric.text(float("nan")) == "-"


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_narrow_terminal_shows_fewer_columns_and_no_broken_word(
    tmp_path: Path, width: int
) -> None:
    cases = [make_case("ddp", 1), make_case("ddp", 2), make_case("zero3", 2)]
    table = _table(tmp_path, *cases, status="interrupted", cause="SIGINT")
    text = as_text(table, width)
    assert max(map(len, text.splitlines())) <= width
    (line,) = (line for line in text.splitlines() if line.startswith(" zero3"))
    assert line.split()[:5] == ["zero3", "2", "interrupted", "[1]", "-"]
    assert "too narrow for: per rank" in text
    assert "too narrow for" not in as_text(table, PLAIN_WIDTH)


def test_rows_with_the_same_failure_share_a_footnote(tmp_path: Path) -> None:
    cases = [make_case("ddp", 1), make_case("ddp", 2), make_case("fsdp2", 2)]
    skip = {cases[0].case_id: "too large", cases[1].case_id: "too large"}
    write_plan(tmp_path, cases, skip=skip)
    table = scaling_table(merge_run(tmp_path))
    assert [_cells(table, row)["status"] for row in range(3)] == [
        "skipped [1]",
        "skipped [1]",
        "pending [2]",
    ]
    assert table.notes == ["[1] skipped x3: too large", "[2] pending x3: not ended"]


def _rewrite(directory: Path, case: Case, old: str, new: str) -> None:
    for file in (directory / "cases" / case.case_id).glob("*/node-0.jsonl"):
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))


def test_rows_whose_warm_up_was_cut_are_one_footnote(tmp_path: Path) -> None:
    cases = [make_case("ddp", 1), make_case("ddp", 2)]
    _table(tmp_path, *cases)
    for case in cases:
        _rewrite(tmp_path, case, '"slope"', '"max_steps"')
    notes = [note for note in scaling_table(merge_run(tmp_path)).notes if "warm-up" in note]
    assert notes == [
        "warm-up was cut at its upper bound before times were steady: ddp at world 1; "
        "ddp at world 2"
    ]


def test_launches_of_unequal_windows_are_told_with_the_fewest_and_the_most_steps(
    tmp_path: Path,
) -> None:
    """Collecting energy makes a window as long as its seconds ask, in each launch another."""
    case = make_case()
    write_plan(tmp_path, [case], 3)
    for repeat, steps in enumerate((40, 4, 400)):
        write_repeat(tmp_path, case, repeat, rank_lines(0, [0.1] * steps, tokens=32 * steps))
    (note,) = [n for n in scaling_table(merge_run(tmp_path)).notes if n.startswith("step: ")]
    assert note.endswith("within a launch (4 to 400 steps each)")


def test_graph_breaks_are_a_footnote_with_the_rows(tmp_path: Path) -> None:
    cases = [make_case("ddp", world, train={"compile": True}) for world in (1, 2)]
    _table(tmp_path, *cases)
    _rewrite(tmp_path, cases[0], '"compile": null', '"compile": {"graph_breaks": 0}')
    _rewrite(tmp_path, cases[1], '"compile": null', '"compile": {"graph_breaks": 3}')
    notes = [note for note in scaling_table(merge_run(tmp_path)).notes if "torch.compile" in note]
    assert notes == ["torch.compile broke the graph, times a rank: ddp at world 2: 3"]


def test_cold_and_warm_compilation_are_told_apart(tmp_path: Path) -> None:
    cases = [make_case("ddp", 2, train={"compile": compiled}) for compiled in (False, True)]
    table = _table(tmp_path, *cases)
    assert "compile s cold/warm" not in _cells(table)
    for repeat in range(3):
        place = tmp_path / "cases" / cases[1].case_id / str(repeat) / "node-0.jsonl"
        facts = {"graphs": 3, "seconds": 8.0 - repeat, "cold": repeat == 0}
        text = place.read_text().replace('"compile": null', f'"compile": {json.dumps(facts)}')
        if repeat == 1:  # one rank that compiles lets the other wait
            first, mark, rest = text.rpartition('"cold": false')
            text = f'{first}"cold": true{rest}' if mark else text
        place.write_text(text)
    table = scaling_table(merge_run(tmp_path))
    assert _cells(table, 0)["compile s cold/warm"] == "-"
    assert _cells(table, 1)["compile s cold/warm"] == "7.500 / 6.000"


def test_rows_without_parity_are_a_footnote_with_the_reason(tmp_path: Path) -> None:
    cases = [make_case("ddp", 1), make_case("ddp", 2), make_case("fsdp2", 2)]
    _table(tmp_path, *cases)
    plan = json.loads((tmp_path / "plan.json").read_text())
    for item in plan["repeats"]:
        item["reference_id"] = "r1" if item["case_id"] != cases[0].case_id else None
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    notes = [note for note in scaling_table(merge_run(tmp_path)).notes if "parity" in note]
    assert notes == [
        "parity unverified: ddp at world 2; fsdp2 at world 2: repeat 0, 1, 2 compared no losses: "
        "the reference did not finish"
    ]


def test_every_table_can_be_asked_for_on_the_command_line_and_from_python() -> None:
    assert [one.value for one in showing.Shown] == list(catalogue.TABLES)
    assert set(catalogue.TABLES) <= set(api.TABLES)


def test_rows_of_other_parity_are_told_apart_and_are_each_their_own_series(tmp_path: Path) -> None:
    kinds: list[Any] = ["cross", "off"]
    cases = [make_case(world=world, parity=kind) for kind in kinds for world in (1, 2)]
    table = _table(tmp_path, *cases)
    assert [(row["parity_kind"], row["world_size"]) for row in table.rows] == [
        *(("cross", 1), ("cross", 2)),
        *(("off", 1), ("off", 2)),
    ]
    assert [_cells(table, row)["parity_kind"] for row in range(4)] == ["cross"] * 2 + ["off"] * 2
    bases = [row["base_case_id"] for row in table.rows]
    assert bases == [cases[index].case_id for index in (0, 0, 2, 2)]


@pytest.mark.parametrize("width", [40, 60, 80])
def test_settings_leave_a_narrow_terminal_before_results_do(width: int) -> None:
    axes = [f"axis_{letter}" * 2 for letter in "abcdef"]
    columns = [
        Column("strategy", ("strategy",), setting("strategy"), left=True, folds=True),
        *(Column(axis, (axis,), setting(axis), folds=True, is_setting=True) for axis in axes),
        *(Column(name, (name,), setting(name)) for name in ("world", "status", "tokens/s")),
    ]
    row = dict.fromkeys(axes, 7) | {"strategy": "ddp", "world": 2, "status": "ok", "tokens/s": 123}
    lines = as_text(Table("title", tuple(columns), [row], []), width).splitlines()
    assert [line.split()[-3:] for line in lines if "ddp" in line] == [["2", "ok", "123"]]
    left_out = " ".join(lines).partition("too narrow for: ")[2]
    assert ("axis_f" in left_out, "tokens/s" in left_out) == (True, False)


def test_an_efficiency_against_a_larger_base_is_told_against_the_common_one_too(
    tmp_path: Path,
) -> None:
    cases = [make_case("ddp", world) for world in (1, 2)]
    cases += [make_case("fsdp2", world) for world in (4, 2)]
    table = _table(tmp_path / "unlike", *cases)
    (note,) = [note for note in table.notes if "unequal worlds" in note]
    assert note.endswith(
        "do not compare strategies; against the best of any strategy at the smallest world: "
        "fsdp2 at world 4: 100.0%"
    )
    alike = _table(tmp_path / "alike", *cases[:2], make_case("fsdp2", 1), make_case("fsdp2", 2))
    assert not [note for note in alike.notes if "unequal worlds" in note]
