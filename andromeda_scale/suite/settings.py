"""What a suite set of a case, by the dotted keys of YAML, as tables print it. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from andromeda_scale.suite.config import Settings

Row = Mapping[str, Any]

# Columns of results that hold one key of a suite.
COLUMNS = {
    "mode": "train.mode",
    "seq_len": "train.seq_len",
    "micro_batch_size": "train.micro_batch_size",
    "grad_accum": "train.grad_accum",
    "precision": "train.precision",
}
_DEFAULTS = Settings().model_dump(mode="json")


def by_key(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of a suite as one mapping by `section.key`: a key is what an axis can name."""
    flat: dict[str, Any] = {}
    for section, values in nested.items():
        if isinstance(values, Mapping):
            flat |= {f"{section}.{key}": value for key, value in values.items()}
        else:
            flat[section] = values
    return flat


@cache
def default(key: str) -> str:
    """The value of a key that a suite left out; `unset` for a variable."""
    value: Any = _DEFAULTS
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return "unset"
        value = value[part]
    if key == "train.attention":
        return "the model's"
    return text(value)


def text(value: Any) -> str:
    """A value as one writes it in a suite; {name: sgd, momentum: 0.9} as sgd momentum=0.9."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        return ", ".join(map(text, value))
    if isinstance(value, Mapping):
        given = {key: text(inner) for key, inner in value.items() if inner is not None}
        if "file" in given:  # a user's JSON, whose keys the plan holds
            return given["file"]
        for named in ("name", "kind"):
            if named in given:
                return " ".join((given.pop(named), options(given))).strip()
        return f"{{{', '.join(f'{key}: {inner}' for key, inner in given.items())}}}"
    return json.dumps(value)


def options(given: Mapping[str, Any]) -> str:
    """Options of a strategy or an optimizer, as a row names them."""
    return " ".join(f"{key}={text(value)}" for key, value in given.items())


def of_row(row: Row) -> dict[str, str]:
    """Every key that a suite set for a row of results, and those that have a column."""
    return {key: text(row[column]) for column, key in COLUMNS.items()} | others(row)


def others(row: Row) -> dict[str, str]:
    """The keys of column `other`: what differs from its default and has no column."""
    return {key: text(value) for key, value in json.loads(row["other"] or "{}").items()}


def name(row: Row) -> str:
    """A strategy with its options, and who drives it."""
    driver = "" if row["driver"] == "native" else f"by {row['driver']}"
    return " ".join(part for part in (row["strategy"], row["options"], driver) if part)
