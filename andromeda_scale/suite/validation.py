"""Turns what pydantic finds wrong into one paragraph: key, value, file, remedy. No torch."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from andromeda_scale.errors import UserError
from andromeda_scale.registry import KINDS
from andromeda_scale.suite import safe_yaml
from andromeda_scale.suite.schema import Schema, shown

S = TypeVar("S", bound=Schema)

Where = str | Callable[[str], str]  # the file, or a function from the key to where it was written


def validate(schema: type[S], raw: Any, where: Where, prefix: str = "") -> S:
    """`raw` as `schema`, strictly: no text for a number, no true for 1.

    `prefix` is the dotted key under which `raw` stands. Raises UserError.
    """
    if odd := _odd(raw, prefix):
        key, problem, remedy = odd
        raise UserError(f"{key}: {problem} ({place(where, key)}); {remedy}")
    text = json.dumps(raw)
    try:
        # Only JSON mode is strict about numbers and still takes a list for a tuple.
        return schema.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise UserError(_paragraph(schema, raw, error, where, prefix)) from error


def _odd(raw: Any, key: str) -> tuple[str, str, str] | None:
    """(key, problem, remedy) of the first key or value that YAML knows and no setting has."""
    if isinstance(raw, dict):
        for name, value in raw.items():
            if not isinstance(name, str):
                at = f"{key}.{name}" if key else str(name)
                return (
                    at,
                    f"the key {name!r} with the value {shown(value)} is not text",
                    (f'remove it, or quote it: "{name}"'),
                )
            if odd := _odd(value, f"{key}.{name}" if key else name):
                return odd
    elif isinstance(raw, list | tuple):
        found = (_odd(value, f"{key}[{index}]") for index, value in enumerate(raw))
        return next(filter(None, found), None)
    elif not isinstance(raw, str | int | float | bool | None):
        kind = type(raw).__name__
        return key or "the file", f"{raw!s} is a {kind}, which no setting has", 'quote it: "..."'
    return None


def dotted_keys(schema: type[Schema], prefix: str = "") -> Iterator[str]:
    """Every key of a schema, those of nested schemas dotted."""
    for name, field in schema.model_fields.items():
        yield prefix + name
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, Schema):
                yield from dotted_keys(part, f"{prefix}{name}.")


def suggestion(key: str, known: list[str]) -> str:
    """What to write instead of the unknown dotted `key`."""
    parent, _, name = key.rpartition(".")
    siblings = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == parent]
    if close := difflib.get_close_matches(name, siblings, n=1):
        return f"did you mean {close[0]}?"
    elsewhere = [k for k in known if k.rpartition(".")[2] == name]
    if elsewhere:
        return f"did you mean {elsewhere[0]}?"
    return f"known here: {', '.join(siblings)}" if siblings else "remove it"


def refuse_unknown(kind: str, name: Any, key: str, where: Where, also: Sequence[str] = ()) -> None:
    """Raise UserError for a name that no registry has under `kind` (a key of KINDS).

    `also`: words beside the names, for what to write instead.
    """
    if not isinstance(name, str) or name not in KINDS[kind]:
        remedy = suggestion(str(name), [*KINDS[kind], *also])
        raise UserError(f"{key}: {name!r} is no {kind} ({place(where, key)}); {remedy}")


def _paragraph(
    schema: type[Schema], raw: Any, error: ValidationError, where: Where, prefix: str
) -> str:
    # A union reports every branch; the branch that got deepest is the one that was meant.
    errors = error.errors(include_url=False)
    # Of a word and a number equally deep the number's bounds say more.
    details = max(errors, key=lambda e: (len(e["loc"]), e["type"] != "literal_error"))
    top = [e for e in errors if e["loc"][:1] != details["loc"][:1]]
    inner = ".".join(_location(raw, details)).replace(".[", "[")
    key = ".".join(part for part in (prefix, inner) if part)
    problem, remedy = _problem_and_remedy(schema, details, inner)
    if words := _words_beside(errors, details):
        remedy = f"{remedy}, {words}" if " or " in words else f"{remedy}, or {words}"
    # Our own validators look at several keys at once and name the one to change: "key: problem".
    own_key = re.match(r"([\w.\[\]]+): ", problem) if details["type"] == "value_error" else None
    if own_key:
        key = f"{key}.{own_key[1]}" if key else own_key[1]
        problem = problem.removeprefix(own_key[0])
    more = f" (and {len(top)} more to mend after this)" if top else ""
    return f"{key or 'the file'}: {problem} ({place(where, key)}); {remedy}{more}"


def place(where: Where, key: str) -> str:
    """Where the value of a dotted key was written."""
    return where(key) if callable(where) else where


def _location(raw: Any, details: ErrorDetails) -> list[str]:
    """Where the error is, without the names of union branches, which stand in no file."""
    parts: list[str] = []
    for index, part in enumerate(details["loc"]):
        if isinstance(part, int):
            if not isinstance(raw, list | tuple):
                continue  # the one of a list that was written without it
            parts.append(f"[{part}]")
            raw = raw[part] if part < len(raw) else None
        elif isinstance(raw, dict) and part in raw:
            parts.append(part)
            raw = raw[part]
        elif details["type"] == "missing" and index == len(details["loc"]) - 1:
            parts.append(part)
    return parts


_EXPECTED = {
    "int": ("a whole number", "use one, such as 4"),
    "float": ("a number", "use one, such as 0.5"),
    "bool": ("true or false", "use true or false"),
    "string": ("text", 'quote it: "..."'),
    "tuple": ("a list", "use [first, second]"),
    "dict": ("a mapping", "use {key: value}"),
    "model": ("a mapping", "use {key: value}"),
    "finite": ("a finite number", "use a finite one"),
}


def _words_beside(errors: Sequence[ErrorDetails], details: ErrorDetails) -> str:
    """The words that a union takes in the place of a number that is wrong: `auto`."""
    alike = [e for e in errors if e["loc"][:-1] == details["loc"][:-1] and e is not details]
    words = [e["ctx"]["expected"] for e in alike if e["type"] == "literal_error"]
    return " or ".join(words).replace("'", "")


def _is_quoted(value: Any, kind: str) -> bool:
    """Whether a text would be what is asked for without its quotes."""
    if not isinstance(value, str):
        return False
    try:
        plain = type(safe_yaml.parse(value, "the value"))
    except UserError:
        return False
    kinds = {int: ("int", "float"), float: ("float",), bool: ("bool",)}
    return kind.startswith(kinds.get(plain, ("-",)))


def _problem_and_remedy(schema: type[Schema], e: ErrorDetails, key: str) -> tuple[str, str]:
    kind, value, context = e["type"], e["input"], e.get("ctx", {})
    text = shown(value)
    if kind == "extra_forbidden":
        return "unknown key", suggestion(key, list(dotted_keys(schema)))
    if kind == "missing":
        return "is missing", f"add {key.rpartition('.')[2]}: ..."
    if kind in ("greater_than", "greater_than_equal"):
        bound = context.get("gt", context.get("ge"))
        whole = isinstance(bound, int)
        if kind == "greater_than" and bound == 0:
            noun = "positive integer" if whole else "positive number"
            return f"{text} is not a {noun}", f"use {'1 or more' if whole else 'more than 0'}"
        return f"{text} is below {bound:g}", f"use {bound:g} or more"
    if kind in ("less_than", "less_than_equal"):
        bound = context.get("lt", context.get("le"))
        if kind == "less_than":
            return f"{text} is {bound:g} or more", f"use less than {bound:g}"
        # `:g` would round 2**31, and the remedy must be a value that is taken.
        limit = f"{bound:.0f}" if float(bound or 0).is_integer() else str(bound)
        return f"{text} is above the limit {limit}", f"use at most {limit}"
    if kind == "literal_error":
        allowed = context["expected"].replace("'", "")
        return f"{text} is not known", f"use {allowed}"
    if kind == "union_tag_invalid":
        allowed = context["expected_tags"].replace("'", "")
        return f"{context['tag']!r} is not known", f"use {allowed}"
    if kind == "union_tag_not_found":
        discriminator = context["discriminator"].strip("'")
        return f"{text} has no {discriminator}", f"add {discriminator}: ..."
    if kind in ("too_short", "string_too_short"):
        return "is empty", "give at least one" if kind == "too_short" else "write one"
    if kind == "value_error":
        problem, _, remedy = str(context["error"]).partition("; ")
        return problem, remedy or "change it"
    for name, (noun, remedy) in _EXPECTED.items():
        if kind.startswith(name):
            if _is_quoted(value, kind):
                remedy = f"write it as {value.strip()}, without quotes"
            return f"{text} is not {noun}", remedy
    return f"{text}: {e['msg']}", "change it"
