"""A suite file with the command line's overrides -> Suite. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from andromeda_scale.errors import UserError
from andromeda_scale.planning import deepspeed_file
from andromeda_scale.planning.expand import expand, set_key
from andromeda_scale.suite import resources, safe_yaml
from andromeda_scale.suite.config import Suite
from andromeda_scale.suite.secret import is_secret
from andromeda_scale.suite.validation import validate


class Loaded(NamedTuple):
    """A suite, its name, its text, and where each of its keys was written."""

    suite: Suite
    name: str
    text: str
    where: Callable[[str], str]


def read_suite(name_or_path: str, sets: Sequence[str] = (), axes: Sequence[str] = ()) -> Loaded:
    """A shipped name or a path, with overrides applied.

    `sets` are KEY=VALUE with VALUE in YAML, `axes` KEY=V1,V2,.... The text is the file's, with
    the overrides as comments below. Raises UserError naming file, key, value and remedy.
    """
    path = resources.find("suites", name_or_path)
    raw, text = safe_yaml.read(path)
    return _loaded(raw, path, text, path.parent.absolute(), sets, axes)


def mapping_suite(
    suite: Mapping[str, Any], sets: Sequence[str] = (), axes: Sequence[str] = ()
) -> Loaded:
    """A suite given in Python, as if a file `suite` in this folder held it."""
    try:
        text = safe_yaml.dump(dict(suite))
    except yaml.YAMLError as error:
        raise UserError(
            f"suite: holds what YAML does not: {error}; give text, numbers, lists and mappings"
        ) from None
    raw = safe_yaml.parse(text, "suite")
    return _loaded(raw, Path("suite"), text, Path.cwd(), sets, axes)


def _loaded(
    raw: Any, path: Path, text: str, folder: Path, sets: Sequence[str], axes: Sequence[str]
) -> Loaded:
    """What a suite of this text in `folder` means, with overrides applied."""
    if not isinstance(raw, dict):
        found = "is empty" if raw is None else f"holds {type(raw).__name__}, not a mapping"
        raise UserError(f"{path}: {found}; write question, model, world and train as key: value")
    _resolve_files(raw, folder, folder)
    overrides: dict[str, str] = {}
    given: dict[str, str] = {}  # the options by the keys that they name
    for option, assignments in (("--set", sets), ("--axis", axes)):
        for assignment in assignments:
            key = _override(raw, option, assignment)
            name, overrides[key] = key.removeprefix("axes."), _source(option, assignment)
            if name in given:
                both = f"{_short(given[name])} and {_short(overrides[key])}"
                all_at_once = f", with all its values: --axis {name}=V1,V2"
                raise UserError(
                    f"{name}: is given twice ({both}); keep one{all_at_once * bool(axes)}"
                )
            given[name] = overrides[key]
            _resolve_files(raw, Path.cwd(), folder)  # what the file wrote is absolute already

    def where(key: str) -> str:
        sources = [source for written, source in overrides.items() if _meet(key, written)]
        return _short(sources[-1]) if sources else str(path)

    try:
        suite = validate(Suite, raw, where)
        expand(suite, where)  # every point must be valid before anything starts
    except UserError as error:
        raise UserError(_without_brackets(str(error), axes)) from error
    lines = [line for option in overrides.values() for line in option.splitlines()]
    comments = "".join(f"# {line}\n" for line in lines)
    return Loaded(suite, path.stem, text.rstrip("\n") + "\n" + comments, where)


def _source(option: str, assignment: str) -> str:
    """The option as it was written, without a value that must not be seen."""
    key = assignment.partition("=")[0]
    secret = "env" in key.split(".") and is_secret(assignment, assignment)
    return f"{option} {key}=..." if secret else f"{option} {assignment}"


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:97]}..."


def _resolve_files(raw: dict[str, Any], folder: Path, suite_folder: Path) -> None:
    """Make the relative paths of data, models and templates absolute, in place, and put the content
    of a DeepSpeed file in its place: a run is resumed from any directory, and is whole by itself.
    Paths start at `folder`: the suite's, or where an option was typed."""

    def path(value: Any) -> Any:
        return str(folder / value) if isinstance(value, str) and value else value

    def files(value: Any) -> Any:
        if isinstance(value, list):
            return [files(name) for name in value]
        return path(value)

    def data(value: Any) -> Any:
        return _with(_with(value, "files", files), "tokenizer", files)

    def slurm(value: Any) -> Any:
        return _with(value, "template", path)

    def model(value: Any) -> Any:
        if isinstance(value, str):
            return resources.beside("models", value, suite_folder, folder)
        return _with(value, "base", model)

    def config(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return deepspeed_file.read(resources.beside("deepspeed", value, suite_folder, folder))

    def strategy(value: Any) -> Any:
        return _with(_with(value, "config", config), "options", strategy)

    axes = raw.get("axes")
    axes = axes if isinstance(axes, dict) else {}
    for key, absolute in {
        "data": data,
        "data.files": files,
        "data.tokenizer": files,
        "model": model,
        "model.base": model,
        "strategy": strategy,
        "strategy.config": config,
        "slurm": slurm,
    }.items():
        if key in raw:
            raw[key] = absolute(raw[key])
        if isinstance(axes.get(key), list):
            axes[key] = [absolute(value) for value in axes[key]]


def _with(value: Any, key: str, change: Callable[[Any], Any]) -> Any:
    """A mapping with one of its values changed; anything else as it is."""
    if isinstance(value, dict) and key in value:
        return {**value, key: change(value[key])}
    return value


def _meet(key: str, written: str) -> bool:
    """Whether one dotted key stands at or below the other; a key and its axis are one place."""
    pairs = ((key, written), (key.removeprefix("axes."), written.removeprefix("axes.")))
    for short, long in (sorted(pair, key=len) for pair in pairs):
        if long == short or long.startswith((f"{short}.", f"{short}[")):
            return True
    return False


def _override(raw: dict[str, Any], option: str, assignment: str) -> str:
    """Apply one KEY=VALUE to the raw mapping; returns the dotted key that was written."""
    key, equals, text = assignment.partition("=")
    key, place = key.strip(), _short(_source(option, assignment))
    if not equals or not key or not all(key.split(".")):
        example = "train.seq_len=4096" if option == "--set" else "strategy=ddp,fsdp2"
        raise UserError(f"{place}: is not KEY=VALUE; write {option} {example}")
    value: Any
    if key.startswith("env."):  # variables are text, and a shell has no quotes left to show it
        if re.search("[\ud800-\udfff]", text):  # as Python shows an argument's other bytes
            raise UserError(f"{ascii(place)[1:-1]}: is not UTF-8; a suite is stored as text")
        value = [s.strip() for s in text.split(",")] if option == "--axis" else text
    else:
        value = safe_yaml.parse(text if option == "--set" else f"[{text}]", place)
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


def _without_brackets(refusal: str, axes: Sequence[str]) -> str:
    """The refusal with the remedy for an axis that was given in brackets, as one value."""
    for assignment in axes:
        key, _, text = (part.strip() for part in assignment.partition("="))
        if re.match(rf"{re.escape(key)}(\[\d+\])?: ", refusal) and re.fullmatch(r"\[.*\]", text):
            problem = refusal.rpartition("; ")[0]
            return f"{problem}; drop the brackets: --axis {key}={text[1:-1]}"
    return refusal


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
