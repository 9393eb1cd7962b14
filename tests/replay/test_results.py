"""The published tables of results, from the records beside them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import gpu_results

from andromeda_scale.hardware.machine import Machine
from andromeda_scale.planning.plan import make_plan
from andromeda_scale.planning.suite_file import read_suite

TWO_H200 = Machine(cpu_cores=32, gpus=[150_000_000_000] * 2, memory_bytes=1 << 38)

RESULTS = Path(__file__).parents[2] / "docs" / "results"
TABLES = sorted(path.name for path in (RESULTS / "h200").iterdir() if path.is_dir())
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", TABLES)
def test_a_published_table_is_what_its_records_say(name: str) -> None:
    assert _table(name) in (RESULTS / "h200.md").read_text()


def test_the_page_has_no_other_table() -> None:
    page = (RESULTS / "h200.md").read_text()
    for name in TABLES:
        page = page.replace(_table(name), "")
    assert [line for line in page.splitlines() if line.startswith("|")] == []


@pytest.mark.parametrize("suite", sorted((RESULTS / "h200").glob("*/*/suite.yaml")), ids=str)
def test_a_published_suite_can_be_run_again(suite: Path) -> None:
    found = read_suite(str(suite))
    assert make_plan(found.suite, found.name, TWO_H200, found.where).repeats


def _table(name: str) -> str:
    printed, _ = gpu_results.table_of(name, RESULTS / "h200" / name)
    return printed.partition("\n\n")[2]  # a page may ask its own question
