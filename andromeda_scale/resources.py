"""Finds the YAML and JSON files the package ships, or a user's own in their place. No torch."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Literal

from andromeda_scale.errors import UserError

Kind = Literal["suites", "models", "hardware", "deepspeed"]

SHIPPED = Path(__file__).resolve().parent.parent / "configs"
_SUFFIXES = (".yaml", ".yml", ".json")


def names(kind: Kind) -> list[str]:
    """Names of the shipped files of one kind, sorted."""
    return sorted(f.stem for f in (SHIPPED / kind).glob("*") if f.suffix in _SUFFIXES)


def find(kind: Kind, name: str) -> Path:
    """The file at the path `name`, or the shipped file of that name.

    A name with a slash or a suffix is a path. Raises UserError naming the nearest known name.
    """
    if _is_path(name):
        if Path(name).exists():
            return Path(name)
        raise UserError(
            f"{name}: no such file in {Path.cwd()}; give the path of a file, "
            f"or one of the shipped {kind}: {', '.join(names(kind))}"
        )
    for suffix in _SUFFIXES:
        if (shipped := SHIPPED / kind / f"{name}{suffix}").is_file():
            return shipped
    close = difflib.get_close_matches(name, names(kind), n=1)
    remedy = f"did you mean {close[0]}?" if close else f"use one of {', '.join(names(kind))}"
    raise UserError(
        f"{name}: no shipped {kind[:-1]} of this name; {remedy} (a file of yours needs its suffix)"
    )


def _is_path(name: str) -> bool:
    return "/" in name or "\\" in name or name.endswith(_SUFFIXES)
