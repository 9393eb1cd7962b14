"""What the commands do with a run: launch it, merge it, stop it.

Imports the stages where they are used, so that a status or a table costs no torch.
"""

from __future__ import annotations

import errno
import os
import shlex
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import typer

from andromeda_scale.commands import stopping
from andromeda_scale.contracts.planned import Plan
from andromeda_scale.errors import UserError
from andromeda_scale.launch.process import ignores
from andromeda_scale.launch.run_dir import RunDir
from andromeda_scale.metrics.formats import clean

if TYPE_CHECKING:
    from andromeda_scale.analysis.results import Results
    from andromeda_scale.launch.driver import Outcome

MEASURED, NOTHING_MEASURED = 0, 1
TEXTS = ("table.md", "table.csv", "fairness.csv")


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
    for line in _distortions(run, only_failed):
        _tell(f"problem: {line}")
    if not quiet:
        _tell(_to_launch(run, only_failed))
    outcome = refined(run, only_failed=only_failed, quiet=quiet)
    if outcome.error:
        _complain(outcome.error)
    with _deaf_to_hangup():
        measured = finish(run.path, quiet)
        if outcome.told is not None:
            _complain(stopping.said(outcome.told, run.path))
        elif not quiet and not only_failed and (again := _to_launch_again(run.path)):
            _tell(again)
    return outcome.exit_code or measured


def _distortions(run: RunDir, only_failed: bool) -> list[str]:
    """What variables of this shell would do to the numbers of what is about to be launched."""
    from andromeda_scale.hardware.distortion import distortions

    lines: dict[str, None] = {}
    for item in run.todo(only_failed=only_failed):
        if item.skip is None:
            asked = run.plan.cases[item.case_id].env
            lines |= dict.fromkeys(distortions(os.environ, item.device, asked))
    return list(lines)


def _to_launch(run: RunDir, only_failed: bool) -> str:
    """What a driver is about to do: its first agent imports for seconds."""
    todo = run.todo(only_failed=only_failed)
    items = [item for item in todo if item.skip is None]
    searches = sum(item.role == "search" for item in items)
    sizes = f"{searches} micro batch{'es' * (searches > 1)} to be found"
    what = sizes if searches else _launches(len(items))
    if skipped := len(todo) - len(items):
        what += f", {skipped} skipped,"
    return clean(f"{run.plan.suite_name}: {what} in {run.path}")


def _to_launch_again(run_dir: Path) -> str | None:
    """How to launch again what failed or is damaged since; None where nothing is."""
    roles = Counter(item.role for item in RunDir.open(run_dir).todo(only_failed=True))
    number = roles.total() - roles["reference"] - roles["parity"]
    if not number:
        return None
    again = f"{stopping.resume_of(run_dir)} --only failed"
    return f"{_launches(number)} failed or left a damaged record; launch again: {again}"


def _launches(number: int) -> str:
    return f"{number} launch{'es' * (number != 1)}"


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
    from andromeda_scale.analysis.results import FILES
    from andromeda_scale.commands import probing
    from andromeda_scale.commands.reporting import print_table

    if probing.is_probe(run_dir):
        return probing.finish(run_dir, quiet)
    results, full = tables(run_dir)
    measured = full is None and (results.cases["status"] == "ok").any()

    def show() -> None:
        print_table(results)
        if not quiet and measured:
            typer.echo(f"results: {run_dir}/{', '.join([*FILES.values(), *TEXTS])}")
            typer.echo(f"page: andromeda-scale report {shlex.quote(str(run_dir))} --format html")

    _while_open(sys.stdout, show)
    if full is not None:
        _complain(full)
    return MEASURED if measured else NOTHING_MEASURED


def tables(run_dir: Path) -> tuple[Results, str | None]:
    """(the results of a run merged and written beside its records, why nothing was written).

    Writes the FILES of analysis/results.py, and TEXTS.
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


def interrupt(run_dir: Path) -> int:
    """Tell the driver that holds a run on this machine to stop; its process id."""
    run = RunDir.open(run_dir)
    holder = run.holder()
    if holder is None:
        raise UserError(f"{run_dir}: nothing runs in it; there is nothing to stop")
    pid, host = holder
    if host != socket.gethostname():
        raise UserError(f"{run_dir}: is run by process {pid} on {host}; type this on {host}")
    # A notebook's kernel would die of SIGTERM outside a sweep; what a script starts in the
    # background ignores SIGINT.
    os.kill(pid, signal.SIGTERM if ignores(pid, signal.SIGINT) else signal.SIGINT)
    return pid


def _write_tables(results: Results, run_dir: Path) -> None:
    from andromeda_scale.launch.disk import write_atomic
    from andromeda_scale.merge import write

    write(results, run_dir)
    for name, text in texts(results).items():
        write_atomic(run_dir / name, text)


def texts(results: Results) -> dict[str, str]:
    """TEXTS: the tables that a run writes as text, by file."""
    from andromeda_scale.report.fairness import Fairness
    from andromeda_scale.report.scaling import scaling_table

    table = scaling_table(results)
    of_each = (table.to_markdown(), table.to_csv(), Fairness.of(results).to_csv())
    return dict(zip(TEXTS, of_each, strict=True))


def _complain(what: str) -> None:
    _tell(f"andromeda-scale: {what}")


def _tell(what: str) -> None:
    _while_open(sys.stderr, lambda: typer.echo(what, err=True))


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
