"""Arguments and options that more than one command takes, each said once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from andromeda_scale.errors import UserError

if TYPE_CHECKING:
    from andromeda_scale.contracts.planned import Plan
    from andromeda_scale.planning.suite_file import Loaded


class Only(StrEnum):
    """What `--only` can select."""

    failed = "failed"


class Form(StrEnum):
    """How `compare` prints."""

    terminal = "terminal"
    md = "md"
    csv = "csv"
    latex = "latex"
    json = "json"


class Format(StrEnum):
    """How `report` prints: a run has a page too."""

    terminal = "terminal"
    md = "md"
    csv = "csv"
    latex = "latex"
    json = "json"
    html = "html"


class DeviceKind(StrEnum):
    """Where `probe` and `selftest` run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


SuiteName = Annotated[str, typer.Argument(metavar="SUITE", help="A shipped suite or a YAML file.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the suite."),
]
Axes = Annotated[
    list[str] | None,
    typer.Option("--axis", metavar="KEY=V1,V2", help="Sweep one key over these values."),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
New = Annotated[bool, typer.Option("--new", help="Start afresh, resume nothing.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, only the result.")]
AllowMixed = Annotated[
    bool,
    typer.Option("--allow-mixed", help="Go on although software or hardware has changed."),
]
Wait = Annotated[
    bool,
    typer.Option("--wait", help="Follow a submitted job to its table; exit with its outcome."),
]
OnlyFailed = Annotated[
    Only | None, typer.Option("--only", help="failed: run again what did not end ok.")
]
Device = Annotated[DeviceKind, typer.Option("--device", help="auto: GPUs where there are any.")]
HOW = typer.Option("--format", help="How to print it.")
Output = Annotated[
    Path | None, typer.Option("--output", help="A file to write, instead of stdout.")
]


def run_dir_option(default: str) -> Any:
    """`--run-dir` of a command that makes one, with what it is by default."""
    return typer.Option("--run-dir", help=f"Default: {default}", parser=_named, metavar="<path>")


def _named(text: str) -> Path:
    if not text:  # of a variable that is not set; a Path takes it for the current directory
        raise UserError("--run-dir '': names no directory; give a path, or leave out --run-dir")
    return Path(text)


def plan_of(suite: str, sets: list[str] | None, axes: list[str] | None) -> tuple[Plan, Loaded]:
    """The plan on this machine of a suite as the command line changes it, and what was read."""
    from andromeda_scale.hardware.machine import detect_machine
    from andromeda_scale.planning.plan import make_plan
    from andromeda_scale.planning.suite_file import read_suite

    loaded = read_suite(suite, sets or [], axes or [])
    return make_plan(loaded.suite, loaded.name, detect_machine(), loaded.where), loaded
