"""`andromeda-scale selftest`: plants known truths, and says what the instruments found of them.

Two runs: one without faults, from which this machine's null floors and a delay that can be found
here follow; then every row of `rows` with that delay, unplanted launches among them.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import psutil
import typer

from andromeda_scale.commands import sweep
from andromeda_scale.contracts.planned import Plan, PlannedRepeat
from andromeda_scale.errors import UserError
from andromeda_scale.hardware import calibration, environment
from andromeda_scale.hardware.machine import Machine, detect_machine
from andromeda_scale.launch import driver
from andromeda_scale.launch.run_dir import fresh
from andromeda_scale.planning.expand import set_key
from andromeda_scale.planning.plan import make_plan
from andromeda_scale.planning.suite_file import mapping_suite
from andromeda_scale.selftest.evidence import (
    FAIL,
    UNAVAILABLE,
    Finding,
    Launch,
    launches,
    milliseconds,
)
from andromeda_scale.selftest.place import NULL, Null, Place, Row
from andromeda_scale.selftest.rows import base, rows
from andromeda_scale.suite import safe_yaml
from andromeda_scale.suite.config import Case
from andromeda_scale.suite.schema import Device

MAX_RANKS_ON_CPU = 8
DONE, FAILED, INTERRUPTED = 0, 1, 130
MAX_OTHERS = 0.05  # of the cores, beside which nothing fails
TABLE = "selftest.md"
RECORD = "selftest.parquet"  # a row a finding


class Stopped(Exception):
    """A run did not come to its end; `code` is the exit status."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


def run(
    device: Literal["auto", Device], path: Path | None = None, *, quick: bool, quiet: bool
) -> int:
    """Plant, measure, print planted against found; 0 only if nothing failed.

    `path`: a directory to make; one of its name and "-null" holds what was found of nothing.
    """
    place = choose(detect_machine(), device)
    path = path or fresh("selftest")
    nothing = path.with_name(f"{path.name}-null")
    for made in (path, nothing):
        if made.exists():
            raise UserError(f"--run-dir {path}: {made} exists, and a selftest starts afresh; "
                            "give another name")  # fmt: skip
    others = Others()
    try:
        null = _nulls(place, nothing, 3 if quick else 6, quiet)
        findings = _planted(place, rows(place, null, quick), path, quiet)
    except Stopped as stopped:
        typer.echo(f"andromeda-scale: {stopped}", err=True)
        return stopped.code
    share = others.share()
    findings = [_excused(one, null, share) for one in findings]
    table = f"{place.world} ranks on {place.device}, {path}\n\n{to_table(findings)}"
    if share > MAX_OTHERS:
        table += f"other programs had {share:.0%} of the cores: the floors are of a busy machine\n"
    (path / TABLE).write_text(table, encoding="utf-8")
    pd.DataFrame([asdict(one) for one in findings]).to_parquet(path / RECORD, index=False)
    typer.echo(table, nl=False)
    return FAILED if any(one.failed for one in findings) else DONE


class Others:
    """How much of the cores went to programs that are not of this process, from now on."""

    def __init__(self) -> None:
        self._before = self._seconds()

    def share(self) -> float:
        """Of the time of all cores that this process may use, 0 to 1."""
        total, busy, ours = np.subtract(self._seconds(), self._before)
        return float(np.clip((busy - ours) / total, 0.0, 1.0)) if total > 0 else 0.0

    @staticmethod
    def _seconds() -> tuple[float, float, float]:
        """(all, busy, ours): of ended descendants too, the ranks among them."""
        cores = psutil.cpu_times(percpu=True)
        times = [cores[core] for core in psutil.Process().cpu_affinity() or range(len(cores))]
        total = sum(sum(one[:8]) for one in times)  # guests are counted in user already
        idle = sum(one.idle + getattr(one, "iowait", 0.0) for one in times)
        return total, total - idle, sum(os.times()[:4])


def _excused(finding: Finding, null: Null, others: float) -> Finding:
    """What fails while other programs compute decides nothing."""
    if not (finding.failed and finding.timed and others > MAX_OTHERS):
        return finding
    said = f"null {milliseconds(null.late_s)}, other programs had {others:.0%} of the cores"
    return replace(finding, verdict=f"{UNAVAILABLE}: too noisy ({said})")


def choose(machine: Machine, device: Literal["auto", Device]) -> Place:
    """The largest world in which every rank has a GPU, or a core, of its own."""
    if device == "cuda" and not machine.gpus:
        raise UserError("--device cuda: no GPU can be used here; use --device cpu")
    if device == "cuda" or (device == "auto" and machine.gpus):
        return Place("cuda", len(machine.gpus))
    return Place("cpu", min(machine.cpu_cores, MAX_RANKS_ON_CPU))


