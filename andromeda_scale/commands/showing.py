"""Commands that show what was measured."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from andromeda_scale.commands.options import HOW, Form, Format, Output, RunPath
from andromeda_scale.errors import UserError


class Tracker(StrEnum):
    """Where `report` can send results."""

    tensorboard = "tensorboard"
    mlflow = "mlflow"
    wandb = "wandb"


class Shown(StrEnum):
    """The tables that `report` can print."""

    scaling = "scaling"
    breakdown = "breakdown"
    communication = "communication"
    memory = "memory"
    phases = "phases"
    energy = "energy"
    laws = "laws"


def report(
    run_dir: RunPath,
    table: Annotated[
        Shown | None, typer.Option("--table", help="Which table of the run. Default: scaling.")
    ] = None,
    format_: Annotated[Format, HOW] = Format.terminal,
    fairness: Annotated[
        bool, typer.Option("--fairness", help="Show every difference between the rows compared.")
    ] = False,
    output: Output = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Draw the table again as repeats of a run end.")
    ] = False,
    to: Annotated[
        Tracker | None, typer.Option("--to", help="Send the results there instead.")
    ] = None,
) -> None:
    """Merge a run's records again and print one of its tables, or write its page.

    Needs the files alone. html: every table and figure in one file, report.html in RUN.
    """
    from andromeda_scale.commands import reporting

    if follow and (to or output or fairness or format_ is not Format.terminal):
        raise UserError("--follow: draws a table on the terminal; leave the other options out")
    if to and (table or output or fairness or format_ is not Format.terminal):
        raise UserError(f"--to {to.value}: sends every number; leave the other options out")
    if table is not None and format_ is Format.html:
        raise UserError(
            f"--table {table.value}: the page has every table; leave it out, or use --format "
            "md, csv, latex or json"
        )
    name = (table or Shown.scaling).value
    if follow:
        from andromeda_scale.commands.following import follow as follow_run

        follow_run(run_dir, name)
        return
    if to is not None:
        reporting.export(run_dir, to.value)
        return
    reporting.report(run_dir, format_.value, name, fairness=fairness, output=output)


def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="The run to hold against.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="The run to judge.")],
    fail_on_regression: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Status 1 where a case is slower by more: 2%."),
    ] = None,
    two_sided: Annotated[
        bool, typer.Option("--two-sided", help="Status 1 where one is faster by more, too.")
    ] = False,
    format_: Annotated[Form, HOW] = Form.terminal,
    output: Output = None,
) -> None:
    """Say what changed between two runs of the same cases, and which became slower or faster.

    Only differences beyond chance count, over all cases together; what noise hides is said.
    """
    from andromeda_scale.commands import comparing

    status = comparing.compare(
        before,
        after,
        format_.value,
        fail_on_regression=fail_on_regression,
        two_sided=two_sided,
        output=output,
    )
    raise typer.Exit(status)
