"""The scaling table: what a run answers, a row a case. No torch."""

from __future__ import annotations

from andromeda_scale.analysis.results import Results
from andromeda_scale.report.breakdown import reasons_table
from andromeda_scale.report.columns import (
    AGAINST_BASE,
    COLUMNS,
    COMPILE,
    COMPILED,
    FABRIC,
    JOULES,
    MAMF,
    MFU,
    SEARCHED,
    TOKENS,
    UNFAIR,
)
from andromeda_scale.report.fairness import Fairness
from andromeda_scale.report.notes import footnotes
from andromeda_scale.report.rows import arrange, has, has_base
from andromeda_scale.report.tables import Table, identity
from andromeda_scale.report.verdict import verdict


def scaling_table(results: Results) -> Table:
    """The table of a run: a row a case, grouped by what was varied, smaller worlds first."""
    rows, axes = arrange(results.cases)
    columns = identity(axes)
    compared = any(has_base(row) for row in rows)
    compiled = any(has(row, name) for row in rows for name in COMPILE)
    left_out = () if compared else AGAINST_BASE
    left_out = left_out if compiled else (*left_out, COMPILED)
    if not any(has(row, name) for row in rows for name in SEARCHED.names[1:]):
        left_out = (*left_out, SEARCHED)
    columns += [column for column in COLUMNS if column not in left_out]
    fairness = Fairness.of(results)
    if marks := fairness.marks():
        for row in rows:
            row["unfair"] = marks.get(row["case_id"], "")
        columns.insert(columns.index(TOKENS), UNFAIR)
    known = (MFU, MAMF, JOULES)
    columns += [column for column in known if any(has(row, column.names[0]) for row in rows)]
    notes = footnotes(rows, axes)
    reasons = reasons_table(rows, axes)
    beside = (*COLUMNS, MAMF, FABRIC, JOULES)
    said = tuple(verdict(results))
    return Table(
        results.question,
        tuple(columns),
        rows,
        notes,
        fairness,
        beside,
        reasons,
        verdict=said,
        problems=tuple(results.problems),
    )
