"""In which keys the cases of two runs differ that share none, for who meant them to be the same."""

from __future__ import annotations

from pathlib import Path

from andromeda_scale.analysis.results import Results, rows_of
from andromeda_scale.contracts.planned import read_plan
from andromeda_scale.suite import paths, settings
from andromeda_scale.suite.config import NOT_IN_ID

MAX_NAMED = 4
_COLUMNS = ("strategy", "options", "driver", "model", "model_config", "regime")
_WORLD = ("nodes", "ranks_per_node")

Keys = dict[str, str]


def nearest(before: Path, old: Results, after: Path, new: Results) -> str:
    """The two cases that differ in the fewest keys, with these keys and both values."""
    planned = all(paths.exists(run / "plan.json") for run in (before, after))
    of_old, of_new = (
        _planned(run, results) if planned else _shown(results)
        for run, results in ((before, old), (after, new))
    )
    pairs = [(a, b, _unlike(of_old[a], of_new[b])) for a in of_old for b in of_new]
    if not pairs:
        return "one of them has no case"
    a, b, keys = min(pairs, key=lambda pair: len(pair[2]))
    said = [f"{key} ({_value(of_old[a], key)}, {_value(of_new[b], key)})" for key in keys]
    if len(said) > MAX_NAMED:
        said[MAX_NAMED:] = [f"and {len(said) - MAX_NAMED} more keys"]
    return f"the nearest, {a} and {b}, differ in {', '.join(said) or 'a key that no table has'}"


def _planned(run_dir: Path, results: Results) -> dict[str, Keys]:
    """Every key that makes a case, by case."""
    cases = read_plan(run_dir).cases
    found = {}
    for case_id in results.cases["case_id"]:
        keys = settings.by_key(cases[case_id].model_dump(mode="json", exclude=NOT_IN_ID))
        found[case_id] = {key: settings.text(value) for key, value in keys.items()}
    return found


def _shown(results: Results) -> dict[str, Keys]:
    """What rows of tables have of them, where a plan was not copied along."""
    return {
        row["case_id"]: {name: str(row[name]) for name in (*_COLUMNS, *_WORLD)}
        | settings.of_row(row)
        for row in rows_of(results.cases)
    }


def _unlike(one: Keys, other: Keys) -> list[str]:
    return [key for key in dict.fromkeys((*one, *other)) if _value(one, key) != _value(other, key)]


def _value(keys: Keys, key: str) -> str:
    return keys[key] if key in keys else settings.default(key)
