"""The docs' reference pages hold everything that the registries do, and ask no network."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from andromeda_scale.contracts.records import STATUSES, Status
from andromeda_scale.metrics import METRICS, QUESTIONS
from andromeda_scale.planning.suite_schema import suite_schema
from andromeda_scale.registry import COLLECTORS, STRATEGIES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generate() -> Any:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_metric_answers_exactly_one_question() -> None:
    asked = [name for names in QUESTIONS.values() for name in names]
    assert sorted(asked) == sorted(METRICS)


def test_every_metric_stands_with_its_formula_under_its_question(generate: Any) -> None:
    page = generate.metrics()
    for name, metric in METRICS.items():
        assert f"### `{name}`" in page
        assert metric.meaning in page


def test_every_status_has_a_meaning_and_a_row(generate: Any) -> None:
    assert set(STATUSES) == set(get_args(Status))
    page = generate.statuses()
    assert all(f"| `{status}` | {meaning} |" in page for status, meaning in STATUSES.items())


def test_every_key_of_a_suite_stands_with_its_default(generate: Any) -> None:
    page = generate.suite()
    schema = suite_schema()
    for key, value in schema["properties"].items():
        within = schema["$defs"][value["$ref"].rpartition("/")[2]] if "$ref" in value else {}
        for name in within.get("properties", ()):
            assert f"| `{key}.{name}` |" in page
        assert within or f"| `{key}` |" in page
    assert "| `measure.steps` | integer above 0 to 1e+06 | `50` |" in page
    assert "| `model` |" in page
    assert "| required |" in page


def test_what_is_shipped_is_listed(generate: Any) -> None:
    page = generate.shipped()
    assert all(f"| `{name}` |" in page for name in (*STRATEGIES, *COLLECTORS, "quickstart"))


@pytest.mark.thorough
def test_the_site_builds_without_a_network_and_its_pages_fetch_nothing(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs-material is not installed (make docs installs it)")
    unshare = ["unshare", "--net", "--map-root-user"]
    allowed = subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode == 0
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        [*(unshare if allowed else []), *command],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'id="figures"' in (tmp_path / "reports" / "quickstart.html").read_text()
    for page in tmp_path.glob("*.html"):
        fetched = re.findall(
            r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?://[^\"]+)", page.read_text()
        )
        assert fetched == [], page.name
