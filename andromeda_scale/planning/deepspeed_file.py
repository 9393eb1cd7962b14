"""Reads a DeepSpeed JSON that a suite names, so that the suite holds its content. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from andromeda_scale.errors import UserError
from andromeda_scale.suite import paths, resources

MAX_BYTES = 1 << 16  # a few dozen keys


def read(name_or_path: str) -> dict[str, Any]:
    """The mapping in a file, or in the shipped file of that name, and the file's name as `file`.

    Raises UserError naming file, problem and remedy.
    """
    try:
        path = resources.find("deepspeed", name_or_path)
        paths.refuse_endless(path)
    except UserError as error:
        raise UserError(f"strategy.config: {error}") from error
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        _refuse(path, f"cannot be read ({error.strerror})", "give a readable JSON file")
    if len(raw) > MAX_BYTES:
        _refuse(path, f"larger than {MAX_BYTES} bytes", "give a file of DeepSpeed's settings")
    try:
        found = json.loads(raw, object_pairs_hook=_without_duplicates, parse_constant=_no_number)
    except _OddError as error:
        problem, remedy = error.args
        _refuse(path, problem, remedy)
    except json.JSONDecodeError as error:
        _refuse(path, f"is not JSON: {error.msg} in line {error.lineno}", "mend that line")
    except (UnicodeDecodeError, RecursionError, ValueError):
        _refuse(path, "is not JSON", "give DeepSpeed's settings as JSON text")
    if not isinstance(found, dict):
        _refuse(path, f"holds {type(found).__name__}, not a mapping", 'write {"key": value}')
    if "file" in found:
        _refuse(path, "file: is no key of DeepSpeed", "remove it")
    return {"file": path.name, **found}


class _OddError(Exception):
    """(problem, remedy)."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise _OddError(f"{key}: stands twice", "keep one")
    return dict(pairs)


def _no_number(text: str) -> NoReturn:
    raise _OddError(f"{text} is no number of JSON", "use a finite one")


def _refuse(path: Path, problem: str, remedy: str) -> NoReturn:
    raise UserError(f"strategy.config: {path}: {problem}; {remedy}")