def _nulls(place: Place, path: Path, number: int, quiet: bool) -> Null:
    """What is found where nothing is planted; blame's floor is stored for later runs."""
    row = Row(NULL, {NULL: {}}, number, lambda _: [])
    found, ended = _launch(place, [row], path, quiet)
    if ended:
        raise Stopped(FAILED, f"{path}: launches without faults failed: {ended[NULL][0]}")
    waits = [one.waiting(place.late) for one in found[NULL]] if place.world > 1 else [0.0]
    null = Null.of(found[NULL], waits)
    if place.world > 1:
        hardware = environment.fingerprint(environment.collect())
        floors = calibration.load(hardware).get("floors", {})
        entry = {f"{place.device}/{place.world}": {"blame_s": null.late_s}}
        calibration.store(hardware, "floors", {**floors, **entry})
    return null


def _planted(place: Place, planted: Sequence[Row], path: Path, quiet: bool) -> list[Finding]:
    """Every row's findings, in order."""
    launched = [row for row in planted if NULL in row.cases or not row.unavailable]
    found, ended = _launch(place, launched, path, quiet)
    findings = []
    for row in planted:
        failures = [why for name in (*row.cases, NULL) for why in ended.get(name, ())]
        if row.unavailable:
            findings.append(Finding(row.planted, "", "", "", "", row.unavailable))
        elif failures:
            verdict = f"{FAIL}: a launch ended as {failures[0]}"
            findings.append(Finding(row.planted, "", "", "", "", verdict))
        else:
            findings += row.judge(found)
    return findings


def _launch(
    place: Place, planted: Sequence[Row], path: Path, quiet: bool
) -> tuple[dict[str, list[Launch]], dict[str, list[str]]]:
    """Run the rows' cases: launches by the name of the case, and how those ended that failed."""
    plan, cases, text = make(place, planted)
    started = sweep.start(path, plan, text)
    outcome = driver.run(started, quiet=quiet)
    if outcome.interrupted:
        raise Stopped(INTERRUPTED, f"{path}: interrupted")
    results, full = sweep.tables(path)
    if error := outcome.error or full:
        raise Stopped(FAILED, error)
    found, ended = {}, {}
    for name, case in cases.items():
        found[name], failures = launches(results, case.case_id)
        if failures or not found[name]:
            ended[name] = failures or ["nothing"]
    return found, ended


def make(place: Place, planted: Sequence[Row]) -> tuple[Plan, dict[str, Case], str]:
    """(the launches of all rows, the case of each name, the suites they came from).

    In turns, there and back again, so that what drifts meets all rows alike.
    """
    suites: dict[str, dict[str, Any]] = {}
    cases: dict[str, Case] = {}
    items: list[PlannedRepeat] = []
    for row in planted:
        for name, changes in row.cases.items():
            suites[name] = suite = _changed(base(place), changes, row.num_launches)
            made = make_plan(mapping_suite(suite).suite, "selftest", detect_machine())
            (case,) = made.cases.values()
            cases[name] = case
            items += made.repeats
    order = {case.case_id: number for number, case in enumerate(cases.values())}

    def turn(item: PlannedRepeat) -> tuple[int, int]:
        number = order[item.case_id]
        return item.repeat, -number if item.repeat % 2 else number

    plan = Plan(
        suite_name="selftest",
        question=str(base(place)["question"]),
        cases={case.case_id: case for case in cases.values()},
        repeats=tuple(sorted(items, key=turn)),
    )
    return plan, cases, safe_yaml.dump(suites)


def _changed(suite: Mapping[str, Any], changes: Mapping[str, Any], repeats: int) -> dict[str, Any]:
    raw = copy.deepcopy(dict(suite))
    for key, value in {**changes, "measure.repeats": repeats}.items():
        set_key(raw, key, value)
    return raw


def read_findings(file: Path) -> list[Finding]:
    """What a selftest found, from its RECORD."""
    return [Finding(*row) for row in pd.read_parquet(file).itertuples(index=False, name=None)]


def to_table(findings: Sequence[Finding]) -> str:
    """Markdown: a line a finding, what is planted named once."""
    from tabulate import tabulate

    lines, before = [], ""
    for one in findings:
        planted = "" if one.planted == before else one.planted
        lines.append([planted, one.claim, one.expected, one.found, one.within, one.verdict])
        before = one.planted
    counts = [
        sum(one.verdict.startswith(x) for one in findings) for x in ("pass", FAIL, UNAVAILABLE)
    ]
    head = ["planted", "claim", "expected", "found", "within", "verdict"]
    text = tabulate(lines, headers=head, tablefmt="github", disable_numparse=True)
    return f"{text}\n\n{counts[0]} passed, {counts[1]} failed, {counts[2]} unavailable\n"
