"""The command `report`: a run's table in any form, or its page. No torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import typer

from andromeda_scale.commands.delivering import deliver, refuse_records
from andromeda_scale.errors import UserError

PAGE = "report.html"  # in a run directory

if TYPE_CHECKING:
    from rich.console import RenderableType

    from andromeda_scale.analysis.results import Results


class Shown(Protocol):
    """What can be written in every form but a page."""

    def to_rich(self) -> RenderableType: ...
    def to_markdown(self) -> str: ...
    def to_csv(self) -> str: ...
    def to_latex(self) -> str: ...
    def to_json(self) -> str: ...


def report(
    run_dir: Path,
    form: str,
    name: str = "scaling",
    *,
    fairness: bool = False,
    output: Path | None = None,
) -> None:
    """Write a run's table `name` to stdout or `output`; `fairness`: with, or in other forms than a
    terminal's instead, every difference between the rows compared. The page, `html`, has all
    tables and goes to report.html in the run unless `output` names another file."""
    if output is not None:
        refuse_records(output, run_dir)
    if form == "html":
        _write_page(run_dir, output)
        return
    from andromeda_scale.commands import probing
    from andromeda_scale.report.catalogue import make_table
    from andromeda_scale.report.fairness import Fairness
    from andromeda_scale.report.probe import probe_table

    if probing.is_probe(run_dir):
        publish(probe_table(*probing.read_points(run_dir)), form, output)
        return
    results = _load(run_dir)
    if form == "terminal" and output is None:
        print_table(results, name, fairness=fairness)
    else:
        shown: Shown = Fairness.of(results) if fairness else make_table(results, name)
        publish(shown, form, output)
    _say_stale(run_dir, results)


def publish(shown: Shown, form: str, output: Path | None) -> None:
    """Write it to stdout or `output`; a terminal gets it at its own width."""
    if form == "terminal" and output is None:
        show(shown.to_rich())
    else:
        deliver(_text(shown, form), output)


def _write_page(run_dir: Path, output: Path | None) -> None:
    from andromeda_scale.commands import probing
    from andromeda_scale.hardware import calibration
    from andromeda_scale.report.html import make_page
    from andromeda_scale.report.probe import plot

    is_probe = probing.is_probe(run_dir)
    path = output or run_dir / (probing.PLOT if is_probe else PAGE)
    refuse_records(path, run_dir)
    if is_probe:
        deliver(plot(probing.read_points(run_dir)[0]), path)
    else:
        known = calibration.read(run_dir / calibration.FILE)
        results = _load(run_dir)
        deliver(make_page(results, _suite(run_dir), known.get("ceilings")), path)
        _say_stale(run_dir, results)
    typer.echo(f"page: {path}")


def _load(run_dir: Path) -> Results:
    """The results of a run, with whether it has ended."""
    from andromeda_scale.commands.standing import standing
    from andromeda_scale.merge import load_results

    said = standing(run_dir)
    return replace(load_results(run_dir), standing=said)


def _say_stale(run_dir: Path, results: Results) -> None:
    from andromeda_scale.commands.standing import stale

    if said := stale(run_dir, results):
        typer.echo(f"andromeda-scale: {said}", err=True)


def export(run_dir: Path, to: str) -> None:
    """Send a run's results to a tracker, and say where they are."""
    from andromeda_scale.commands import probing
    from andromeda_scale.merge import load_results
    from andromeda_scale.report import exports

    if probing.is_probe(run_dir):
        raise UserError(f"{run_dir}: is a probe; --to exports the cases of a run")
    typer.echo(exports.export(load_results(run_dir), to, run_dir))


def _suite(run_dir: Path) -> str | None:
    """The suite a run was made from, where it was copied along."""
    try:
        return (run_dir / "suite.yaml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def print_table(results: Results, name: str = "scaling", *, fairness: bool = False) -> None:
    """A table of a run on stdout, and every difference between its rows where asked."""
    from rich.console import Group

    from andromeda_scale.report.catalogue import make_table
    from andromeda_scale.report.fairness import Fairness

    full = [Fairness.of(results).to_rich_in_full()] if fairness else []
    show(Group(make_table(results, name).to_rich(), *full))


def show(shown: RenderableType) -> None:
    """Print at the width of the terminal; without colours where stdout is none."""
    from rich.console import Console

    from andromeda_scale.report.tables import as_text

    if sys.stdout.isatty():
        Console().print(shown)
    else:
        typer.echo(as_text(shown).rstrip("\n"))


def _text(shown: Shown, form: str) -> str:
    from andromeda_scale.report.tables import as_text

    forms: dict[str, Callable[[], str]] = {
        "terminal": lambda: as_text(shown.to_rich()),
        "md": shown.to_markdown,
        "csv": shown.to_csv,
        "latex": shown.to_latex,
        "json": shown.to_json,
    }
    if form not in forms:
        raise UserError(f"--format {form}: a run has a page, this has none; use {', '.join(forms)}")
    return forms[form]()
