"""Where the time of a step goes, and what each class costs of an efficiency. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import isnan
from typing import Any

from andromeda_scale.analysis.breakdown import FACTORS, IN_A_STEP, REASONS
from andromeda_scale.analysis.results import Results
from andromeda_scale.metrics.formats import NOT_MEASURED, milliseconds, significant
from andromeda_scale.report.columns import WORLD, Column, metric
from andromeda_scale.report.rows import Row, arrange, has, interval_of, is_base
from andromeda_scale.report.tables import Table, identity

REASONS_TITLE = (
    "Where the percents go: efficiency of the profiled steps = data x host x transfer x "
    "serialisation x balance x compute"
)
_HEADERS = {
    "data_eff": "= data",
    "host_eff": "x host",
    "transfer_eff": "x transfer",
    "serialisation_eff": "x serialisation",
    "load_balance": "x balance",
}
REASONS_NOTES = (
    "data, host, transfer: 1 - the part of a step that every rank spends so; serialisation: what "
    "of the rest the rank that computes longest in a step computes; balance: mean / max of "
    "compute over ranks; each over that of the base, +- half its 95 % interval. compute: compute "
    "per token of the base / that of the row. Above 1: less is lost than at the base",
    "slowed: how many times as long profiled steps are as timed ones; where profiled and measured "
    "efficiency differ, the profiler costs one world more than the other",
)
ADDITIVE_NOTES = (
    "means over ranks and steps in ms: compute (of which in the update) + transfer + wait + data + "
    "host + skew = step; +-: half of the 95 % t interval over launches; transfer, wait: "
    "communication that no compute hides, after and before the last rank has come; skew: from the "
    "end of a rank's step to the end of the longest",
)


def reasons_table(rows: Sequence[Row], axes: Sequence[str]) -> Table | None:
    """The rows that have a base, each efficiency beside the factors that make it; None without."""
    shown = [dict(row) for row in rows if has(row, "explained_efficiency") and not is_base(row)]
    if not shown:
        return None
    columns = [
        *identity(axes),
        WORLD,
        Column("measured %", ("efficiency",), _percent("efficiency")),
        Column(
            "profiled %",
            (*_bounded("explained_efficiency"), *_bounded("profile_efficiency")),
            _percent("explained_efficiency"),
        ),
        *(
            Column(
                _HEADERS[name],
                (*_bounded(f"{name}_vs_base"), *_bounded(name)),
                _factor(f"{name}_vs_base"),
            )
            for name in FACTORS
        ),
        Column("x compute", _bounded("compute_scaling"), _factor("compute_scaling")),
        Column("slowed", ("profile_slowdown",), metric("profile_slowdown")),
    ]
    return Table(REASONS_TITLE, tuple(columns), shown, list(REASONS_NOTES))


def breakdown_table(results: Results) -> Table:
    """Seconds by class of every profiled row, and under it what they cost of an efficiency."""
    rows, axes = arrange(results.cases)
    shown: list[dict[str, Any]] = [row for row in rows if has(row, "profile_step_s")]
    columns = [
        *identity(axes),
        WORLD,
        Column("step ms", _bounded("profile_step_s"), metric("profile_step_s")),
        Column(
            "compute (update)",
            (*_bounded("compute_s"), *_bounded("optimizer_compute_s")),
            _compute,
        ),
        *(
            Column(f"+ {header}", _bounded(name), _within(name))
            for name, header in (
                ("exposed_transfer_s", "transfer"),
                ("exposed_wait_s", "wait"),
                ("data_s", "data"),
                ("host_s", "host"),
                ("end_skew_s", "skew"),
            )
        ),
        Column("slowed", ("profile_slowdown",), metric("profile_slowdown")),
    ]
    beside = (
        Column("", _all_bounded(f"{name[:-2]}_share" for name in IN_A_STEP), str),
        Column("", ("efficiency", *_all_bounded((*REASONS, *FACTORS))), str),
        Column("", _all_bounded(("comm_total_s", "comm_exposed_s", "comm_overlapped_s")), str),
    )
    notes = list(ADDITIVE_NOTES) if shown else ["no profiled steps: measure.profile_steps is 0"]
    title = f"Where the time goes: {results.question}"
    under = reasons_table(rows, axes)
    return Table(title, tuple(columns), shown, notes, None, beside, under)


def _bounded(name: str) -> tuple[str, str, str]:
    return name, f"{name}_low", f"{name}_high"


def _all_bounded(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(column for name in names for column in _bounded(name))


def _within(name: str) -> Callable[[Row], str]:
    """Milliseconds, with half of the interval over launches where there is one."""

    def text(row: Row) -> str:
        _, low, high = _bounded(name)
        if not has(row, low) or not has(row, name):
            return metric(name)(row)
        half = significant((row[high] - row[low]) / 2 * 1e3, 2)
        return f"{milliseconds(row[name])} +-{half}"

    return text


def _percent(name: str) -> Callable[[Row], str]:
    return lambda row: f"{row[name] * 100:.1f}" if has(row, name) else NOT_MEASURED


def _factor(name: str) -> Callable[[Row], str]:
    """A factor, with half of its interval over launches where there is one."""

    def text(row: Row) -> str:
        if not has(row, name):
            return NOT_MEASURED
        interval = interval_of(row, name)
        half = "" if isnan(interval.low) else f"+-{(interval.high - interval.low) / 2:.2f}"
        return f"{interval.centre:.3f}{half}"

    return text


def _compute(row: Row) -> str:
    whole = _within("compute_s")(row)
    if not has(row, "optimizer_compute_s"):
        return whole
    return f"{whole} ({milliseconds(row['optimizer_compute_s'])})"
