"""mkdocs' hook: the pages that are made from registries, so that there is no second copy.

Reads the package, README.md, CONTRIBUTING.md and the results in docs/gallery.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from andromeda_scale.analysis.results import read
from andromeda_scale.contracts.records import STATUSES
from andromeda_scale.metrics import METRICS, QUESTIONS, SETTINGS
from andromeda_scale.planning.catalogue import entries
from andromeda_scale.planning.suite_schema import suite_schema
from andromeda_scale.report.html import make_page

ROOT = Path(__file__).resolve().parents[1]
GALLERY = ROOT / "docs" / "gallery"


def on_files(files: Any, config: Any) -> Any:
    """Add every page of PAGES, and a report of each run in the gallery."""
    from mkdocs.structure.files import File

    for name, make in PAGES.items():
        files.append(File.generated(config, name, content=make()))
    for run in sorted(GALLERY.iterdir()):
        suite = run / "suite.yaml"
        page = make_page(read(run), suite.read_text(encoding="utf-8") if suite.exists() else None)
        files.append(File.generated(config, f"reports/{run.name}.html", content=page))
    return files


def overview() -> str:
    """README.md, its links as seen from docs/."""
    return _linked((ROOT / "README.md").read_text(encoding="utf-8"))


def contributing() -> str:
    return _linked((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))


def metrics() -> str:
    """Every number under the question it answers."""
    parts = [
        "# Metrics\n",
        "Every number of a result, as `andromeda-scale list metrics` prints it. Names carry their "
        "unit; shares are 0..1 in data and percent in print. *Across ranks* is how the values of "
        "ranks become one, *across launches* how those of launches do.\n",
    ]
    for question, names in QUESTIONS.items():
        parts.append(f"## {question}\n")
        for name in names:
            one = METRICS[name]
            better = "" if one.better == "none" else f", {one.better} is better"
            parts.append(
                f"### `{name}` {{ #{name} }}\n\n{one.meaning}.\n\n"
                f"- unit: {one.unit}{better}\n- across ranks: {one.ranks} ({one.why})\n"
                f"- across launches: {one.launches}\n- measured in: {one.phase}\n"
            )
    parts.append("## What was this case?\n")
    parts.append(_table(("column", "meaning"), [(f"`{k}`", v) for k, v in SETTINGS.items()]))
    return "\n".join(parts)


def suite() -> str:
    """Every key of a suite file, from its schema."""
    schema = suite_schema()
    parts = [
        "# Suite keys\n",
        "Any key can be set (`--set train.seq_len=4096`) or swept (`--axis train.seq_len=64,128`) "
        "on the command line. `andromeda-scale schema` prints the JSON schema for an editor.\n",
    ]
    top = {k: v for k, v in schema["properties"].items() if "$ref" not in v}
    parts.append(_keys(top, "", schema["required"]))
    for key, value in schema["properties"].items():
        if "$ref" in value:
            parts += _section(schema, key, value["$ref"])
    parts.append("## Further mappings\n")
    shown = {value.get("$ref") for value in schema["properties"].values()}
    for name, value in schema["$defs"].items():
        if f"#/$defs/{name}" not in shown:
            parts.append(f"### {name}\n\n{_said(value)}\n")
            parts.append(_keys(value.get("properties", {}), "", value.get("required", ())))
    return "\n".join(parts)


def statuses() -> str:
    """How a launch can end."""
    rows = [(f"`{status}`", meaning) for status, meaning in STATUSES.items()]
    return (
        "# Statuses\n\nA launch that did not end well is a row with its status, never a missing "
        f"row and never a zero.\n\n{_table(('status', 'meaning'), rows)}"
    )


def shipped() -> str:
    """What `andromeda-scale list` lists."""
    parts = ["# What is shipped\n"]
    for kind in ("suites", "strategies", "collectors", "models"):
        rows = [(f"`{name}`", meaning) for name, meaning in entries(kind)]
        parts.append(f"## {kind.capitalize()}\n\n{_table(('name', 'what it is'), rows)}")
    return "\n".join(parts)


PAGES: dict[str, Callable[[], str]] = {
    "index.md": overview,
    "contributing.md": contributing,
    "metrics.md": metrics,
    "suite.md": suite,
    "statuses.md": statuses,
    "shipped.md": shipped,
}


def _section(schema: Mapping[str, Any], key: str, ref: str) -> Iterator[str]:
    """A mapping of the suite, and those within it."""
    value = schema["$defs"][ref.rpartition("/")[2]]
    yield f"## {key}\n\n{_said(value)}\n"
    yield _keys(value["properties"], f"{key}.", value.get("required", ()))


def _said(value: Mapping[str, Any]) -> str:
    return str(value.get("description", "")).replace("|", "\\|")


def _keys(properties: Mapping[str, Any], prefix: str, required: Any) -> str:
    rows = [
        (f"`{prefix}{name}`", _kind(value), _default(name, value, required), _said(value))
        for name, value in properties.items()
    ]
    return _table(("key", "values", "default", ""), rows)


def _default(name: str, value: Mapping[str, Any], required: Any) -> str:
    if name in required:
        return "required"
    return f"`{json.dumps(value['default'])}`" if "default" in value else "empty"


def _kind(value: Mapping[str, Any]) -> str:
    """What a value may be, in a few words."""
    if "enum" in value:
        shown = [one if isinstance(one, str) else json.dumps(one) for one in value["enum"]]
        return ", ".join(shown[:12]) + (", ..." if len(shown) > 12 else "")
    if "const" in value:
        const = value["const"]
        return const if isinstance(const, str) else json.dumps(const)
    if "$ref" in value:
        return str(value["$ref"].rpartition("/")[2])
    for many in ("anyOf", "oneOf"):
        if many in value:
            return " or ".join(dict.fromkeys(_kind(one) for one in value[many]))
    if value.get("type") == "array":
        return f"list of {_kind(value['items'])}" if "items" in value else "list"
    bounds = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to",
              "exclusiveMaximum": "below"}  # fmt: skip
    limits = "".join(f" {word} {value[key]:g}" for key, word in bounds.items() if key in value)
    return {"null": "empty", "object": "mapping"}.get(
        value.get("type", ""), f"{value.get('type', 'anything')}{limits}"
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    cells = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def _linked(text: str) -> str:
    return re.sub(r"\]\(docs/", "](", text)
