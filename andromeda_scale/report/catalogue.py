"""The tables of a run by name: `report RUN --table NAME`, `Run.table(NAME)`. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from andromeda_scale.analysis.results import Results
from andromeda_scale.errors import UserError
from andromeda_scale.report.breakdown import breakdown_table
from andromeda_scale.report.communication import communication_table
from andromeda_scale.report.device_tables import energy_table, memory_table, phases_table
from andromeda_scale.report.laws import laws_table
from andromeda_scale.report.scaling import scaling_table
from andromeda_scale.report.tables import Table

# A new table is one line here, and its name in `Shown` of commands/showing.py and `Table` of
# api.py, which import no table to name it.
TABLES: dict[str, Callable[[Results], Table]] = {
    "scaling": scaling_table,
    "breakdown": breakdown_table,
    "communication": communication_table,
    "memory": memory_table,
    "phases": phases_table,
    "energy": energy_table,
    "laws": laws_table,
}


def make_table(results: Results, name: str = "scaling") -> Table:
    """One of TABLES. Raises UserError for another name."""
    if name not in TABLES:
        raise UserError(f"{name!r} is no table; use one of {', '.join(TABLES)}")
    return replace(TABLES[name](results), standing=results.standing)
