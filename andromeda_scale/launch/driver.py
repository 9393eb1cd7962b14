"""The driver: locks the run, starts one agent, shows its progress, ends it in order. No torch."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from andromeda_scale.contracts.planned import PlannedRepeat
from andromeda_scale.launch.disk import full_disk, is_full
from andromeda_scale.launch.lost import close_lost
from andromeda_scale.launch.messages import Event
from andromeda_scale.launch.process import StopRequest
from andromeda_scale.launch.progress import Display, make_display
from andromeda_scale.launch.ranks import tail
from andromeda_scale.launch.run_dir import RunDir
from andromeda_scale.launch.verdict import signal_name

AGENT_LOG = "agent.log"
MAX_NEW_AGENTS = 3  # in a sweep, after ones that were killed
_DEFAULT_WORKER = "andromeda_scale.worker:main"


@dataclass(frozen=True)
class Outcome:
    """How a sweep ended: statuses of the whole plan, and why the agent stopped early if it did."""

    statuses: Mapping[str, int]
    told: int | None = None  # the signal by which it was told to stop
    error: str | None = None  # the agent itself failed

    @property
    def interrupted(self) -> bool:
        return self.told is not None

    @property
    def exit_code(self) -> int:
        """0: the plan was gone through (failed cases are rows); 130: interrupted; 1: broken."""
        return 130 if self.interrupted else 1 if self.error else 0


def run(
    run_dir: RunDir,
    *,
    only_failed: bool = False,
    quiet: bool = False,
    worker: str = _DEFAULT_WORKER,
) -> Outcome:
    """Launch what is left of the plan on this machine and return when all of it ended.

    Ctrl-C (or SIGTERM, SIGHUP) closes the current repeat as interrupted; a second one kills.
    Should this process be killed itself, the agent and every rank die with it. `worker` is for
    tests. Raises UserError if another driver holds the run.
    """
    error, told = None, None
    try:
        with run_dir.lock() as lock:
            run_dir.recover()
            run_dir.settle()
            items = run_dir.todo(only_failed=only_failed)
            while items and error is None and told is None:
                error, told = _sweep(run_dir, items, worker, lock, quiet)
                items = run_dir.after_searches()
    except OSError as failure:
        if not is_full(failure):
            raise
        error = full_disk(run_dir.path, failure)
    counts = Counter(status for _, status in run_dir.statuses())
    return Outcome(counts, told=told, error=error)


def _sweep(
    run_dir: RunDir, items: Sequence[PlannedRepeat], worker: str, lock: int, quiet: bool
) -> tuple[str | None, int | None]:
    """Launch the items; (why the agent stopped early, the signal by which the user asked for it).

    An agent that is killed costs the repeat it was in: another one goes on with the rest.
    """
    display, stop = make_display(quiet=quiet), StopRequest()
    try:
        for _ in range(1 + MAX_NEW_AGENTS):
            with _Agent(run_dir, items, worker, lock, stop) as agent:
                told = agent.follow(display)
            code = agent.exit_code
            # An agent that was told before it could listen dies of the signal.
            if not code or code == 130 or told:
                return agent.error, (stop.signal or signal.SIGINT) if code else None
            if code > 0:
                return agent.error or _last_words(run_dir.path / AGENT_LOG, code), None
            cause = f"the agent was killed by {signal_name(code)}"
            items = items[agent.num_ended :]
            end = close_lost(run_dir, items[0], cause) if items else None
            if end is not None:
                display.show(end)
                items = items[1:]
            if not items:
                return None, None
        return f"{cause}, as were {MAX_NEW_AGENTS} before it; {len(items)} launches are left", None
    finally:
        stop.close()
        display.close()


class _Agent:
    """The agent's process, seen by the driver."""

    def __init__(
        self,
        run_dir: RunDir,
        items: Sequence[PlannedRepeat],
        worker: str,
        lock: int,
        stop: StopRequest,
    ) -> None:
        cases = run_dir.plan.cases
        launched = [cases[i.case_id].world for i in items if i.skip is None]
        slots = max((w.ranks_per_node for w in launched if w.nodes == 1), default=1)
        self._stop = stop
        self._read, write = os.pipe()
        arguments = ["--run-dir", str(run_dir.path), "--ranks-per-agent", str(slots)]
        arguments += ["--worker", worker, "--driver", str(os.getpid()), "--events", str(write)]
        place = {id(item): index for index, item in enumerate(run_dir.plan.repeats)}
        with tempfile.TemporaryFile() as wanted, open(run_dir.path / AGENT_LOG, "ab") as log:
            wanted.write(json.dumps([place[id(item)] for item in items]).encode())
            wanted.seek(0)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "andromeda_scale.agent", *arguments],
                stdin=wanted,
                stdout=log,
                stderr=log,
                pass_fds=(write, lock),  # the lock lasts until the agent is gone too
                start_new_session=True,  # a terminal's Ctrl-C reaches the driver alone
            )
        os.close(write)
        self.exit_code: int | None = None
        self.num_ended = 0  # of the items, in their order
        self.error: str | None = None  # what it said of its own failure

    def __enter__(self) -> _Agent:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self.exit_code = self._process.wait()
        os.close(self._read)

    def follow(self, display: Display) -> bool:
        """Show events until the agent ends; True if it was told to stop."""
        told, buffer = False, b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._read, selectors.EVENT_READ)
            while True:
                if self._stop.signal is not None and not told:
                    # What reached this process reaches the agent: it ignores what this one does,
                    # SIGINT where a script started the sweep in the background.
                    self._process.send_signal(self._stop.signal)
                    told = True
                if not selector.select(timeout=0.2):
                    continue
                data = os.read(self._read, 1 << 16)
                if not data:
                    break
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    self._take(json.loads(line), display)
        self._process.wait()
        return told

    def _take(self, event: Event, display: Display) -> None:
        if event["event"] == "error":
            self.error = event["cause"]
            return
        self.num_ended += event["event"] == "end"
        display.show(event)


def _last_words(log: Path, code: int | None) -> str:
    words = "\n".join(tail(log))
    return f"the agent left with exit status {code}; see {log}\n{words}"
