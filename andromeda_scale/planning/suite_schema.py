"""The JSON schema of a suite file, for editors: what pydantic knows, and what registries know."""

from __future__ import annotations

import copy
from typing import Any

from andromeda_scale.planning.expand import AUTO
from andromeda_scale.registry import COLLECTORS, MODELS, STRATEGIES, load
from andromeda_scale.suite import resources
from andromeda_scale.suite.config import Suite
from andromeda_scale.suite.validation import dotted_keys

_WORLD = {
    "anyOf": [
        {"type": "integer", "minimum": 1},
        {"type": "string", "pattern": "^[1-9][0-9]*(x[1-9][0-9]*)?$"},
    ],
    "description": "ranks on one node, or NODESxRANKS_PER_NODE",
}


def suite_schema() -> dict[str, Any]:
    """Draft 2020-12 schema with the short forms, names and options of this installation."""
    schema = Suite.model_json_schema()
    definitions = schema["$defs"]
    for unused in ("World", "StrategySpec"):  # what their short forms become, not what is written
        definitions.pop(unused, None)
    properties = schema["properties"]
    properties["world"] = {
        "anyOf": [_WORLD, {"type": "array", "items": _WORLD, "minItems": 1}],
    }
    properties["strategy"] = _strategies(definitions)
    properties["model"] = _models(definitions)
    properties["collect"]["items"] = {"enum": sorted(COLLECTORS)}
    properties["axes"] = _axes(properties)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "andromeda_scale suite"
    return dict(schema)


def _strategies(definitions: dict[str, Any]) -> dict[str, Any]:
    """A name, or a name with the options of that strategy beside it."""
    forms: list[dict[str, Any]] = [{"enum": [*sorted(STRATEGIES), AUTO]}]
    for name in sorted(STRATEGIES):
        options = _inlined(load("strategy", name).Options, definitions)
        below = {"name": {"const": name}, "options": copy.deepcopy(options)}
        options["properties"] = {"name": {"const": name}, **options.get("properties", {})}
        options["required"] = ["name", *options.get("required", [])]
        forms.append(options)
        forms.append(
            {
                "type": "object",
                "properties": below,
                "required": ["name", "options"],
                "additionalProperties": False,
            }
        )
    return {"anyOf": forms, "default": "ddp"}


def _models(definitions: dict[str, Any]) -> dict[str, Any]:
    """The name of a file, or a mapping: a file with changes, or a family with its options."""
    name = {"name": {"type": "string"}}
    forms: list[dict[str, Any]] = [
        {"anyOf": [{"enum": resources.names("models")}, {"type": "string"}]},
        {
            "type": "object",
            "properties": {"base": {"type": "string"}, **name},
            "required": ["base"],
        },
    ]
    for family in sorted(MODELS):
        options = _inlined(load("model family", family), definitions)
        options["properties"] |= {"family": {"const": family}, **name}
        options["required"] = ["family", *options.get("required", [])]
        forms.append(options)
    return {"anyOf": forms}


def _axes(properties: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys of a suite with a list each; those of a model or a strategy are free."""
    values = {"type": "array", "minItems": 1}
    known: dict[str, Any] = dict.fromkeys(dotted_keys(Suite), values)
    for key in ("strategy", "model", "driver"):
        known[key] = {**values, "items": properties[key]}
    return {
        "type": "object",
        "properties": known,
        "patternProperties": {r"^(model|strategy|env)\.": values},
        "additionalProperties": False,
    }


def _inlined(schema_class: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """A class's schema, its own definitions moved to the suite's."""
    schema: dict[str, Any] = schema_class.model_json_schema()
    definitions.update(schema.pop("$defs", {}))
    return schema
