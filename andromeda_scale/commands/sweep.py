"""What the commands do with a run: launch it, merge it, say how far it is.

Imports the stages where they are used, so that a status or a table costs no torch.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import socket
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer

from andromeda_scale.contracts.planned import Plan
from andromeda_scale.errors import UserError
from andromeda_scale.launch.run_dir import FAILED, RunDir
from andromeda_scale.metrics.formats import clean
from andromeda_scale.planning.table import duration

if TYPE_CHECKING:
    from andromeda_scale.analysis.results import Results
    from andromeda_scale.launch.driver import Outcome

MEASURED, NOTHING_MEASURED = 0, 1


def start(run_dir: Path, plan: Plan, suite_text: str, *, allow_mixed: bool = False) -> RunDir:
    """Make or take up the run directory of a plan."""
    from andromeda_scale.hardware import environment

    found = environment.fingerprint(environment.collect())
    run = RunDir.create(run_dir, plan, suite_text, found, allow_mixed=allow_mixed)
    for note in run.plan.notes[len(plan.notes) :]:
        typer.echo(f"note: {note}", err=True)
    for problem in run.plan.problems:
        typer.echo(f"problem: {problem}", err=True)
    return run


def reopen(run_dir: Path, *, allow_mixed: bool = False) -> RunDir:
    """An existing run, refused on other software or hardware."""
    from andromeda_scale.hardware import environment

    run = RunDir.open(run_dir)
    found = environment.fingerprint(environment.collect())
    run.check_fingerprint(found, allow_mixed=allow_mixed)
    try:
        run.calibrate(found)
    except OSError as error:
        raise UserError(
            f"{run.path}: cannot be written ({error.strerror}); make room there, or make it "
            f"writable; `andromeda-scale report {run.path}` shows what it holds"
        ) from None
    return run


def execute(run: RunDir, *, only_failed: bool = False, quiet: bool = False) -> int:
    """Launch what is left, merge, print; the exit status."""
    outcome = refined(run, only_failed=only_failed, quiet=quiet)
    if outcome.error:
        _complain(outcome.error)
    with _deaf_to_hangup():
        measured = finish(run.path, quiet)
    return outcome.exit_code or measured


def refined(run: RunDir, *, only_failed: bool = False, quiet: bool = False) -> Outcome:
    """Launch what is left of the plan, then what `measure.precision` asks for beyond it."""
    from andromeda_scale.commands import refining
    from andromeda_scale.launch import driver

    outcome = driver.run(run, only_failed=only_failed, quiet=quiet)
    while outcome.exit_code == 0 and (more := refining.extend(run)) is not None:
        run = more
        outcome = driver.run(run, quiet=quiet)
    return outcome


def finish(run_dir: Path, quiet: bool = False) -> int:
    """Merge a run, write its tables beside its records, print the table; the exit status.

    Status 0 when a case was measured, 1 when none was: failed cases are rows, but a table without
    a number is no result. A full disk is status 1 too, with the table printed.
    """
    from andromeda_scale.commands import probing
    from andromeda_scale.commands.reporting import print_table

    if probing.is_probe(run_dir):
        return probing.finish(run_dir, quiet)
    results, full = tables(run_dir)

    def show() -> None:
        print_table(results)
        if not quiet and full is None:
            files = "results.parquet, ranks.parquet, table.md, table.csv, fairness.csv"
            typer.echo(f"results: {run_dir}/{files}")
            typer.echo(f"page: andromeda-scale report {shlex.quote(str(run_dir))} --format html")

    _while_open(sys.stdout, show)
    if full is not None:
        _complain(full)
    measured = full is None and (results.cases["status"] == "ok").any()
    return MEASURED if measured else NOTHING_MEASURED


def tables(run_dir: Path) -> tuple[Results, str | None]:
    """(the results of a run merged and written beside its records, why nothing was written).

    Writes results.parquet, ranks.parquet, table.md, table.csv, fairness.csv.
    """
    from andromeda_scale.launch.disk import full_disk, is_full
    from andromeda_scale.merge import merge_run

    results = merge_run(run_dir)
    try:
        _write_tables(results, run_dir)
    except OSError as error:
        if not is_full(error):
            raise
        return results, full_disk(run_dir, error)
    return results, None


def progress(run_dir: Path, *, planned: bool = True) -> Iterator[str]:
    """Lines that say how far a run is; of one that need not be `planned` yet, none before."""
    if not planned and not (run_dir / "plan.json").exists():
        return
    run = RunDir.open(run_dir)
    items = [(item, word) for item, word in run.statuses() if item.skip is None]
    counts = Counter(word for _, word in items)
    running = _running(run)
    done = len(items) - counts["pending"] - counts["interrupted"]
    yield f"{run.plan.suite_name}: {done} of {len(items)} launches ended"
    yield ", ".join(f"{n} {word}" for word, n in sorted(counts.items()))
    for item, word in items:
        if word in FAILED:
            cause = (run.status(item) or {}).get("cause") or "no cause recorded"
            yield clean(f"{word}: {item.case_id} repeat {item.repeat}: {cause}")
    of_running = "running" if run.holder() else "left unfinished, its driver is gone"
    yield from (f"{of_running}: {name}" for name in running)
    times = [
        s for item, word in items if word == "ok" if (s := _seconds(run.status(item))) is not None
    ]
    left = len(items) - done
    if left and times:
        yield f"time left: about {duration(left * statistics.median(times))}"
    elif left:
        yield "time left: not known before the first launch has ended"


def interrupt(run_dir: Path) -> int:
    """Tell the driver that holds a run on this machine to stop; its process id."""
    run = RunDir.open(run_dir)
    holder = run.holder()
    if holder is None:
        raise UserError(f"{run_dir}: nothing runs in it; there is nothing to stop")
    pid, host = holder
    if host != socket.gethostname():
        raise UserError(f"{run_dir}: is run by process {pid} on {host}; type this on {host}")
    os.kill(pid, signal.SIGINT)
    return pid


def earlier_seconds(plan: Plan, parent: Path) -> dict[str, list[float]]:
    """By case id, what launches of this plan's cases took that ended ok in runs under `parent` on
    hardware like this."""
    from andromeda_scale.hardware import environment

    here = environment.fingerprint(environment.collect())
    found: dict[str, list[float]] = {}
    for file in parent.glob("*/fingerprint.json"):
        measured_on = _json(file)
        if any(measured_on.get(key) != here[key] for key in environment.HARDWARE):
            continue
        for ended in _found(file.parent, "*/*/*/status.json"):
            case_id, status = ended.parent.parent.name, _json(ended)
            if ended.parents[2].name == "searches":
                continue
            seconds = _seconds(status)
            if case_id in plan.cases and status.get("status") == "ok" and seconds is not None:
                found.setdefault(case_id, []).append(seconds)
    return found


def _json(file: Path) -> dict[str, Any]:
    """An object from a file, empty where there is none to be read."""
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _running(run: RunDir) -> list[str]:
    return [path.name for path in _found(run.path, "running/*") if path.is_dir()]


def _found(run_dir: Path, pattern: str) -> list[Path]:
    """Paths of a run that may be going on, whose directories move while they are listed."""
    while True:
        try:
            return sorted(run_dir.glob(pattern))
        except FileNotFoundError:
            continue


def _seconds(status: Mapping[str, Any] | None) -> float | None:
    """What a launch took, of its status.json."""
    seconds: Any = (status or {}).get("seconds")
    return float(seconds) if type(seconds) in (int, float) and 0 <= seconds < 1e9 else None


def _write_tables(results: Results, run_dir: Path) -> None:
    from andromeda_scale.launch.disk import write_atomic
    from andromeda_scale.merge import write

    write(results, run_dir)
    for name, text in texts(results).items():
        write_atomic(run_dir / name, text)


def texts(results: Results) -> dict[str, str]:
    """The tables that a run writes as text, by file."""
    from andromeda_scale.report.fairness import Fairness
    from andromeda_scale.report.scaling import scaling_table

    table = scaling_table(results)
    return {
        "table.md": table.to_markdown(),
        "table.csv": table.to_csv(),
        "fairness.csv": Fairness.of(results).to_csv(),
    }


def _complain(what: str) -> None:
    _while_open(sys.stderr, lambda: typer.echo(f"andromeda-scale: {what}", err=True))


def _while_open(stream: TextIO, show: Callable[[], None]) -> None:
    """Print to a standard stream; who closed it does not want to see it."""
    from andromeda_scale.launch.progress import mute

    try:
        show()
        stream.flush()
    except SystemExit:  # rich's answer to a broken pipe
        mute(stream)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
        mute(stream)


@contextmanager
def _deaf_to_hangup() -> Iterator[None]:
    """A terminal that closes does not keep the tables from being written."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
