"""The Python door: what it takes, and what it gives back of a run's files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from merging import half_measured_run

import andromeda_scale
from andromeda_scale.api import TABLES
from andromeda_scale.errors import UserError
from andromeda_scale.planning.suite_file import mapping_suite

SUITE: dict[str, Any] = {
    "question": "q",
    "model": "andromeda-tiny",
    "data": {"source": "random"},
    "world": 1,
}


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return half_measured_run(tmp_path)


def test_importing_the_package_imports_neither_torch_nor_pandas() -> None:
    code = "import sys, andromeda_scale as a; assert not {'torch', 'pandas'} & set(sys.modules)\n"
    code += "assert {'run', 'load_run', 'Run'} <= set(dir(a)); a.run; a.Run\n"
    code += "assert not {'torch', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_loaded_run_has_every_table_as_a_frame(stored: Path) -> None:
    run = andromeda_scale.load_run(stored)
    assert run.path == stored
    assert run.status == {"ok": 1, "pending": 1}
    rows = {name: len(run.table(name)) for name in TABLES}
    assert rows == {
        "scaling": 2,
        "breakdown": 0,  # neither case has profiled steps
        "communication": 0,
        "memory": 2,
        "phases": 2,
        "energy": 2,
        "laws": 0,  # under five worlds
        "fairness": rows["fairness"],
        "cases": 2,
        "repeats": 2,
        "ranks": 1,
        "steps": rows["steps"],
    }
    assert rows["steps"] == 6  # two of warm-up, four of the window
    assert list(run.table()["status"]) == ["ok", "pending"]
    assert {"flag", "fact", "values"} <= set(run.table("fairness").columns)
    copy = run.table("cases")
    copy["status"] = "mine"
    assert list(run.table("cases")["status"]) == ["ok", "pending"]


def test_a_run_shows_itself_as_one_line_and_as_an_escaped_table(stored: Path) -> None:
    run = andromeda_scale.load_run(stored)
    assert repr(run) == f"Run({str(stored)!r}: 1 ok, 1 pending)"
    run.results.question = "<script>?"
    page = run._repr_html_()
    assert "&lt;script&gt;?" in page
    assert page.count("<tr>") == 3  # a header and two rows


def test_runs_can_be_compared_and_kept_in_a_set(stored: Path) -> None:
    run, again = andromeda_scale.load_run(stored), andromeda_scale.load_run(stored)
    assert len({run, again, run}) == 2
    assert run != again


def test_what_is_no_run_and_no_table_is_named(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'speed' is no table; use one of scaling, breakdown"):
        andromeda_scale.load_run(stored).table("speed")
    with pytest.raises(UserError, match="nowhere"):
        andromeda_scale.load_run(tmp_path / "nowhere")


def test_a_mapping_means_what_the_same_file_means() -> None:
    loaded = mapping_suite(SUITE, ["train.seq_len=32"], ["strategy=ddp,fsdp2"])
    assert loaded.name == "suite"
    assert loaded.suite.train.seq_len == 32
    assert "question: q\n" in loaded.text
    with pytest.raises(UserError, match=r"seqlen: unknown key \(suite\)"):
        mapping_suite({**SUITE, "seqlen": 3})
    with pytest.raises(UserError, match="suite: holds what YAML does not"):
        mapping_suite({**SUITE, "world": object()})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"sets": {"train.seqlen": 3}}, r"--set train.seqlen=3\); did you mean seq_len"),
        ({"sets": {"train.seq_len": object()}}, "sets: train.seq_len: .* not JSON serializable"),
        ({"sets": ["train.seq_len=3"]}, "sets: is no mapping of dotted keys; write"),
        ({"axes": {3: [1]}}, "axes: is no mapping of dotted keys; write .*strategy"),
        ({"sets": {"env.A": ["a", "b"]}}, "sets: env.A: list is not text; .* an axis"),
        ({"axes": {"env.A": [None, "a"]}}, "axes: env.A: NoneType is not text"),
        (
            {"axes": {"env.A": ["a,b", "c"]}},
            r'env.A: holds a comma, .*; write sets=\{"env": \{"A": \[its values\]\}\}',
        ),
        ({"axes": {"strategy": "ddp"}}, r"axes: strategy: 'ddp' is not a list"),
        ({"axes": {"strategy": ["ddp", "ddq"]}}, "'ddq' is no strategy"),
        ({"axes": {"train.seq_len": []}}, "has no values"),
        ({"sets": {"env.A": 1, "world": "9x9"}}, "world: 9x9 cannot run: .* \\(--set world="),
        ({"sets": {"device": "cpu"}, "only_failed": True}, "no run of suite with these cases"),
    ],
)
def test_a_mistake_is_an_exception_before_anything_is_written(
    changes: dict[str, Any], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=text):
        andromeda_scale.run(SUITE, **changes)
    assert not list(tmp_path.iterdir())
