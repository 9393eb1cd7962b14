"""Reads YAML and JSON that anybody may have written: small, finite, no key twice. No torch."""

from __future__ import annotations

import copy
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from andromeda_scale.errors import UserError
from andromeda_scale.suite import paths

MAX_BYTES = 1 << 18  # a suite is a page of text; PyYAML reads 60 kB a second
MAX_NODES = 100_000  # after expanding aliases: a few hundred bytes can name 10^9 nodes


class _RefusedError(Exception):
    """(problem, remedy); `parse` adds the file's name."""


class _Loader(yaml.SafeLoader):
    """Safe, and refuses a key written twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise _RefusedError(
                        f"{key.value}: stands twice, again in line {line}", "keep one"
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Safe, and quotes a text that _Loader would read as a number."""


# Numbers as YAML 1.2 writes them: 010 is ten, 1e-3 needs no dot, and 1:30 is a text, where PyYAML
# follows YAML 1.1 and reads 8, a text, and 90. Its 0b11 and 1_000 stay.
_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_NUMBERS = {
    _INT: r"[-+]?([0-9][0-9_]*|0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+)$",
    _FLOAT: r"([-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
}
_BASES = {"0b": 2, "0o": 8, "0x": 16}


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    return int(text, _BASES.get(text.lstrip("+-")[:2], 10))


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in _NUMBERS]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _NUMBERS.items():
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(_tag, re.compile(_pattern), list("-+.0123456789"))
_Loader.add_constructor(_INT, _integer)


def dump(value: Any) -> str:
    """Plain data as YAML that `parse` reads alike; raises yaml.YAMLError for what YAML has not."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def read(path: Path) -> tuple[Any, str]:
    """(value, text) of one YAML file; raises UserError naming the file, line and remedy."""
    try:
        if path.is_dir():
            inside = path / "suite.yaml"  # of a run
            remedy = f"give {inside}" if inside.is_file() else "give the path of a YAML file"
            raise UserError(f"{path}: is a folder; {remedy}")
        paths.refuse_endless(path)
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise UserError(f"{path}: larger than {MAX_BYTES} bytes; give a YAML file of settings")
        text = raw.decode("utf-8")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give a readable YAML file"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: is not UTF-8 text (byte {error.start}); give a YAML file"
        ) from error
    return (_parse_json if path.suffix == ".json" else parse)(text, str(path)), text


def _parse_json(text: str, where: str) -> Any:
    """JSON by its own rules: YAML takes neither tabs nor all of its escapes."""
    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: _without_twice(pairs, where))
        _refuse_half_characters(value, "")
        return value
    except _RefusedError as error:
        problem, remedy = error.args
        raise UserError(f"{problem} ({where}); {remedy}") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: is not JSON: {error.msg} in line {error.lineno}; mend that line"
        ) from error
    except (RecursionError, ValueError) as error:  # nested too deeply; an integer of 5000 digits
        raise UserError(f"{where}: cannot be read as JSON: {error}; shorten it") from error


def _without_twice(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise UserError(f"{key}: stands twice ({where}); keep one")
        found[key] = value
    return found


def parse(text: str, where: str) -> Any:
    """The value of one YAML document (None when empty). `where` names it in errors."""
    return copy.deepcopy(_parsed(text, where))  # a caller may write into it


@lru_cache(maxsize=256)  # a sweep reads the file of its model once a case
def _parsed(text: str, where: str) -> Any:
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if (size := _expanded_size(node, {})) > MAX_NODES:
                raise _RefusedError(
                    f"holds {size:.3g} values when its aliases expand, over {MAX_NODES}",
                    "write less, or remove aliases",
                )
            value = loader.construct_document(node)
            _refuse_half_characters(value, "")
            return value
        finally:
            loader.dispose()
    except _RefusedError as error:
        problem, remedy = error.args
        raise UserError(f"{problem} ({where}); {remedy}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{where}: is not YAML: {_problem(error)}; mend that line") from error
    except RecursionError as error:
        raise UserError(f"{where}: is nested too deeply; a suite needs five levels") from error
    except ValueError as error:  # a date of month 13, an integer of 5000 digits, a NUL
        raise UserError(f"{where}: holds a value that cannot be read: {error}; quote it") from error


def _refuse_half_characters(value: Any, key: str) -> None:
    """Raise _RefusedError for an escape that is no character alone, which no file can hold."""
    if isinstance(value, str):
        if half := re.search("[\ud800-\udfff]", value):
            raise _RefusedError(
                f"{key or 'the value'}: {ascii(half[0])[1:-1]} is half a character",
                "write the character itself, or its number after a backslash and U: \\U0001F600",
            )
    elif isinstance(value, dict):
        for name, inner in value.items():
            _refuse_half_characters(name, ascii(name)[1:-1])
            _refuse_half_characters(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _refuse_half_characters(inner, f"{key}[{index}]")


def _expanded_size(node: yaml.Node, done: dict[int, int]) -> int:
    """Number of nodes below and with `node`, each alias counted as what it stands for."""
    if id(node) in done:
        if done[id(node)] < 0:
            line = node.start_mark.line + 1
            raise _RefusedError(f"the value in line {line} holds itself", "remove that alias")
        return done[id(node)]
    if isinstance(node, yaml.ScalarNode):
        return 1
    done[id(node)] = -1
    children = (
        [part for pair in node.value for part in pair]
        if isinstance(node, yaml.MappingNode)
        else node.value
    )
    done[id(node)] = 1 + sum(_expanded_size(child, done) for child in children)
    return done[id(node)]


def _problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} in line {error.problem_mark.line + 1}"
    return " ".join(str(error).split())
