"""The schema for editors takes every short form that the reader takes, and few others."""

from __future__ import annotations

import re
from typing import Any

import pytest

from andromeda_scale.errors import UserError
from andromeda_scale.planning.suite_file import mapping_suite
from andromeda_scale.planning.suite_schema import suite_schema
from andromeda_scale.suite import safe_yaml

GOOD = {"question": "?", "model": "andromeda-tiny", "world": 1, "data": {"source": "random"}}
SCHEMA = suite_schema()
_TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


def _is_a(value: Any, kind: str) -> bool:
    if kind in ("integer", "number"):
        known = int if kind == "integer" else int | float
        return isinstance(value, known) and not isinstance(value, bool)
    return isinstance(value, _TYPES[kind])


def _fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether JSON Schema's rules on forms hold; those on the size of numbers are left out."""
    if "$ref" in schema:
        return _fits(value, SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema and not any(_fits(value, form) for form in schema["anyOf"]):
        return False
    if "type" in schema and not _is_a(value, schema["type"]):
        return False
    # In JSON false is not 0, as it is in Python.
    allowed = [schema["const"]] if "const" in schema else schema.get("enum", [value])
    if not any(type(value) is type(one) and value == one for one in allowed):
        return False
    if isinstance(value, str):
        return re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, list):
        return all(_fits(one, schema.get("items", {})) for one in value)
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        return set(schema.get("required", ())) <= set(value) and all(
            _fits(one, known[key]) if key in known else others is not False
            for key, one in value.items()
        )
    return True


@pytest.mark.parametrize(
    "written",
    [
        "train: {optimizer: sgd}",
        "train: {optimizer: {name: sgd, momentum: 0.9}}",
        "train: {compile: true}",
        "train: {compile: {mode: default, whole: true}}",
        "train: {activation_checkpointing: selective}",
        "train: {activation_checkpointing: {every: 2}}",
        "train: {micro_batch_size: auto}",
        "parity: off",
        "parity: 'off'",
        "strategy: fsdp2",
        "strategy: {name: fsdp2, reshard_after_forward: false}",
        "strategy: {name: fsdp2, options: {reshard_after_forward: false}}",
        "strategy: {name: zero3, config: zero3}",
        "data: {source: files, files: a.txt}",
        "data: {source: files, files: [a.txt, b.txt]}",
        "measure: {precision: 1%}",
        "measure: {precision: 0.01}",
        "scaling: {strong: {global_batch_size: 8}}",
        "scaling: weak",
        "world: 2x8",
        "world: [1, 2x8]",
        "env: {A: b}",
        "env: {A: [b, c]}",
        "slurm: {container: image.sif}",
        "slurm: {container: {image: image.sif}}",
        "slurm: {time: 2:00:00}",
        "model: {base: andromeda-tiny, num_layers: 1}",
    ],
)
def test_what_the_reader_takes_fits_the_schema(
    written: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    suite = {**GOOD, **safe_yaml.parse(written, "x")}
    mapping_suite(suite)
    assert _fits(suite, SCHEMA)


@pytest.mark.parametrize(
    ("written", "remedy"),
    [
        ("world: 1.5", "use a number of ranks, 2x8 for 2 nodes of 8 ranks, or a list of worlds"),
        ("world: null", "use a number of ranks, 2x8 for 2 nodes of 8 ranks, or a list of worlds"),
        ("world: 1:30", "use a number of ranks, 2x8 for 2 nodes of 8 ranks, or a list of worlds"),
        ("strategy: 5", "use a name such as ddp, or {name: ddp, OPTION: value}"),
        ("train: {optimizer: 5}", "use one of adadelta, "),
        ("train: {optimizer: adam2}", "use one of adadelta, "),
        ("slurm: {container: 5}", "use the path of an image, quoted"),
        ("parity: true", "use full, shallow, cross or off"),
    ],
)
def test_what_neither_takes_is_refused_with_the_form_that_is_meant(
    written: str, remedy: str
) -> None:
    suite = {**GOOD, **safe_yaml.parse(written, "x")}
    assert not _fits(suite, SCHEMA)
    with pytest.raises(UserError) as refused:
        mapping_suite(suite)
    assert f"; {remedy}" in str(refused.value)
