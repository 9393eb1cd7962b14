"""`report --follow`: the table of a run that is going on, drawn again as repeats end. No torch.

On a terminal the table stays in place; elsewhere each change is a line, and the table comes last.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import typer

from andromeda_scale.commands.reporting import print_table
from andromeda_scale.launch import lock
from andromeda_scale.launch.run_dir import NOT_ENDED, RunDir
from andromeda_scale.merge import merge_run
from andromeda_scale.report.catalogue import make_table
from andromeda_scale.report.tables import Table

LOOK_S = 1.0
_SHARE = 0.2  # of the time, at most, is spent merging: this machine may be the one that is measured


def follow(run_dir: Path, name: str = "scaling") -> None:
    """Show a run's table until every launch has ended, or nobody runs it any more."""
    run = RunDir.open(run_dir)
    if sys.stdout.isatty():
        _in_place(run, name)
    else:
        for ended in _changes(run):
            typer.echo(_said(run, ended))
        print_table(merge_run(run.path), name)
    if left := _left(_ended(run)):
        typer.echo(
            f"{left} launches have not ended and nobody runs them: "
            f"andromeda-scale resume {run_dir}", err=True,
        )  # fmt: skip


def _in_place(run: RunDir, name: str) -> None:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    console = Console()
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        table: Table | None = None
        for ended in _changes(run):
            start = time.monotonic()
            table = make_table(merge_run(run.path), name)
            live.update(Group(table.to_rich(), Text(_said(run, ended))), refresh=True)
            if _left(ended):
                time.sleep((time.monotonic() - start) * (1 / _SHARE - 1))
        live.update(Text(""))
    if table is not None:
        console.print(table.to_rich())  # whole, where the screen had no room for it


def _changes(run: RunDir) -> Iterator[Counter[str]]:
    """How many launches ended how, at first and whenever that changes, until nothing will."""
    shown: Counter[str] | None = None
    while True:
        # Before the files: who ends a launch and leaves is seen to have ended it.
        held = lock.is_held(run.path)
        ended = _ended(run)
        if ended != shown:
            yield ended
            shown = ended
        if not held or not _left(ended):
            return
        time.sleep(LOOK_S)


def _ended(run: RunDir) -> Counter[str]:
    return Counter(word for item, word in run.statuses() if item.skip is None)


def _left(ended: Counter[str]) -> int:
    return sum(ended[word] for word in NOT_ENDED)


def _said(run: RunDir, ended: Counter[str]) -> str:
    total = ended.total()
    done = total - _left(ended)
    words = ", ".join(f"{number} {word}" for word, number in sorted(ended.items()))
    return f"{run.plan.suite_name}: {done} of {total} launches ended ({words})"
