"""What differs between rows that a reader would compare, beside what they are about. No torch.

Rows of one model and regime at one world are compared in two directions: strategies, drivers and
options under equal settings; and the settings of one strategy, where a difference is named by the
axis of the suite that makes it. Where what was skipped or failed leaves rows without either
link, every difference between them counts: no axis separates them. Facts are what the ranks read
back (column `facts`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from andromeda_scale.analysis.comparable import UNKNOWN, Groups, Row, axes_of, grouped
from andromeda_scale.analysis.fairness_rules import Rule, is_identity, required, rule_of
from andromeda_scale.suite.precision import POLICIES

COLUMNS = (
    "flag",  # unfair: it changes the arithmetic or the work; differs: it keeps the result
    "fact",
    "values",  # which value on which rows
    "effect",
    "axis",  # of the suite, where it makes the difference: compare within one value of it
    "model",
    "regime",
    "worlds",
    "at",  # settings under which rows differ; empty: under all
    "case_ids",  # rows that stand out, with spaces between; all that differ where none does
)
MAX_NAMED = 3  # rows with the commonest value that are named one by one


@dataclass
class _Found:
    """One line under way: the same values of a fact at several worlds and settings."""

    worlds: dict[str, None] = field(default_factory=dict)
    cells: dict[tuple[str, ...], None] = field(default_factory=dict)
    case_ids: dict[str, None] = field(default_factory=dict)


def differences(groups: Groups) -> pd.DataFrame:
    """A row of COLUMNS for each fact that is not equal between measured rows; unfair ones first.

    A required fact that was not read back is unknown, and unfair if its rule is: never equal.
    """
    lines = []
    for (model, regime, _), rows in groups.items():
        for line in _lines(rows):
            lines.append({**line, "model": model, "regime": regime})
    frame = pd.DataFrame(lines, columns=list(COLUMNS))
    # Unfair before differs; beside each other's axis last; otherwise in the order of the rules.
    order = frame["flag"].eq("differs") * 2 + frame["axis"].ne("")
    return frame.iloc[order.argsort(kind="stable")].reset_index(drop=True)


def _lines(rows: list[Row]) -> Iterator[dict[str, Any]]:
    """The differences of one model and regime."""
    axes = axes_of(rows)
    worlds = [here for here in grouped(rows, lambda row: row.world).values() if len(here) > 1]
    facts = dict.fromkeys((*required(), "parity", *(fact for row in rows for fact in row.facts)))
    named: set[str] = set()
    for fact in facts:
        if not is_identity(fact):
            yield from _of_strategies(fact, worlds, axes)
            for line in _of_axes(fact, worlds, axes):
                named |= set(line["axis"].split(", "))
                yield line
    for axis in axes:
        if axis not in named and axis.removeprefix("train.") not in facts:
            as_facts = [[_as_fact(row, axis) for row in here] for here in worlds]
            yield from _of_strategies(axis, as_facts, axes)
            yield from _of_axes(axis, as_facts, axes)


def _of_strategies(
    fact: str, worlds: list[list[Row]], axes: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Lines of one fact across strategies, drivers and options under equal settings."""
    found: dict[str, _Found] = {}
    for here in worlds:
        silent, known = _split(here, fact)
        if silent:
            _add(found, fact, silent, [*silent, *known], axes)
        cells = grouped(known, lambda row: row.at(axes))
        for cell in [known] if _apart(here, axes) else cells.values():
            if len({row.value(fact) for row in cell}) > 1:
                _add(found, fact, _outstanding(cell, fact), cell, axes)
    for values, one in found.items():
        at = _where(one.cells, axes, [row for here in worlds for row in here])
        yield _line(fact, rule_of(fact), values, one, at=at)


def _apart(rows: list[Row], axes: Sequence[str]) -> bool:
    """Whether some of these rows share neither settings nor name with the others, by any path."""
    left, linked = list(rows[1:]), [rows[0]]
    for row in linked:
        near = [r for r in left if r.name == row.name or r.at(axes) == row.at(axes)]
        linked += near
        left = [r for r in left if r not in near]
    return bool(left)


