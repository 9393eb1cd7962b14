"""A suite file with the command line's overrides -> Suite. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from andromeda_scale import resources, safe_yaml
from andromeda_scale.config import Suite
from andromeda_scale.errors import UserError
from andromeda_scale.expand import expand, set_key
from andromeda_scale.validation import validate


def load_suite(
    name_or_path: str, sets: Sequence[str] = (), axes: Sequence[str] = ()
) -> tuple[Suite, str, str]:
    """(suite, its name, its text) of a shipped name or a path, with overrides applied.

    `sets` are KEY=VALUE with VALUE in YAML, `axes` KEY=V1,V2,.... The text is the file's, with
    the overrides as comments below. Raises UserError naming file, key, value and remedy.
    """
    path = resources.find("suites", name_or_path)
    raw, text = safe_yaml.read(path)
    if not isinstance(raw, dict):
        found = "is empty" if raw is None else f"holds {type(raw).__name__}, not a mapping"
        raise UserError(f"{path}: {found}; write question, model, world and train as key: value")
    overrides: dict[str, str] = {}
    for option, assignments in (("--set", sets), ("--axis", axes)):
        for assignment in assignments:
            key = _override(raw, option, assignment)
            overrides[key] = f"{option} {assignment}"

    def where(key: str) -> str:
        sources = [source for written, source in overrides.items() if _meet(key, written)]
        return sources[-1] if sources else str(path)

    suite = validate(Suite, raw, where)
    expand(suite, where)  # every point must be valid before anything starts
    comments = "".join(f"# {option}\n" for option in overrides.values())
    return suite, path.stem, text.rstrip("\n") + "\n" + comments


def _meet(key: str, written: str) -> bool:
    """Whether one dotted key stands at or below the other."""
    short, long = sorted((key, written), key=len)
    return long == short or long.startswith((f"{short}.", f"{short}["))


def _override(raw: dict[str, Any], option: str, assignment: str) -> str:
    """Apply one KEY=VALUE to the raw mapping; returns the dotted key that was written."""
    key, equals, text = assignment.partition("=")
    key, place = key.strip(), f"{option} {assignment}"
    if not equals or not key or not all(key.split(".")):
        example = "train.seq_len=4096" if option == "--set" else "strategy=ddp,fsdp2"
        raise UserError(f"{place}: is not KEY=VALUE; write {option} {example}")
    value = safe_yaml.parse(text if option == "--set" else f"[{text}]", place)
    if key.startswith("env."):  # variables are text, and a shell has no quotes left to show it
        value = [s.strip() for s in text.split(",")] if option == "--axis" else text
    if option == "--axis":
        return _set_axis(raw, key, value, place)
    axes = raw.get("axes")
    if isinstance(axes, dict):
        if any(key.startswith(f"{axis}.") for axis in axes):
            # Below an axis, such as model.num_layers where model is swept: set it in every case.
            axes[key] = [value]
            return f"axes.{key}"
        for axis in [a for a in axes if a == key or str(a).startswith(f"{key}.")]:
            del axes[axis]  # a value that is set is swept no more
    set_key(raw, key, value)
    return key


def _set_axis(raw: dict[str, Any], key: str, values: list[Any], place: str) -> str:
    if not values:
        raise UserError(f"{place}: has no values; list at least one, separated by commas")
    if key == "world" or key.startswith("env."):  # these hold their axis themselves
        set_key(raw, key, values)
        return key
    axes = raw.setdefault("axes", {})
    if not isinstance(axes, dict):
        raise UserError(f"axes: is not a mapping; use {{key: [values]}} instead of {axes!r}")
    axes[key] = values
    return f"axes.{key}"
