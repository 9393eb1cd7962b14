"""The driver: locks the run, starts one agent, shows its progress, ends it in order. No torch."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from andromeda_scale.config import Plan
from andromeda_scale.launch.process import StopRequest
from andromeda_scale.launch.progress import Display, make_display
from andromeda_scale.launch.ranks import tail
from andromeda_scale.launch.run_dir import RunDir

AGENT_LOG = "agent.log"
_DEFAULT_WORKER = "andromeda_scale.worker:main"


@dataclass(frozen=True)
class Outcome:
    """How a sweep ended: statuses of the whole plan, and why the agent stopped early if it did."""

    statuses: Mapping[str, int]
    interrupted: bool = False
    error: str | None = None  # the agent itself failed

    @property
    def exit_code(self) -> int:
        """0: the plan was gone through (failed cases are rows); 130: interrupted; 1: broken."""
        return 130 if self.interrupted else 1 if self.error else 0


def run(
    plan: Plan,
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
    with run_dir.lock() as lock:
        run_dir.recover()
        items = run_dir.todo(only_failed=only_failed)
        error, interrupted = None, False
        if items:
            launched = [plan.cases[i.case_id].world for i in items if i.skip is None]
            slots = max((w.ranks_per_node for w in launched if w.nodes == 1), default=1)
            display = make_display(quiet=quiet)
            try:
                with _Agent(run_dir, slots, only_failed, worker, lock) as agent:
                    told = agent.follow(display)
            finally:
                display.close()
            # An agent that was told before it could listen dies of the signal.
            interrupted = agent.exit_code == 130 or (told and agent.exit_code != 0)
            if agent.exit_code and not interrupted:
                error = _last_words(run_dir.path / AGENT_LOG, agent.exit_code)
        counts = Counter(status for _, status in run_dir.statuses())
    return Outcome(counts, interrupted=interrupted, error=error)


class _Agent:
    """The agent's process, seen by the driver."""

    def __init__(
        self, run_dir: RunDir, slots: int, only_failed: bool, worker: str, lock: int
    ) -> None:
        self._read, write = os.pipe()
        arguments = [
            "--run-dir",
            str(run_dir.path),
            "--ranks-per-agent",
            str(slots),
            "--worker",
            worker,
        ]
        arguments += ["--driver", str(os.getpid()), "--events", str(write)]
        arguments += ["--only-failed"] if only_failed else []
        self._stop = StopRequest()
        with open(run_dir.path / AGENT_LOG, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "andromeda_scale.agent", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(write, lock),  # the lock lasts until the agent is gone too
                start_new_session=True,  # a terminal's Ctrl-C reaches the driver alone
            )
        os.close(write)
        self.exit_code: int | None = None

    def __enter__(self) -> _Agent:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self.exit_code = self._process.wait()
        os.close(self._read)
        self._stop.close()

    def follow(self, display: Display) -> bool:
        """Show events until the agent ends; True if it was told to stop."""
        told, buffer = False, b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._read, selectors.EVENT_READ)
            while True:
                if self._stop.requested and not told:
                    self._process.send_signal(signal.SIGINT)
                    told = True
                if not selector.select(timeout=0.2):
                    continue
                data = os.read(self._read, 1 << 16)
                if not data:
                    break
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    display.show(json.loads(line))
        self._process.wait()
        return told


def _last_words(log: Path, code: int | None) -> str:
    words = "\n".join(tail(log))
    return f"the agent left with exit status {code}; see {log}\n{words}"
