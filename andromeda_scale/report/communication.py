"""The table of a run's collectives: bytes, times, and what the fabric reached alone. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from andromeda_scale.analysis.results import Results
from andromeda_scale.metrics import METRICS
from andromeda_scale.metrics.formats import NOT_MEASURED, binary, milliseconds, significant
from andromeda_scale.report.columns import COLUMNS as SCALING
from andromeda_scale.report.columns import Column, metric
from andromeda_scale.report.rows import Row, arrange, has, label
from andromeda_scale.report.tables import Table, identity


def communication_table(results: Results) -> Table:
    """A row a case and kind of collective, the most wire bytes first.

    Single numbers, and collectives of one rank, which send nothing, are in communication.parquet.
    """
    cases, axes = arrange(results.cases)
    kinds: dict[str, list[dict[str, Any]]] = {}
    for kind in results.communication.to_dict("records"):
        if not kind["scalar"] and kind["group_size"] > 1:
            kinds.setdefault(kind["case_id"], []).append({str(k): v for k, v in kind.items()})
    rows = [{**case, **kind} for case in cases for kind in kinds.get(case["case_id"], [])]
    world = next(column for column in SCALING if column.header == "world")
    columns = (*identity(axes), world, *_COLUMNS)
    return Table("Communication of a profiled step, by rank", columns, rows, _notes(rows, cases))


def _number(name: str, text: Any) -> Any:
    return lambda row: text(row[name]) if has(row, name) else NOT_MEASURED


def _exposed(row: Row) -> str:
    if not has(row, "exposed_s_per_step"):
        return NOT_MEASURED
    parts = (milliseconds(row[f"{name}_s_per_step"]) for name in ("exposed", "exposed_wait"))
    return "{} ({})".format(*parts)


_COLUMNS = (
    Column("collective", ("op", "backend_op"), lambda row: str(row["op"]), left=True),
    Column("dtype", ("dtype",), lambda row: str(row["dtype"]), left=True),
    Column("ranks", ("group_size", "group_nodes"), lambda row: str(row["group_size"])),
    Column("calls /step", ("count_per_step",), _number("count_per_step", significant)),
    Column("bytes /call", ("bytes_per_call", "bytes_per_step"), _number("bytes_per_call", binary)),
    Column("wire /step", ("wire_bytes_per_step",), _number("wire_bytes_per_step", binary)),
    Column(
        "transfer ms",
        ("transfer_s_per_step", "total_s_per_step"),
        _number("transfer_s_per_step", milliseconds),
    ),
    Column(
        "exposed (wait) ms",
        ("exposed_s_per_step", "exposed_wait_s_per_step", "overlapped_s_per_step"),
        _exposed,
    ),
    Column("busbw GB/s", ("busbw_gbps",), metric("busbw_gbps")),
    Column("probe GB/s", ("busbw_probe_gbps", "busbw_cause"), metric("busbw_probe_gbps")),
    Column("share", ("busbw_share",), metric("busbw_share")),
)


def _notes(rows: Sequence[Row], cases: Sequence[Row]) -> list[str]:
    if not rows:
        measured = any(case["status"] == "ok" for case in cases)
        why = "no case has profiled collectives (collect: [communication], more than one rank)"
        return [why if measured else "no case was measured"]
    notes = [f"busbw: {METRICS['busbw_gbps'].meaning}"]
    counted = "; ".join(
        f"{label(case)} at world {case['world_size']}: "
        f"{case['comm_tcp_bytes'] / case['comm_wire_bytes'] - 1:+.2%}"
        for case in cases
        if has(case, "comm_tcp_bytes") and case["comm_wire_bytes"] > 0
    )
    if counted:
        notes.append(f"kernel's count on a rank's TCP connections against wire bytes: {counted}")
    if any(has(row, "busbw_probe_gbps") for row in rows):
        notes.append(f"probe: {METRICS['busbw_probe_gbps'].meaning}")
    reasons: dict[str, dict[str, None]] = {}
    for row in rows:
        if has(row, "busbw_cause"):
            who = f"{row['op']} of {label(row)} at world {row['world_size']}"
            reasons.setdefault(row["busbw_cause"], {})[who] = None
    for why, named in reasons.items():
        notes.append(why if len(reasons) == 1 else f"{'; '.join(named)}: {why}")
    return notes
