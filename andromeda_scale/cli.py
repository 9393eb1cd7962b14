"""The console script: the commands of `commands/` under one name, and how a mistake ends.

Exit status: 0 the command did what it says; 1 it could not finish, or a sweep measured nothing;
2 a mistake in what was given, before anything started; 130 interrupted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from andromeda_scale.commands import looking, running, showing
from andromeda_scale.errors import UserError


class _Commands(TyperGroup):
    """Turns a user's mistake into one paragraph and status 2, and Ctrl-C into 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            typer.echo(f"andromeda-scale: {error}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("andromeda-scale: interrupted", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Distributed scaling benchmarks for training transformers: one YAML file to a table.",
)

for command in (
    running.run,
    running.resume,
    running.submit,
    running.cancel,
    looking.plan,
    running.status,
    showing.report,
    showing.compare,
    looking.list_,
    looking.init,
    looking.schema,
    running.probe,
    looking.selftest,
    looking.doctor,
):
    app.command(command.__name__.rstrip("_"))(command)


def finish(run_dir: Path, quiet: bool = False) -> int:
    """Merge, write and print a run; for agents that an outer launcher started."""
    from andromeda_scale.commands import sweep

    return sweep.finish(run_dir, quiet)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
