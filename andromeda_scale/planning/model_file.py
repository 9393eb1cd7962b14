"""A suite's `model` -> a family and its options: names, files, mappings, callables. No torch."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from andromeda_scale.errors import UserError
from andromeda_scale.registry import MODELS, is_callable_name, load, model_config
from andromeda_scale.suite import resources, safe_yaml
from andromeda_scale.suite.settings import by_key
from andromeda_scale.suite.validation import Where, place, refuse_unknown, validate


def resolve_model(value: Any, where: Where) -> tuple[str, dict[str, Any]]:
    """(name, {"family": ..., options that are not defaults}) of a suite's `model`.

    `value` is the name or path of a model file (YAML, or a config.json of Hugging Face),
    `package.module:callable`, or a mapping: `{base: one of these, key: value}` changes its keys,
    `{family: ..., key: value}` and `{callable: ..., key: value}` stand alone; `name` names any.
    """
    changes = {"base": value} if isinstance(value, str) else dict(value)
    base, name = changes.pop("base", None), changes.pop("name", None)
    written: dict[str, Any] = {}
    path = place(where, "model")
    if base is not None:
        if not isinstance(base, str):
            raise UserError(
                f"model.base: {base!r} is not text ({place(where, 'model.base')}); "
                "name a model file"
            )
        written, path, found = _base(base, where)
        name = name or f"{found}{''.join(_suffixes(changes))}"
    options = _merged(written, changes)
    family = options.pop("family", "custom" if "callable" in options else None)
    if family is None:
        raise UserError(f"model.family: is missing ({path}); use one of {', '.join(MODELS)}")
    refuse_unknown("model family", family, "model.family", path)
    config = validate(
        load("model family", family),
        options,
        lambda key: place(where, key) if _is_in(changes, key) else path,
        prefix="model",
    )
    model = {"family": family, **config.model_dump(mode="json", exclude_defaults=True)}
    return str(name or config.label or family), model


def told_apart(models: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """The name of each (name, model); where several models have one name, with as few of the keys
    in which they differ as tell them apart: `Tiny+d=32`."""
    of_name: dict[str, dict[str, dict[str, Any]]] = {}
    for name, model in models:
        of_name.setdefault(name, {}).setdefault(json.dumps(model), model)
    names: dict[tuple[str, str], str] = {}
    for name, found in of_name.items():
        settings = [_all_settings(model) for model in found.values()] if len(found) > 1 else [{}]
        keys = _telling(settings)
        for text, values in zip(found, settings, strict=True):
            own = [key for key in keys if key in values] or _own(values, settings)
            given = {key.rpartition(".")[2]: values[key] for key in own}
            names[name, text] = name + "".join(_suffixes(given))
    return [names[name, json.dumps(model)] for name, model in models]


def _all_settings(model: dict[str, Any]) -> dict[str, Any]:
    """Every key of a resolved model with its value, defaults too, numbers and words first."""
    found = by_key({"family": model["family"], **model_config(model).model_dump(mode="json")})
    return dict(sorted(found.items(), key=lambda item: isinstance(item[1], list | dict)))


def _telling(settings: list[dict[str, Any]]) -> list[str]:
    """The first keys whose values, taken together, are others in each of `settings`."""
    keys: list[str] = []
    num_apart = 1
    for key in dict.fromkeys(key for one in settings for key in one):
        more = {tuple(repr(one.get(k)) for k in (*keys, key)) for one in settings}
        if len(more) > num_apart:
            keys, num_apart = [*keys, key], len(more)
    return keys


def _own(values: dict[str, Any], settings: list[dict[str, Any]]) -> list[str]:
    """The first key of a model that others lack: without a suffix it would seem the plain one."""
    lacking = (key for key in values if any(key not in one for one in settings))
    return list(itertools.islice(lacking, 1))


def short(value: Any) -> str:
    """A value of an axis, for names and messages."""
    if isinstance(value, dict) and "name" in value:
        rest = ",".join(f"{k}={v}" for k, v in value.items() if k != "name")
        return f"{value['name']}({rest})" if rest else str(value["name"])
    return "null" if value is None else str(value)


def _base(base: str, where: Where) -> tuple[dict[str, Any], str, str]:
    """(mapping, where it was written, name) of what `base` means."""
    if is_callable_name(base):
        at = place(where, "model")
        return {"family": "custom", "callable": base}, at, base.rpartition(":")[2]
    try:
        found = resources.find("models", base)
        written, _ = safe_yaml.read(found)
        if not isinstance(written, dict):
            raise UserError(f"{found}: is not a mapping; write family and sizes as key: value")
    except UserError as error:
        problem, semicolon, remedy = str(error).partition("; ")
        at = place(where, "model")
        raise UserError(f"model: {problem} ({at}){semicolon}{remedy}") from error
    if found.suffix == ".json" and "family" not in written:
        return {"family": "huggingface", "config": written}, str(found), _name_of_json(found)
    written = dict(written)
    return written, str(found), str(written.pop("name", found.stem))


def _name_of_json(path: Path) -> str:
    """Every config.json is called so; its folder is the model."""
    return path.absolute().parent.name if path.stem == "config" else path.stem


def _suffixes(changes: dict[str, Any]) -> list[str]:
    found: list[str] = []
    for key, value in changes.items():
        inner = isinstance(value, dict) and key in ("config", "kwargs")
        found += _suffixes(value) if inner else [f"+{key}={short(value)}"]
    return found


def _merged(written: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Both, the changes on top; mappings that both hold are merged alike."""
    both = {k: v for k, v in changes.items() if isinstance(v, dict)}
    inner = {k: _merged(written[k], v) for k, v in both.items() if isinstance(written.get(k), dict)}
    return written | changes | inner


def _is_in(changes: dict[str, Any], key: str) -> bool:
    """Whether the value of a dotted key below `model` stands in the changes."""
    found: Any = changes
    for part in key.removeprefix("model.").partition("[")[0].split("."):
        if not isinstance(found, dict) or part not in found:
            return False
        found = found[part]
    return True
