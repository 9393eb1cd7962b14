"""The command `compare`: run B against run A, and the gate that CI asks. No torch."""

from __future__ import annotations

from pathlib import Path

import typer

from andromeda_scale.errors import UserError
from andromeda_scale.suite.schema import share

PASSED, STOPPED = 0, 1


def compare(
    before: Path,
    after: Path,
    form: str,
    *,
    fail_on_regression: str | None = None,
    two_sided: bool = False,
    output: Path | None = None,
) -> int:
    """Print B against A; the exit status.

    Status 1 where a gate was asked and a case is slower by more than it allows, or has no speed
    any more; with `two_sided` faster ones count too. Raises UserError where the runs share no case
    that was measured in A, for then nothing was checked.
    """
    from andromeda_scale.analysis.changes import SAME, changes, improvements, regressions
    from andromeda_scale.commands.delivering import refuse_records
    from andromeda_scale.commands.nearest import nearest
    from andromeda_scale.commands.reporting import publish
    from andromeda_scale.merge import load_results
    from andromeda_scale.report.compare import compare_table

    tolerance = _tolerance(fail_on_regression)
    if two_sided and tolerance is None:
        raise UserError("--two-sided: gates nothing; add --fail-on-regression 2%")
    if output is not None:
        refuse_records(output, before, after)
    old, new = load_results(before), load_results(after)
    if before.samefile(after):
        typer.echo(f"{before} and {after} are the same run: it is held against itself", err=True)
    found = changes(old, new, tolerance or 0.0)
    if not any(one.word != "not measured" for one in found.matched):
        same = f"{len(found.matched)} of the same configuration have no speed in either run"
        why = same if found.matched else nearest(before, old, after, new)
        raise UserError(
            f"{before} and {after}: share no measured case: {why}; compare two runs of the same "
            "suite"
        )
    table = compare_table(old, new, found, tolerance or 0.0, max(tolerance or 0.0, SAME))
    publish(table, form, output)
    if tolerance is None:
        return PASSED
    stopped = regressions(found) + (improvements(found) if two_sided else [])
    return STOPPED if stopped else PASSED


def _tolerance(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(share(text))
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise UserError(
            f"--fail-on-regression: {text!r} is no share; write 2% or 0.02, from 0 to below 1"
        )
    return value
