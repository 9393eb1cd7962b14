"""What a command that a signal stopped says last: which signal, how far it is, how to go on."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path
from types import FrameType, TracebackType

import typer

from andromeda_scale.errors import UserError
from andromeda_scale.launch.process import StopRequest

INTERRUPTED = 130
_SENDERS = {
    signal.SIGINT: " (Ctrl-C or `andromeda-scale cancel`)",
    signal.SIGTERM: " (`andromeda-scale cancel` or kill)",
    signal.SIGHUP: " (hangup)",
}


class Stoppable:
    """Within it a signal that asks to stop ends the command with one line and status 130.

    While launches are under way their driver hears the signals itself, and ends them in order. What
    takes time is imported within it: a second passes before anything is planned.
    """

    def __init__(self) -> None:
        self.run_dir: Path | None = None  # as soon as it is known

    def __enter__(self) -> Stoppable:
        heard = [s for s in StopRequest.SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
        self._before = {s: signal.signal(s, _raise) for s in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if isinstance(error, KeyboardInterrupt):
            number = error.args[0] if error.args else signal.SIGINT
            typer.echo(f"andromeda-scale: {said(number, self.run_dir)}", err=True)
            raise typer.Exit(INTERRUPTED) from None


def said(number: int, run_dir: Path | None) -> str:
    """That a signal stopped a command, how many launches have ended, and how to go on."""
    name = signal.Signals(number)
    told = f"interrupted: told to stop by {name.name}{_SENDERS.get(name, '')}"
    from andromeda_scale.launch.run_dir import NOT_ENDED, RunDir

    try:
        run = RunDir.open(run_dir) if run_dir is not None else None
    except UserError:
        run = None
    if run is None:
        return f"{told} before there was a run; give the command again"
    words = [word for item, word in run.statuses() if item.skip is None]
    done = sum(word not in NOT_ENDED for word in words)
    return f"{told}; {done} of {len(words)} launches have ended; go on with: {resume_of(run.path)}"


def resume_of(run_dir: Path) -> str:
    """The command that goes on with a run."""
    return f"andromeda-scale resume {shlex.quote(str(run_dir))}"


def _raise(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)
