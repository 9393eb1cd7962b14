"""The tables of memory, energy and phase times: a row a case. No torch."""

from __future__ import annotations

from andromeda_scale.analysis.results import Results
from andromeda_scale.metrics import METRICS
from andromeda_scale.metrics.formats import NOT_MEASURED, percent
from andromeda_scale.report import device_notes
from andromeda_scale.report.columns import COLUMNS, Column, metric
from andromeda_scale.report.notes import what_rows_are
from andromeda_scale.report.rows import Row, arrange, has
from andromeda_scale.report.tables import Table, identity


def _largest(row: Row) -> str:
    rank = f" r{row['peak_allocated_rank']}" if has(row, "peak_allocated_rank") else ""
    return metric("peak_allocated_bytes")(row) + rank


def _estimate(row: Row) -> str:
    if not has(row, "estimated_memory_bytes"):
        return NOT_MEASURED
    error = f" ({row['estimate_error']:+.0%})" if has(row, "estimate_error") else ""
    return METRICS["peak_allocated_bytes"].text(row["estimated_memory_bytes"]) + error


def _column(header: str, name: str) -> Column:
    return Column(header, (name,), metric(name))


_CASE = tuple(column for column in COLUMNS if column.header in ("world", "status"))
_MEMORY = (
    _column("states", "state_bytes"),
    _column("comm buffers", "communication_buffers_bytes"),
    _column("activations", "activation_bytes"),
    Column("peak", ("peak_allocated_bytes", "peak_allocated_rank"), _largest),
    Column("estimate", ("estimated_memory_bytes", "estimate_error"), _estimate),
    _column("forward peak", "peak_forward_bytes"),
    _column("backward peak", "peak_backward_bytes"),
    _column("update peak", "peak_update_bytes"),
)
_RESERVED = (
    _column("reserved peak", "peak_reserved_bytes"),
    _column("outside allocator", "outside_allocator_bytes"),
)
_HOST = (
    _column("host resident", "peak_rss_bytes"),
    _column("host own", "uss_bytes"),
)
_BESIDE = (
    *(_column(name, name) for name in ("start_memory_bytes", "peak_setup_bytes", "rss_bytes")),
    *(_column(name, name) for name in ("alloc_retries", "alloc_ooms")),
    Column("pressure", ("memory_pressure",), lambda row: str(row["memory_pressure"])),
)


def memory_table(results: Results) -> Table:
    """What the fullest rank of every case held: states, buffers, activations, peaks, estimate."""
    rows, axes = arrange(results.cases)
    on_device = any(has(row, "peak_reserved_bytes") for row in rows)
    shown = (*_MEMORY, *(_RESERVED if on_device else ()), *_HOST)
    notes = [
        "bytes that torch's allocator held for one rank, each the largest of any rank (rN: whose "
        "peak it is), so that they need not add up where ranks differ",
        "states: parameters, gradients, master copies, optimizer state, read between backward and "
        "update; comm buffers: what communication holds beside them; activations: the rest of the "
        "peak",
        "host: resident memory of the process at its most in the timed window, and what would be "
        "freed if it alone ended",
    ]
    notes = [*what_rows_are(rows, axes), *notes, *device_notes.memory_pressure(rows, axes)]
    columns = (*identity(axes), *_CASE, *shown)
    dispensable = tuple(column.header for column in reversed((*_MEMORY[4:], *_RESERVED, *_HOST)))
    beside = (*_RESERVED, *_BESIDE)
    title = "Memory of a rank"
    return Table(title, columns, rows, notes, beside=beside, dispensable=dispensable)


_ENERGY = (
    _column("J/token", "joules_per_token"),
    _column("joules", "energy_j"),
    _column("watts", "power_w"),
    _column("watts each", "power_per_device_w"),
    _column("idle watts", "idle_power_w"),
    _column("tokens/s", "tokens_per_s"),
)


def energy_table(results: Results) -> Table:
    """What a token costs in joules, and the power behind it."""
    rows, axes = arrange(results.cases)
    notes = [*what_rows_are(rows, axes), *device_notes.energy(rows, axes)]
    if not any(has(row, "energy_j") or has(row, "energy_unavailable") for row in rows):
        notes.append("no case collects energy: add it to collect")
    beside = (_column("unavailable", "energy_unavailable"), _column("short", "energy_short"))
    return Table("Energy", (*identity(axes), *_CASE, *_ENERGY), rows, notes, beside=beside)


def _residual(row: Row) -> str:
    if not has(row, "residual_s"):
        return NOT_MEASURED
    return f"{metric('residual_s')(row)} ({percent(device_notes.residual_share(row))})"


_PHASES = (
    _column("step ms", "profile_step_s"),
    _column("forward ms", "forward_s"),
    _column("backward ms", "backward_s"),
    _column("optimizer ms", "optimizer_s"),
    _column("data ms", "data_part_s"),
    Column("residual ms", ("residual_s",), _residual),
    _column("skew ms", "end_skew_s"),
    _column("profiled", "profile_slowdown"),
)


def phases_table(results: Results) -> Table:
    """Where the program spends a step: forward, backward, optimizer, data, and the rest."""
    rows, axes = arrange(results.cases)
    notes = [
        "means over ranks and profiled steps, communication included where it happens; a part that "
        "cannot be timed apart or that the mode lacks is empty",
        "residual: what of a step is in none of its parts; skew: from the end of a rank's step to "
        "the end of the longest; profiled: how many times as long as a timed step",
    ]
    notes = [*what_rows_are(rows, axes), *notes, *device_notes.untimed(rows, axes)]
    return Table("Parts of a step", (*identity(axes), *_CASE, *_PHASES), rows, notes)
