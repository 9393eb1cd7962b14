"""The published tables of results, from the records beside them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import gpu_results

RESULTS = Path(__file__).parents[2] / "docs" / "results"
TABLES = sorted(path.name for path in (RESULTS / "h200").iterdir() if path.is_dir())
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", TABLES)
def test_a_published_table_is_what_its_records_say(name: str) -> None:
    printed, _ = gpu_results.table_of(name, RESULTS / "h200" / name)
    table = printed.partition("\n\n")[2]  # a page may ask its own question
    assert table in (RESULTS / "h200.md").read_text()
