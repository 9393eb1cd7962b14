"""The command `probe`: plan, launch, write, keep, print. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import typer

from andromeda_scale.commands.reporting import show
from andromeda_scale.contracts.planned import Plan
from andromeda_scale.hardware import calibration, environment
from andromeda_scale.launch.disk import write_atomic
from andromeda_scale.launch.run_dir import RunDir
from andromeda_scale.merge.probe import FILE, ceilings, probe_points
from andromeda_scale.planning import probe as plan_probe
from andromeda_scale.report.probe import plot, probe_table
from andromeda_scale.suite import paths
from andromeda_scale.suite.schema import Device

PLOT = "probe.html"
SUITE_TEXT = "# a probe of the machine: its plan is plan.json\n"


def plan_here(worlds: str | None, device: str, *, quick: bool) -> Plan:
    """The plan of a probe of this machine, from what the command line gave."""
    from andromeda_scale.hardware.machine import detect_machine

    kinds: dict[str, Device | None] = {"auto": None, "cpu": "cpu", "cuda": "cuda"}
    asked = [text.strip() for text in worlds.split(",")] if worlds is not None else []
    return plan_probe.make_probe(asked, kinds[device], detect_machine(), quick=quick)


def finish(run_dir: Path, quiet: bool = False) -> int:
    """Write probe.parquet, table.md and probe.html beside the records, keep the ceilings, print.

    Status 0 when anything was measured.
    """
    run = RunDir.open(run_dir)
    points, problems = read_points(run_dir)
    points.to_parquet(run.path / FILE, index=False)
    table = probe_table(points, problems)
    write_atomic(run.path / "table.md", table.to_markdown())
    write_atomic(run.path / PLOT, plot(points))
    show(table.to_rich())
    found = ceilings(points, run.path)
    if not found:
        return 1
    if not quiet:
        typer.echo(f"points: {run_dir}/{FILE}, table.md, {PLOT}")
    _keep(run, found, quiet)
    return 0


def is_probe(run_dir: Path) -> bool:
    """Whether a run probed the machine: then it has points and no cases."""
    return paths.exists(run_dir / "plan.json") and plan_probe.is_probe(RunDir.open(run_dir).plan)


def read_points(run_dir: Path) -> tuple[pd.DataFrame, list[str]]:
    """The points of a probe, and what of its records was not used."""
    run = RunDir.open(run_dir)
    return probe_points(run.path, run.plan)


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
