"""Waiting until something holds, and ending processes by their ids."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import psutil

PATIENCE_S = 60.0


def end(pids: list[int]) -> None:
    """End processes: SIGTERM, a moment, SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            kill(pid, number)
        wait_until(
            lambda: not any(map(alive, pids)), "the end of daemons", patience_s=5, strict=False
        )


def kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def alive(pid: int) -> bool:
    """A dead child of an idle init stays a zombie for seconds: that is no life."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until(
    condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S, *, strict: bool = True
) -> None:
    """Wait until it holds; AssertionError after `patience_s`, unless not `strict`."""
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            if strict:
                raise AssertionError(f"in vain waited for: {what}")
            return
        time.sleep(0.05)
