"""Who may import whom, read from docs/architecture.md; and that the light commands stay light."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "andromeda_scale"
NAME = "andromeda_scale"
EVERYTHING_BUT_WORKER = "everything but worker"
HEAVY = {"torch", "deepspeed", "accelerate"}


@cache
def law() -> dict[str, tuple[list[str], str]]:
    """room -> (modules, where a trailing slash is a package; what it may import)."""
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("## Rooms")[2].partition("\n## ")[0]
    rooms = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 4 and cells[1].startswith("`"):
            rooms[cells[0]] = (re.findall(r"`([\w/]+)`", cells[1]), cells[3])
    return rooms


@cache
def modules() -> dict[str, Path]:
    """Dotted name below the package -> file; the empty package file itself left out."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


def rooms_of(module: str) -> list[str]:
    return [
        room
        for room, (names, _) in law().items()
        if module in names or f"{module.partition('.')[0]}/" in names
    ]


def imports(path: Path, *, at_import_only: bool = False) -> Iterator[str]:
    """Every dotted name a file imports, but for type checkers alone."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if at_import_only and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            yield child
            yield from walk(child)

    for node in walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides what it imports"
            assert node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(path: Path) -> set[str]:
    """The modules of ours that a file imports."""
    known = modules()
    found = set()
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == NAME and rest:
            # `from x import y`: y is a module, or something inside the module x.
            found.add(rest if rest in known else rest.rpartition(".")[0])
    return found - {""}


def test_the_law_has_a_room_for_every_module() -> None:
    assert len(law()) >= 9
    for module in modules():
        assert len(rooms_of(module)) == 1, f"{module} stands in the rooms {rooms_of(module)}"


def test_the_law_names_no_module_that_is_not_there() -> None:
    known = set(modules())
    for room, (names, allowed) in law().items():
        for name in names:
            assert name.rstrip("/") in known, f"{room} names {name}"
        if allowed != EVERYTHING_BUT_WORKER:
            assert set(re.split(r",\s*", allowed)) <= set(law()), f"{room} may import {allowed}"


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_imports_only_what_its_room_may(module: str) -> None:
    room = rooms_of(module)[0]
    allowed = law()[room][1]
    for other in ours(modules()[module]):
        other_room = rooms_of(other)[0]
        assert other not in ("cli", "worker") or other == module, f"{module} imports {other}"
        if other_room != room and allowed != EVERYTHING_BUT_WORKER:
            assert other_room in re.split(r",\s*", allowed), f"{module} ({room}) imports {other}"


@pytest.mark.slow
def test_only_rank_worker_and_launch_import_torch_when_imported() -> None:
    for module, path in modules().items():
        if rooms_of(module)[0] not in ("rank", "worker", "launch"):
            heavy = {name.partition(".")[0] for name in imports(path, at_import_only=True)} & HEAVY
            assert not heavy, f"{module} imports {heavy}"
