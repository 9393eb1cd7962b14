"""Footnotes on memory, phases, energy and the state of the devices. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from andromeda_scale.metrics.devices import ENERGY_SECONDS, ENERGY_STEPS, NEARLY_FULL
from andromeda_scale.metrics.formats import percent
from andromeda_scale.report.rows import Row, case_name, has

MAX_RESIDUAL = 0.02  # of a profiled step in none of its parts


def of_rows(rows: Sequence[Row], axes: Sequence[str]) -> list[str]:
    """What a reader of any number must know: memory that ran short, clocks held down, time that no
    part accounts for."""
    return [
        *memory_pressure(rows, axes),
        *throttled(rows, axes),
        *untimed(rows, axes),
        *energy(rows, axes),
    ]


def memory_pressure(rows: Sequence[Row], axes: Sequence[str]) -> list[str]:
    found = _said(rows, axes, "memory_pressure")
    return found and [
        f"memory nearly full (over {NEARLY_FULL:.0%} of the device reserved, or allocations "
        "retried: such a step waits for its allocator, so less memory a rank may be faster): "
        + "; ".join(found)
    ]


def throttled(rows: Sequence[Row], axes: Sequence[str]) -> list[str]:
    found = _said(rows, axes, "throttled")
    return found and [f"throttled within the timed window: {'; '.join(found)}"]


def untimed(rows: Sequence[Row], axes: Sequence[str]) -> list[str]:
    found = [
        f"{case_name(row, axes)}: {percent(share)}"
        for row in rows
        if (share := residual_share(row)) > MAX_RESIDUAL
    ]
    return found and [
        f"over {MAX_RESIDUAL:.0%} of the profiled step lie in none of its parts, forward, "
        f"backward, optimizer and data: {'; '.join(found)}"
    ]


def energy(rows: Sequence[Row], axes: Sequence[str]) -> list[str]:
    """What was counted, and what there is no number of, or none to rely on."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if has(row, "energy_unavailable"):
            reasons.setdefault(row["energy_unavailable"], []).append(case_name(row, axes))
    notes = [f"energy unavailable: {'; '.join(who)}: {why}" for why, who in reasons.items()]
    if short := _said(rows, axes, "energy_short"):
        notes.append(
            f"energy of windows under {ENERGY_STEPS} steps or {ENERGY_SECONDS:.0f} s, too short to "
            f"rely on: {'; '.join(short)}"
        )
    if any(has(row, "energy_j") for row in rows):
        notes.append(
            "energy: counters of the ranks' GPUs over the timed window, on CPUs of the nodes' "
            "whole packages; idle: the same devices before the run's first rank was started"
        )
    return notes


def residual_share(row: Row) -> float:
    """Of the mean rank's profiled step; 0 where it is not known."""
    if not has(row, "residual_s") or not has(row, "profile_step_s"):
        return 0.0
    step_s = row["profile_step_s"] - row["end_skew_s"]
    return float(row["residual_s"] / step_s) if step_s > 0 else 0.0


def _said(rows: Sequence[Row], axes: Sequence[str], name: str) -> list[str]:
    """Rows with a text in a column, and the text."""
    return [f"{case_name(row, axes)}: {row[name]}" for row in rows if has(row, name)]
