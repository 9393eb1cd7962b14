"""The page of a run: it holds everything, needs nothing, trusts no record and invents no number."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from pages import HOSTILE, ceilings, hostile_run, merged
from run_files import make_case, rank_lines, write_plan, write_repeat
from typer.testing import CliRunner

from andromeda_scale.analysis.breakdown import IN_A_STEP
from andromeda_scale.analysis.results import FILES
from andromeda_scale.cli import app
from andromeda_scale.merge import merge_run, write
from andromeda_scale.report.html import make_page
from andromeda_scale.report.html.figures import FIGURES


class Read(HTMLParser):
    """Tags with their attributes, the text of the page, and that of each script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts.append((self.tags[-1][1], data))
        elif self._open and self._open[-1] != "style":
            self.words.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def figures(self) -> dict[str, Any]:
        (text,) = [text for attrs, text in self.scripts if attrs.get("id") == "figures"]
        found: dict[str, Any] = json.loads(text, parse_constant=lambda word: pytest.fail(word))
        return found


# The page


def page_of(directory: Path) -> str:
    return make_page(merged(directory), "question: ?\n", ceilings())


def test_the_page_is_one_file_under_6_mb_that_names_no_other(rich: Path) -> None:
    page = page_of(rich)
    assert len(page.encode()) < 6e6
    for _, attributes in Read(page).tags:
        for name in ("src", "href", "data", "poster", "srcset", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,"))
    css = files("andromeda_scale.report.html").joinpath("page.css").read_text()
    assert "url(" not in css
    assert "@import" not in css


def test_a_sentence_names_its_rows_for_the_page(rich: Path) -> None:
    page = Read(make_page(merged(rich)))
    rows = {attrs["data-case"] for tag, attrs in page.tags if tag == "tr" and "data-case" in attrs}
    named = [attrs["data-cases"] for _, attrs in page.tags if "data-cases" in attrs]
    assert named
    assert all(set(str(one).split()) <= rows for one in named)


def test_tables_of_an_older_version_have_a_page_without_what_they_lack(rich: Path) -> None:
    results = merged(rich)
    later = [
        name
        for name in results.cases
        if name.endswith("_vs_base") or name.startswith("rank_hours")
        or name in [f"{one[:-2]}_share" for one in IN_A_STEP]
        or (name.endswith(("_low", "_high")) and not name.startswith(("tokens", "efficiency")))
    ]  # fmt: skip
    older = replace(
        results,
        cases=results.cases.drop(columns=later),
        repeats=results.repeats.drop(columns=[name for name in later if name in results.repeats]),
    )
    assert "Not drawn: waterfall: " in Read(make_page(older)).text


def test_only_the_scripts_that_the_policy_names_can_run(rich: Path) -> None:
    page = Read(page_of(rich))
    (policy,) = [a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    (script,) = [text for attrs, text in page.scripts if "type" not in attrs]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy
    assert re.search(r"script-src ('sha256-[\w+/=]+' ?){2};", policy)


def test_nothing_a_record_holds_becomes_markup(tmp_path: Path) -> None:
    hostile_run(tmp_path)
    page = Read(make_page(merge_run(tmp_path), HOSTILE))
    assert "crashed" in page.text
    assert page.text.count("alert(1)") >= 4  # as words: question, cause, stderr, suite
    assert "49" not in re.findall(r"onerror=\S+\}|\b49<b>", page.text)
    assert len([1 for attrs, _ in page.scripts if "type" not in attrs]) == 1
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    assert not [tag for tag, _ in page.tags if tag in ("img", "iframe", "object", "embed")]
    for texts in page.figures.values():
        assert "<" not in json.dumps({**texts, "choices": [
            {**one, "said": ""} for one in texts["choices"]]})  # fmt: skip


def test_the_palette_is_readable_in_light_dark_and_print() -> None:
    css = files("andromeda_scale.report.html").joinpath("page.css").read_text()
    roots = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    assert len(roots) == 3
    for root in roots:
        colours = dict(re.findall(r"(--\w+): (#[0-9a-f]+);", root))
        for name in ("ink", "soft", "link", "bad", "warn", "good"):
            for ground in ("paper", "raised"):
                ratio = contrast(colours[f"--{name}"], colours[f"--{ground}"])
                assert ratio >= 4.5, (name, ground, ratio)  # WCAG 2.2, 1.4.3


def contrast(one: str, other: str) -> float:
    """(lighter + 0.05) / (darker + 0.05) of relative luminances (WCAG 2.2)."""
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# Bad input


def nothing_ended(directory: Path) -> None:
    write_plan(directory, [make_case("ddp", 1), make_case("ddp", 2)])


def all_failed(directory: Path) -> None:
    nothing_ended(directory)
    for world in (1, 2):
        for repeat in range(3):
            write_repeat(directory, make_case("ddp", world), repeat, [],
                         status={"status": "crashed", "cause": "boom"})  # fmt: skip


def one_step_of_one_rank(directory: Path) -> None:
    write_plan(directory, [make_case("ddp", 1)], repeats=1)
    write_repeat(
        directory, make_case("ddp", 1), 0, rank_lines(0, [0.1], tokens=32, compute_s=[0.1])
    )


def mixed_versions(directory: Path) -> None:
    nothing_ended(directory)
    for world in (1, 2):
        lines = [line for rank in range(world) for line in rank_lines(rank, [0.1] * 4)]
        made = {
            "versions": {"torch": f"2.{world}"}, "gpus": [], "source_sha256": str(world),
            "cpu_model": "c", "cpu_cores": 2, "machine": "m", "gpu_driver": None,
        }  # fmt: skip
        write_repeat(directory, make_case("ddp", world), 0, lines, environment=made)


def nothing_planned(directory: Path) -> None:
    write_plan(directory, [])


def garbage(directory: Path) -> None:
    write_plan(directory, [make_case("ddp", 2)], repeats=1)
    nonsense = [
        {**line, "values": {"step_time": {"step_ns": [1e300, -1, "x"], "tokens": "many"},
                            "communication": {"step_s": [None], "collectives": [7, {"op": []}]}}}
        for rank in range(2)
        for line in rank_lines(rank, [0.1] * 4)
    ]  # fmt: skip
    status = {"v": 1, "status": "ok", "stderr_tail": {"a": 1}, "started_unix_s": 1e300}
    write_repeat(directory, make_case("ddp", 2), 0, nonsense, status=status)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (nothing_ended, "2 pending"),
        (all_failed, "crashed ddp at world 1, launch 0, 1, 2 boom"),
        (one_step_of_one_rank, "under 3 launches there is no interval"),
        (mixed_versions, "torch 2.1"),
        (nothing_planned, "No rows."),
        (garbage, "invalid"),
    ],
)
def test_a_run_without_much_has_a_page_that_says_so(
    tmp_path: Path, make: Callable[[Path], None], said: str
) -> None:
    make(tmp_path)
    page = Read(page_of(tmp_path))
    assert said in page.text
    assert page.figures is not None  # strict JSON
    assert "Not drawn: efficiency" in page.text
    assert "nan" not in page.text.lower().split()


# The command

_WITHOUT_TORCH = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "deepspeed", "accelerate", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Blocked())
from andromeda_scale.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("copied", [pytest.param("records", marks=pytest.mark.thorough), "parquet"])
def test_a_copied_run_has_its_page_where_there_is_no_torch(
    rich: Path, tmp_path: Path, copied: str
) -> None:
    place = tmp_path / "copy"
    if copied == "records":
        shutil.copytree(rich, place)
    else:
        place.mkdir()
        write(merged(rich), place)
        assert sorted(path.name for path in place.iterdir()) == sorted(FILES.values())
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TORCH, "report", str(place), "--format", "html"],
        capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"page: {place}/report.html\n"
    page = Read((place / "report.html").read_text())
    assert set(page.figures) == set(FIGURES)
    assert "OutOfMemoryError" in page.text


def test_a_run_that_cannot_be_written_to_is_a_users_mistake(tmp_path: Path) -> None:
    nothing_ended(tmp_path)
    (tmp_path / "report.html").mkdir()
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--format", "html"])
    assert done.exit_code == 2
    assert "report.html: cannot be written (Is a directory)" in done.stderr
