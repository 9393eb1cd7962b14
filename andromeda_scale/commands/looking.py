"""Commands that say what there is: in a suite, in the package, on this machine."""

from __future__ import annotations

import textwrap
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from andromeda_scale.commands.options import (
    Axes,
    Device,
    DeviceKind,
    Quiet,
    Sets,
    SuiteName,
    plan_of,
    run_dir_option,
)

_NAMES_WIDTH = 300  # characters of one kind's names; of metrics there are many more


class Kind(StrEnum):
    """What `list` can list."""

    models = "models"
    suites = "suites"
    strategies = "strategies"
    collectors = "collectors"
    metrics = "metrics"


def plan(suite: SuiteName, set_: Sets = None, axis: Axes = None) -> None:
    """Show what would run, what is skipped and why, memory and launches; starts nothing."""
    from andromeda_scale.commands.how_far import earlier_seconds
    from andromeda_scale.launch.run_dir import RUNS
    from andromeda_scale.planning.table import print_plan

    planned, _ = plan_of(suite, set_, axis)
    print_plan(planned, earlier_seconds(planned, RUNS))


def list_(
    kind: Annotated[
        Kind | None, typer.Argument(help="What to list. Default: the names of all.")
    ] = None,
) -> None:
    """List what is there, one line each."""
    from andromeda_scale.planning.catalogue import entries

    if kind is None:
        for each in Kind:
            names = ", ".join(name for name, _ in entries(each.value))
            typer.echo(f"{each.value}: {textwrap.shorten(names, _NAMES_WIDTH, placeholder=' ...')}")
        typer.echo(f"what each is: andromeda-scale list {'|'.join(Kind)}")
        return
    rows = entries(kind.value)
    width = max(len(name) for name, _ in rows)
    for name, meaning in rows:
        typer.echo(f"{name:<{width}}  {meaning}".rstrip())


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the copies go.")],
) -> None:
    """Copy the shipped suites, models, launch scripts and SLURM templates, for editing."""
    from andromeda_scale.suite.resources import copy_to

    number = len(copy_to(folder))
    typer.echo(f"{number} files; andromeda-scale run {folder}/suites/quickstart.yaml")


def schema() -> None:
    """Print the JSON schema of a suite file, for editors."""
    import json

    from andromeda_scale.planning.suite_schema import suite_schema

    typer.echo(json.dumps(suite_schema(), indent=2))


def selftest(
    device: Device = DeviceKind.auto,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer launches of each row.")] = False,
    run_dir: Annotated[Path | None, run_dir_option("runs/selftest-DATE-TIME.")] = None,
    quiet: Quiet = False,
) -> None:
    """Plant known truths here and print them beside what the instruments found of them.

    Status 0: nothing failed; what this machine's noise cannot decide is unavailable. It stores
    the machine's null floors, below which no later run blames a rank.
    """
    from andromeda_scale import selftest as made

    raise typer.Exit(made.run(device.value, run_dir, quick=quick, quiet=quiet))


def doctor() -> None:
    """Check what works here, and the command that mends what does not.

    Status 1: the quickstart would not run.
    """
    from andromeda_scale.commands.doctor import examine
    from andromeda_scale.launch.run_dir import RUNS

    broken = False
    for check in examine(RUNS):
        broken |= check.needed and not check.ok
        mark = "ok  " if check.ok else "FAIL" if check.needed else "lack"
        typer.echo(f"{mark}  {check.name}: {check.detail}")
        if not check.ok:
            typer.echo(f"      {check.remedy}")
    raise typer.Exit(1 if broken else 0)
