"""The repeats of a case -> its row: statuses, settings, and numbers over its ok launches."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from andromeda_scale import registry
from andromeda_scale.analysis.precision import WANTED, needed
from andromeda_scale.analysis.resampling import Series
from andromeda_scale.analysis.scaling import Launches
from andromeda_scale.analysis.stats import Sample
from andromeda_scale.contracts.planned import PlannedRepeat
from andromeda_scale.cost.hardware import peak_flops
from andromeda_scale.cost.model import DEFAULT_CONVENTION, flops_per_token, mfu, num_parameters
from andromeda_scale.errors import UserError
from andromeda_scale.merge import ablation, blame, communication, energy, memory, parity, searched
from andromeda_scale.merge.facts import case_facts
from andromeda_scale.merge.pooled import BOUNDED, first, numbers
from andromeda_scale.merge.repeats import OF_CASES
from andromeda_scale.merge.system import unlike
from andromeda_scale.metrics import METRICS
from andromeda_scale.suite import settings
from andromeda_scale.suite.config import Case

Row = dict[str, Any]

COLUMNS: dict[str, str] = {
    "case_id": "str",
    "status": "str",  # ok if any launch is; otherwise of the first that is not
    "statuses": "str",  # of all repeats, counted
    "cause": "str",  # of the first repeat that is not ok, with where
    "num_repeats_ok": "int64",
    "num_repeats_planned": "int64",
    "num_launches": "int64",  # whose numbers are pooled here
    "mixed": "bool",  # whether ok launches of unlike systems were left out
    "missing_ranks": "str",  # ranks without an end record, by repeat
    "strategy": "str",
    "options": "str",
    "driver": "str",
    "model": "str",
    "model_config": "str",
    "regime": "str",
    "world_size": "int64",
    "nodes": "int64",
    "ranks_per_node": "int64",
    "mode": "str",
    "seq_len": "int64",
    "micro_batch_size": "int64",
    "grad_accum": "int64",
    "global_batch_size": "int64",
    "precision": "str",
    "other": "str",
    "device": "str",
    "device_name": "str",
    "threads_per_rank": "int64",
    "software": "str",
    "warmup_ended_by": "str",  # every rule that ended a launch's warm-up
    "num_steps": "Int64",  # of the window, the fewest of any launch: seconds may decide
    "num_steps_most": "Int64",
    "num_profile_steps": "Int64",
    **{name: "float64" for name in METRICS if name not in OF_CASES},
    **{f"{name}_{end}": "float64" for name in BOUNDED for end in ("low", "high")},
    "half_width": "float64",
    "wanted_precision": "float64",  # measure.precision, or what the next two are told for
    "launches_needed": "Int64",  # of as many steps, to know tokens_per_s so well; empty: unknown
    "steps_needed": "Int64",  # a launch, in as many launches; empty: launches differ by more
    "tokens_per_s_low": "float64",
    "tokens_per_s_high": "float64",
    **{f"rank_hours_per_gtoken{end}": "float64" for end in ("", "_low", "_high")},
    "tokens_per_s_per_gpu_low": "float64",
    "tokens_per_s_per_gpu_high": "float64",
    **searched.COLUMNS,
    **blame.COLUMNS,
    **ablation.COLUMNS,
    **memory.COLUMNS,
    **energy.COLUMNS,
    "throttled": "str",  # of every pooled launch in which a GPU was, by rank
    "estimate_error": "float64",
    "estimated_memory_bytes": "Int64",  # of a rank, by the plan; empty: no estimate
    "num_parameters": "Int64",
    "flops_per_token": "float64",
    "flop_convention": "str",
    "mfu": "float64",
    **communication.CASE_COLUMNS,
    "graph_breaks": "Int64",  # of torch.compile, the most of any launch
    **parity.CASE_COLUMNS,
    "facts": "str",  # what the ranks of all pooled launches read back, canonical JSON
}

# In columns of their own, or without influence on a number.
_NOT_OTHER: Any = {
    "model_name": True,
    "model": True,
    "strategy": True,
    "world": True,
    "regime": True,
    "auto": True,
    "driver": True,
    "limits": True,
    "collect": True,
    "parity": True,
    "device": True,
    "fallback": True,
    "train": {"mode", "seq_len", "micro_batch_size", "grad_accum", "precision"},
    "measure": {"repeats", "precision", "max_repeats", "profile_steps"},
}


def case_row(
    case: Case,
    items: Sequence[PlannedRepeat],
    repeats: list[Row],
    helper: Row,
    problems: list[str],
    steps: Mapping[int, Series] | None = None,
) -> tuple[Row, Launches]:
    """One row from the rows of all planned repeats, whose `pooled` is set here.

    Launches on unlike systems are not pooled: the largest group of equal fingerprints counts
    (the earliest of equals), the row is `mixed`, and the keys that differ are a problem. `helper`
    is how the case's reference or parity launch ended.
    """
    pooled = _pool(case.case_id, repeats, problems)
    for row in pooled:
        row["pooled"] = True
    launches = _launches(pooled, steps or {})
    ok = [row for row in repeats if row["status"] == "ok"]
    row = {
        **_outcome(items, repeats),
        **parity.case_parity(case, items[0], repeats, pooled, helper),
        "num_repeats_ok": len(ok),
        "num_launches": len(pooled),
        "mixed": len(pooled) < len(ok),
        **_settings(case, items[0]),
        "device_name": first(pooled or repeats, "device_name"),
        "software": first(pooled or repeats, "software"),
        "warmup_ended_by": ", ".join(dict.fromkeys(one["warmup_ended_by"] for one in pooled)),
        **numbers(pooled, launches),
        **_needed(launches, case.measure.precision or WANTED),
    }
    threads = first(pooled, "threads")
    if threads is not None:  # what the ranks had, before what the plan gave them
        row["threads_per_rank"] = threads
    facts = [(one["repeat"], json.loads(one["facts"])) for one in pooled]
    row["facts"] = json.dumps(case_facts(case, facts, problems), sort_keys=True)
    if row["estimated_memory_bytes"] and row.get("peak_allocated_bytes"):
        row["estimate_error"] = row["estimated_memory_bytes"] / row["peak_allocated_bytes"] - 1
    return row | _flops(case, row, first(pooled, "num_parameters")), launches


def _launches(pooled: list[Row], steps: Mapping[int, Series]) -> Launches:
    """What the pooled launches measured, by repeat, with the job's steps of each."""

    def sample(values: dict[int, float]) -> Sample:
        return Sample(values, {key: steps[key] for key in values if key in steps})

    return Launches(
        sample({row["repeat"]: row["tokens_per_s"] for row in pooled}),
        sample({row["repeat"]: 1 / row["window_step_s"] for row in pooled}),
    )


