"""The rows of a run that a reader would compare: what they are, and what they read back. No torch.

`fairness.py` says in what they are unequal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from andromeda_scale.analysis.fairness_rules import rule_of
from andromeda_scale.analysis.results import Results, rows_of
from andromeda_scale.suite import settings
from andromeda_scale.suite.world import written

UNKNOWN = "not read back"


@dataclass(frozen=True)
class Row:
    """A measured row. `settings` by dotted key, `facts` by dotted name, both as text."""

    case_id: str
    name: str
    world: str
    precision: str
    settings: dict[str, str]
    facts: dict[str, str]

    def value(self, fact: str) -> str | None:
        """A fact as text; None where it does not apply."""
        found = self.facts.get(fact)
        if found is None and fact.startswith("variables."):
            return "unset"
        if found is None:
            return UNKNOWN if rule_of(fact).required else None
        if fact == "dtypes.reduction" and found == "none":
            return None  # one rank, and nothing that crossed a network
        return found

    def setting(self, key: str) -> str:
        """The value of a suite's key, its default where the suite left it out."""
        return self.settings[key] if key in self.settings else settings.default(key)

    def at(self, axes: Sequence[str]) -> tuple[str, ...]:
        """Its place along these keys."""
        return tuple(self.setting(axis) for axis in axes)


# By model, regime and configuration of the model, worlds still together.
Groups = dict[tuple[str, str, str], list[Row]]


def comparable(results: Results) -> Groups:
    """Measured rows of one model and regime beside each other."""
    groups: Groups = {}
    for row in rows_of(results.cases):
        if not pd.isna(row["tokens_per_s"]):
            key = (row["model"], row["regime"], row["model_config"])
            groups.setdefault(key, []).append(_read(row))
    return groups


def num_compared(groups: Groups, axes: Sequence[str] = ()) -> int:
    """Rows that have another of their world, with the same values of `axes`, beside them."""
    return sum(
        len(here)
        for rows in groups.values()
        for here in grouped(rows, lambda row: (row.world, row.at(axes))).values()
        if len(here) > 1
    )


def kinds(groups: Groups) -> list[str]:
    """The models and regimes of measured rows, which are not compared with each other."""
    return list(dict.fromkeys(f"{model}, {regime}" for model, regime, _ in groups))


def _read(row: dict[Any, Any]) -> Row:
    facts = json.loads(row.get("facts") or "{}")
    # The reference's own program needs no comparison with itself.
    if row.get("grad_accum", 1) > 1:
        summed = facts.get("engine.grad_accum_dtype") or facts.get("dtypes.gradients")
        facts["dtypes.accumulation"] = summed
    facts["parity"] = "ok" if row["parity"] == "reference" else row["parity"] or None
    return Row(
        case_id=row["case_id"],
        name=settings.name(row),
        world=written(row["nodes"], row["ranks_per_node"]),
        precision=row["precision"],
        settings=settings.of_row(row),
        facts={fact: settings.text(found) for fact, found in facts.items() if found is not None},
    )


def axes_of(rows: list[Row]) -> list[str]:
    """Keys of the suite in which the rows of some world differ."""
    return [
        key
        for key in dict.fromkeys(key for row in rows for key in row.settings)
        if any(
            len({row.setting(key) for row in here}) > 1
            for here in grouped(rows, lambda row: row.world).values()
        )
    ]


def grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups
