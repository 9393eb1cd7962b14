"""The console script: the commands of `commands/` under one name, and how a mistake ends.

Exit status: 0 the command did what it says; 1 it could not finish, or a sweep measured nothing;
2 a mistake in what was given, before anything started; 130 interrupted.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from andromeda_scale.commands import looking, running, showing
from andromeda_scale.errors import UserError
from andromeda_scale.metrics.formats import clean


class _Commands(TyperGroup):
    """Turns a user's mistake into one paragraph and status 2, and Ctrl-C into 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            _say("\n".join(map(clean, str(error).splitlines())))
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            _say("interrupted")
            raise typer.Exit(130) from None


def _say(text: str) -> None:
    typer.echo(f"andromeda-scale: {text}", err=True)


class _StdoutError(OSError):
    """Stdout takes no more: its disk is full."""


class _Stdout(io.FileIO):
    """Stdout whose errors are told from those of other files; after the first it takes all."""

    failed = False

    def write(self, data: Any, /) -> int:
        try:
            return len(data) if self.failed else super().write(data)
        except BrokenPipeError:
            raise  # who reads `| head` has enough
        except OSError as error:
            self.failed = True
            raise _StdoutError(error.errno, error.strerror) from None


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
    if sys.stdout is None:  # another file that is opened would be taken for it
        sys.exit("andromeda-scale: stdout is closed; send it to /dev/null to see nothing")
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Stdout(sys.stdout.fileno(), "w", closefd=False)),
        encoding=sys.stdout.encoding,
        errors=sys.stdout.errors,
        line_buffering=sys.stdout.isatty(),
    )
    try:
        app()
    except _StdoutError as error:
        _say(f"stdout cannot be written ({error.strerror}); send it elsewhere")
        sys.exit(1)


if __name__ == "__main__":
    main()
