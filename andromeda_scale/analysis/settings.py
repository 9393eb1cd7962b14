"""What a suite set of a row, by the dotted keys of YAML, and a row's name. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from andromeda_scale.config import Settings

Row = Mapping[str, Any]

# Columns of results that hold one key of a suite.
KEYS = {
    "mode": "train.mode",
    "seq_len": "train.seq_len",
    "micro_batch_size": "train.micro_batch_size",
    "grad_accum": "train.grad_accum",
    "precision": "train.precision",
}
_DEFAULTS = Settings().model_dump(mode="json")


def settings(row: Row) -> dict[str, str]:
    """Every key that a suite can set for a row's training and measuring, but those it left out."""
    columns = {key: yaml(row[column]) for column, key in KEYS.items()}
    return columns | {key: yaml(value) for key, value in others(row).items()}


def others(row: Row) -> dict[str, Any]:
    """The keys of column `other`: what differs from its default and has no column."""
    found: dict[str, Any] = json.loads(row["other"]) if row["other"] else {}
    return found


def default(key: str) -> str:
    """The value of a key that a suite left out; `unset` for a variable."""
    if key.startswith("env."):
        return "unset"
    value: Any = _DEFAULTS
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return "unset"
        value = value[part]
    if key == "train.attention" and value is None:
        return "the model's"
    return yaml(value)


def yaml(value: Any) -> str:
    """A value as one writes it in a suite, without braces."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        # A mapping that names something, such as {name: sgd, momentum: 0.9}, begins with the name.
        parts = [str(value["name"])] if "name" in value else []
        keys = [k for k, v in value.items() if k != "name" and v is not None]
        return " ".join(parts + [f"{key}={yaml(value[key])}" for key in keys])
    return json.dumps(value)


def name(row: Row) -> str:
    """A strategy with its options, and who drives it."""
    driver = "" if row["driver"] == "native" else f"by {row['driver']}"
    return " ".join(part for part in (row["strategy"], row["options"], driver) if part)