def _of_axes(fact: str, worlds: list[list[Row]], axes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Lines of one fact across the settings of one strategy, driver and options."""
    found: dict[tuple[str, str], _Found] = {}
    for here in worlds:
        _, known = _split(here, fact)
        varying = [
            same
            for same in grouped(known, lambda row: row.name).values()
            if len({row.value(fact) for row in same}) > 1
        ]
        if not varying:
            continue
        members = [row for same in varying for row in same]
        causes = [axis for axis in axes if any(_moves(fact, axis, same) for same in varying)]
        causes = causes or [axis for axis in axes if len({r.setting(axis) for r in members}) > 1]
        by = grouped(members, lambda row: row.value(fact) or "")
        labels = {value: _labels(same, causes) for value, same in by.items()}
        values = "; ".join(v if v == label else f"{v}: {label}" for v, label in labels.items())
        if len(varying) < len({row.name for row in known}):
            values += f" ({', '.join(same[0].name for same in varying)})"
        one = found.setdefault((values, ", ".join(causes)), _Found())
        one.worlds[here[0].world] = None
        one.case_ids |= dict.fromkeys(row.case_id for row in members)
    for (values, axis), one in found.items():
        yield _line(fact, rule_of(fact), values, one, axis=axis)


def _line(fact: str, rule: Rule, values: str, found: _Found, **where: str) -> dict[str, Any]:
    return {
        "flag": rule.flag,
        "fact": fact,
        "values": values,
        "effect": rule.effect,
        "axis": where.get("axis", ""),
        "worlds": ", ".join(found.worlds),
        "at": where.get("at", ""),
        "case_ids": " ".join(found.case_ids),
    }


def _split(rows: list[Row], fact: str) -> tuple[list[Row], list[Row]]:
    """(rows that cannot be called equal to any, the others that have the fact)."""
    if fact == "parity":  # only what was verified is
        silent = [row for row in rows if row.value(fact) != "ok"]
        return silent, []
    silent = [row for row in rows if row.value(fact) == UNKNOWN]
    return silent, [row for row in rows if row.value(fact) not in (None, UNKNOWN)]


def _outstanding(rows: list[Row], fact: str) -> list[Row]:
    """Rows off the precision policy, or off what most rows have; without a majority all."""
    kind = fact.removeprefix("dtypes.")
    precisions = {row.precision for row in rows}
    policy = POLICIES.get(rows[0].precision) if len(precisions) == 1 else None
    usual = getattr(policy, kind, None) if fact.startswith("dtypes.") else None
    counts = Counter(row.value(fact) for row in rows).most_common()
    if usual not in {value for value, _ in counts}:
        usual = counts[0][0] if counts[0][1] > counts[1][1] else None
    return [row for row in rows if row.value(fact) != usual]


def _add(
    found: dict[str, _Found], fact: str, marked: list[Row], rows: list[Row], axes: Sequence[str]
) -> None:
    """File what one world and cell shows under its values."""
    by = grouped(rows, lambda row: row.value(fact) or UNKNOWN)
    parts = sorted(by.items(), key=lambda part: len(part[1]))
    texts = []
    for value, same in parts:
        names = list(dict.fromkeys(row.name for row in same))
        commonest = same is parts[-1][1] and len(parts) > 1 and len(names) > MAX_NAMED
        texts.append(f"{value}: {'the others' if commonest else ', '.join(names)}")
    one = found.setdefault("; ".join(texts), _Found())
    one.worlds[rows[0].world] = None
    one.cells |= dict.fromkeys(row.at(axes) for row in marked)
    one.case_ids |= dict.fromkeys(row.case_id for row in marked)


def _moves(fact: str, axis: str, rows: list[Row]) -> bool:
    """Whether the fact differs between two rows whose settings differ in this axis alone."""
    keys = sorted({key for row in rows for key in row.settings} - {axis})
    alike = grouped(rows, lambda row: row.at(keys))
    return any(len({row.value(fact) for row in same}) > 1 for same in alike.values())


def _where(cells: Iterable[tuple[str, ...]], axes: Sequence[str], everyone: Iterable[Row]) -> str:
    """The settings of these cells, where others have other ones."""
    cells, everyone = list(cells), list(everyone)
    parts = []
    for index, axis in enumerate(axes):
        here = dict.fromkeys(cell[index] for cell in cells)
        if set(here) < {row.setting(axis) for row in everyone}:
            parts.append(f"{axis} {', '.join(here)}")
    return "; ".join(parts)


def _labels(rows: list[Row], axes: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(" ".join(row.at(axes)) for row in rows))


def _as_fact(row: Row, axis: str) -> Row:
    """A setting that no fact shows, as one."""
    return Row(
        row.case_id, row.name, row.world, row.precision, row.settings, {axis: row.setting(axis)}
    )
