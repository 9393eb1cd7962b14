"""The command `probe`: plan, launch, write, keep, print. No torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import typer

from andromeda_scale import calibration, environment
from andromeda_scale.launch.run_dir import RunDir, write_atomic
from andromeda_scale.merge.probe import FILE, ceilings, probe_points
from andromeda_scale.plan_probe import make_probe
from andromeda_scale.planned import Plan
from andromeda_scale.references import Device
from andromeda_scale.report.probe import ProbeTable, probe_table, write_plot

PLOT = "probe.html"
SUITE_TEXT = "# a probe of the machine: its plan is plan.json\n"


def plan_here(worlds: str | None, device: str, *, quick: bool) -> Plan:
    """The plan of a probe of this machine, from what the command line gave."""
    from andromeda_scale.machine import detect_machine

    kinds: dict[str, Device | None] = {"auto": None, "cpu": "cpu", "cuda": "cuda"}
    asked = [text.strip() for text in worlds.split(",")] if worlds is not None else []
    return make_probe(asked, kinds[device], detect_machine(), quick=quick)


def finish(run_dir: Path, quiet: bool = False) -> int:
    """Write probe.parquet, table.md and probe.html beside the records, keep the ceilings, print.

    Status 0 when anything was measured.
    """
    run = RunDir.open(run_dir)
    points, problems = probe_points(run.path, run.plan)
    points.to_parquet(run.path / FILE, index=False)
    table = probe_table(points, problems)
    write_atomic(run.path / "table.md", table.to_markdown())
    write_plot(points, run.path / PLOT)
    _print(table)
    found = ceilings(points, run.path)
    if not found:
        return 1
    if not quiet:
        typer.echo(f"points: {run_dir}/{FILE}, table.md, {PLOT}")
    _keep(run, found, quiet)
    return 0


def print_table(run_dir: Path, form: str) -> None:
    """The table of a probe on stdout, or its points as CSV."""
    run = RunDir.open(run_dir)
    points, problems = probe_points(run.path, run.plan)
    table = probe_table(points, problems)
    if form == "terminal":
        _print(table)
    else:
        text = points.to_csv(index=False) if form == "csv" else table.to_markdown()
        typer.echo(text.rstrip("\n"))


def _keep(run: RunDir, found: dict[str, dict[str, Any]], quiet: bool) -> None:
    """Add the ceilings to those of this hardware; a world's newer ones replace its older ones."""
    hardware = json.loads((run.path / "fingerprint.json").read_bytes())
    here = environment.fingerprint(environment.collect())
    if calibration.path_of(hardware) != calibration.path_of(here):
        typer.echo("the probe is of other hardware than this: its ceilings are not kept", err=True)
        return
    known = calibration.load(hardware).get("ceilings", {})
    try:
        path = calibration.store(hardware, "ceilings", {**known, **found})
    except OSError as error:
        typer.echo(f"{calibration.directory()}: ceilings not kept: {error.strerror}", err=True)
        return
    if not quiet:
        typer.echo(f"kept for later runs on this hardware: {path}")


def _print(table: ProbeTable) -> None:
    from rich.console import Console

    from andromeda_scale.report.tables import as_text

    if sys.stdout.isatty():
        Console().print(table.to_rich())
    else:
        typer.echo(as_text(table.to_rich()).rstrip("\n"))
