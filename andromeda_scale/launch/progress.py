"""How a sweep is going, on a terminal or in a log. No torch."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Protocol, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from andromeda_scale.launch.messages import Event
from andromeda_scale.launch.time_left import UNKNOWN, estimate


class Display(Protocol):
    """Shows the events of a sweep."""

    def show(self, event: Event) -> None: ...

    def close(self) -> None: ...


class Quiet:
    """Shows nothing."""

    def show(self, event: Event) -> None:
        pass

    def close(self) -> None:
        pass


class TimeLeft:
    """How far a sweep is, and what is left of it by the launches of its kinds that ended ok."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self._left: Counter[str] = Counter()
        self._took: dict[str, list[float]] = {}

    def take(self, event: Event) -> None:
        if event["event"] == "sweep":
            self.total, self.done = event["total"], event["done"]
            self._left = Counter(event["left"])
        elif event["event"] == "end":
            self.done += 1
            self._left = self._left - Counter([event["kind"]])  # none of a kind is below zero
            if event["status"] == "ok":
                self._took.setdefault(event["kind"], []).append(event["seconds"])

    def __str__(self) -> str:
        left = estimate(self._left, self._took)
        if left.total and not left.told:
            return f"time left {UNKNOWN}"
        minutes, seconds = divmod(round(left.seconds), 60)
        return f"{minutes}:{seconds:02d} left{left.of_all}"


class Lines:
    """A line a repeat on stderr, for logs and pipes."""

    def __init__(self) -> None:
        self._left = TimeLeft()

    def show(self, event: Event) -> None:
        self._left.take(event)
        if event["event"] == "end":
            count = f"[{self._left.done}/{self._left.total}]"
            print(count, describe_end(event), str(self._left), file=sys.stderr, flush=True)
        elif event["event"] == "trial":
            print(describe_end(event), file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


class Bar:
    """A progress bar with case, phase, tokens/s and time left; failures stay above it."""

    def __init__(self, console: Console) -> None:
        self._left = TimeLeft()
        self._progress = Progress(
            TextColumn("{task.fields[case]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[doing]}"),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, case="", doing="", left="")
        self._progress.start()

    def show(self, event: Event) -> None:
        self._left.take(event)
        update = self._progress.update
        update(self._task, total=self._left.total, completed=self._left.done, left=str(self._left))
        if event["event"] == "start":
            case = escape(f"{event['case_id']} #{event['repeat']}")
            update(self._task, case=case, doing="starting")
        elif event["event"] == "beat":
            update(self._task, doing=describe_beat(event))
        elif event["event"] == "trial":
            update(self._task, doing=f"micro batch {event['repeat']}: {event['status']}")
        elif event["event"] == "end" and event["status"] not in ("ok", "skipped"):
            self._progress.console.print(escape(describe_end(event)), style="red")

    def close(self) -> None:
        self._progress.stop()


class Cell:
    """One line of a notebook's cell, replaced as the sweep goes on; failures stay above it."""

    PERIOD_S = 0.5  # between two updates that only say how far a launch is

    def __init__(self) -> None:
        self._left = TimeLeft()
        self._output = import_module("IPython.display").display({}, raw=True, display_id=True)
        self._failures: list[str] = []
        self._shown_s = 0.0

    def show(self, event: Event) -> None:
        self._left.take(event)
        now_s = time.monotonic()
        if event["event"] == "end" and event["status"] not in ("ok", "skipped"):
            self._failures.append(describe_end(event))
        elif event["event"] == "beat" and now_s < self._shown_s + self.PERIOD_S:
            return
        self._shown_s = now_s
        doing = describe_beat(event) if event["event"] == "beat" else ""
        name = f"{event['case_id']} #{event['repeat']}" if event["event"] != "sweep" else ""
        count = f"[{self._left.done}/{self._left.total}]"
        self._show(" ".join(part for part in (count, name, doing, str(self._left)) if part))

    def close(self) -> None:
        self._show(f"[{self._left.done}/{self._left.total}]")

    def _show(self, line: str) -> None:
        self._output.update({"text/plain": "\n".join([*self._failures, line])}, raw=True)


class UntilClosed:
    """Another display until the terminal or pipe it writes to is closed, then nothing."""

    def __init__(self, display: Display) -> None:
        self._display = display

    def show(self, event: Event) -> None:
        self._try(lambda: self._display.show(event))

    def close(self) -> None:
        self._try(self._display.close)

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except (OSError, SystemExit):  # rich turns a broken pipe into an exit
            mute(sys.stderr)
            with suppress(OSError, SystemExit):  # the reader is gone
                self._display.close()  # ends a bar's thread
            self._display = Quiet()


def mute(stream: TextIO) -> None:
    """Let a standard stream whose reader is gone lead nowhere."""
    with suppress(OSError):  # no descriptor left: it stays as it is
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def describe_beat(event: Event) -> str:
    """`measure 12/50  8,192 tokens/s`."""
    steps = f" {event['step']}/{event['total_steps']}" if event["total_steps"] else ""
    rate = event["tokens_per_s"]
    return f"{event['phase']}{steps}" + (f"  {rate:,.0f} tokens/s" if rate else "")


def describe_end(event: Event) -> str:
    """`case #0 crashed (rank 1 on host): killed by SIGSEGV  3.1 s`."""
    who = f" (rank {event['rank']} on {event['host']})" if event["rank"] is not None else ""
    cause = f": {event['cause']}" if event["cause"] else ""
    role = "" if event["role"] == "measure" else f" {event['role']}"
    name = f"{event['case_id']} #{event['repeat']}{role}"
    return f"{name} {event['status']}{who}{cause}  {event['seconds']:.1f} s"


def make_display(*, quiet: bool) -> Display:
    """A bar on a terminal, a line in a notebook, lines elsewhere, nothing with `quiet`."""
    if quiet:
        return Quiet()
    if _in_notebook():
        return Cell()
    console = Console(stderr=True)
    return UntilClosed(Bar(console) if console.is_terminal else Lines())


def _in_notebook() -> bool:
    """Whether this process is a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return hasattr(shell, "kernel")