def _pool(case_id: str, repeats: list[Row], problems: list[str]) -> list[Row]:
    groups: dict[str, list[Row]] = {}
    for row in repeats:
        if row["status"] == "ok":
            groups.setdefault(row["fingerprint"], []).append(row)
    if not groups:
        return []
    largest = max(groups.values(), key=len)
    if len(groups) > 1:
        left = [
            str(row["repeat"]) for group in groups.values() for row in group if group is not largest
        ]
        kept = [str(row["repeat"]) for row in largest]
        keys = ", ".join(unlike(list(groups))) or "having an environment line"
        problems.append(
            f"{case_id}: repeats {', '.join(left)} ran on unlike systems and are not pooled; "
            f"used: {', '.join(kept)}; they differ in {keys}"
        )
    return largest


def _outcome(items: Sequence[PlannedRepeat], repeats: list[Row]) -> Row:
    counts = Counter(row["status"] for row in repeats)
    failed = [row for row in repeats if row["status"] not in ("ok", "pending")]
    other = failed or [row for row in repeats if row["status"] != "ok"]
    return {
        "case_id": items[0].case_id,
        "status": "ok" if counts["ok"] else other[0]["status"],
        "statuses": ", ".join(f"{status} x{num}" for status, num in counts.items()),
        "cause": _cause(other[0]) if other else "",
        "num_repeats_planned": len(repeats),
        "missing_ranks": "; ".join(
            f"repeat {row['repeat']}: {row['unfinished_ranks']}"
            for row in repeats
            if row.get("unfinished_ranks")
        ),
    }


def _cause(row: Row) -> str:
    """Where and why a repeat ended, in one line."""
    where = f"rank {row['rank']}" if row["rank"] is not None else ""
    where += f" on {row['host']}" if row["host"] else ""
    where += f" in {row['phase']}" if row["phase"] else ""
    why = " ".join(row["cause"].split())
    return ": ".join(part for part in (where.strip(), why) if part)


def _settings(case: Case, item: PlannedRepeat) -> Row:
    other = case.model_dump(mode="json", exclude_defaults=True, exclude=_NOT_OTHER)
    return {
        "strategy": case.strategy.name,
        "options": settings.options(case.strategy.options),
        "driver": case.driver,
        "model": case.model_name,
        "model_config": json.dumps(case.model, sort_keys=True),
        "regime": case.regime,
        "world_size": case.world.size,
        "nodes": case.world.nodes,
        "ranks_per_node": case.world.ranks_per_node,
        "mode": case.train.mode,
        "seq_len": case.train.seq_len,
        "micro_batch_size": case.train.micro_batch_size,
        "grad_accum": case.train.grad_accum,
        "global_batch_size": case.global_batch_size,
        "precision": case.train.precision,
        "other": json.dumps(settings.by_key(other), sort_keys=True),
        "device": item.device,
        "threads_per_rank": item.threads_per_rank,
        "estimated_memory_bytes": item.estimated_memory_bytes,
    }


def _needed(launches: Launches, precision: float) -> Row:
    """What it would take to know tokens_per_s within `precision`."""
    found = needed(launches.tokens_per_s, precision)
    return {
        "wanted_precision": precision,
        "launches_needed": found.launches,
        "steps_needed": found.steps,
    }


def _flops(case: Case, row: Row, built: int | None) -> Row:
    """Parameters and FLOPs of the model; MFU where the device's peak is known.

    No FLOPs without a closed form, or where it counts other parameters than were built.
    """
    try:
        shape = registry.model_config(case.model).shape()
    except (UserError, ValueError):  # a model of a newer or older version: no closed forms
        shape = None
    if shape is None or built not in (None, num_parameters(shape)):
        return {"num_parameters": built}
    per_token = flops_per_token(shape, case.train.seq_len, case.train.mode, DEFAULT_CONVENTION)
    found: Row = {
        "num_parameters": num_parameters(shape),
        "flops_per_token": per_token,
        "flop_convention": DEFAULT_CONVENTION,
    }
    peak = peak_flops(row["device_name"], case.train.precision) if row["device_name"] else None
    if peak is not None and "tokens_per_s" in row:
        found["mfu"] = mfu(row["tokens_per_s"], per_token, row["world_size"], peak.flops_per_s)
    return found
