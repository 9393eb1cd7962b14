"""`report --format latex|json --output`: every form holds the rows, and none trusts a record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from run_files import make_case, write_plan, write_repeat
from typer.testing import CliRunner

from andromeda_scale.cli import app
from andromeda_scale.commands.reporting import publish
from andromeda_scale.merge import Results, load_results
from andromeda_scale.report.catalogue import make_table
from andromeda_scale.report.media import latex, records, to_json

RUN = Path(__file__).parents[1] / "replay" / "run"


def report(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["report", *arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def results() -> Results:
    return load_results(RUN)


def strict(text: str) -> Any:
    """Parsed as RFC 8259 has it, which knows no NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_holds_full_precision_and_null_for_what_was_not_measured() -> None:
    found = strict(report(str(RUN), "--format", "json"))
    assert found["title"] == "What does a rank buy?"
    rows = {(row["strategy"], row["world_size"]): row for row in found["rows"]}
    assert rows["ddp", 2]["efficiency"] == pytest.approx(0.9, rel=1e-6)
    assert rows["zero1", 2]["status"] == "diverged"
    assert rows["zero1", 2]["tokens_per_s"] is None
    assert found["under"]["rows"][0]["data_eff_vs_base"] == pytest.approx(1)
    assert found["fairness"]["said"][0].startswith("UNFAIR")


@pytest.mark.parametrize(
    "table", ["scaling", "breakdown", "communication", "memory", "phases", "energy"]
)
@pytest.mark.parametrize("form", ["json", "latex", "csv", "md"])
def test_every_table_comes_in_every_form(
    results: Results, table: str, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(make_table(results, table), form, None)
    text = capsys.readouterr().out
    assert text
    if form == "json":
        assert strict(text)["rows"] or table == "communication"  # it names what is missing
    if form == "latex":
        assert text.count("\\begin{tabular}") == text.count("\\end{table}") >= 1


def test_latex_has_a_row_a_case_and_escapes_what_a_record_holds(tmp_path: Path) -> None:
    case = make_case("ddp", 1)
    write_plan(tmp_path, [case], repeats=1)
    cause = "\\input{/etc/passwd} 100% of $x_1$ & #1 ~ {^}"
    write_repeat(tmp_path, case, 0, [], status={"status": "crashed", "cause": cause})
    text = report(str(tmp_path), "--format", "latex")
    assert "\\begin{tabular}{lrlrrrrrr}" in text
    assert "ddp        &       1 & crashed [1]" in text
    escaped = (
        "\\textbackslash{}input\\{/etc/passwd\\} 100\\% of \\$x\\_1\\$ \\& \\#1 "
        "\\textasciitilde{} \\{\\^{}\\}"
    )
    assert escaped in text
    assert "\\input" not in text


def test_a_table_without_rows_is_one_in_latex_too() -> None:
    assert "\\bottomrule" in latex("t", ["a", "b"], [], ["left", "right"])


def test_fairness_has_every_difference_in_json_and_latex() -> None:
    found = strict(report(str(RUN), "--fairness", "--format", "json"))
    (unfair,) = [row for row in found["differences"] if row["flag"] == "unfair"]
    assert unfair["fact"] == "gradient_clipping"
    assert "gradient\\_clipping" in report(str(RUN), "--fairness", "--format", "latex")


def test_output_goes_to_a_file_and_a_missing_folder_is_a_users_mistake(tmp_path: Path) -> None:
    file = tmp_path / "t.tex"
    assert report(str(RUN), "--format", "latex", "--output", str(file)) == ""
    assert file.read_text().startswith("\\begin{table}")
    said = report(str(RUN), "--output", str(tmp_path / "no" / "t.txt"), code=2)
    assert "t.txt: cannot be written (No such file or directory)" in said


def test_values_of_a_frame_are_plain_and_strict() -> None:
    frame = pd.DataFrame({"a": [1.5, float("inf")], "b": pd.array([2, None], dtype="Int64")})
    assert records(frame) == [{"a": 1.5, "b": 2}, {"a": None, "b": None}]
    with pytest.raises(ValueError, match="JSON"):
        to_json(float("nan"))
