"""Processes that never outlive their parent, and signals that ask for an orderly stop."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel SIGKILL this process when the process `parent` dies.

    Leaves at once when it died before the kernel could be asked. Outside Linux only that check
    is made.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) was refused")
    if os.getppid() != parent:
        os._exit(1)


def signal_group(pid: int, number: int) -> None:
    """Send a signal to a process and to the process group it leads, if they still exist."""
    for send in (os.killpg, os.kill):
        try:
            send(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def kernel_oom_kills() -> int | None:
    """Processes the kernel has killed for want of memory since boot; None where it does not say."""
    try:
        counters = Path("/proc/vmstat").read_text().split()
        return int(counters[counters.index("oom_kill") + 1])
    except (OSError, ValueError):
        return None


def ignores(pid: int, number: signal.Signals) -> bool:
    """Whether a process ignores a signal; False where the kernel does not say."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        masks = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        return bool(int(masks["SigIgn"], 16) & 1 << (number - 1))
    except (OSError, KeyError, ValueError):
        return False


class StopRequest:
    """Made by SIGINT, SIGTERM or SIGHUP; after one, SIGINT raises KeyboardInterrupt.

    Of SIGHUP a closed terminal sends several, and of SIGTERM SLURM does, to an agent itself and
    through srun, so only the first counts; it is `signal`.
    Signals that the parent had ignored, as nohup does, stay ignored. Outside the main thread
    Python hears none: they stay with whoever has them. With `watch_parent` the parent's death is a
    request too.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self, *, watch_parent: bool = False) -> None:
        self.signal: int | None = None
        self._parent = os.getppid() if watch_parent else None
        heard = [s for s in self.SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
        if threading.current_thread() is not threading.main_thread():
            heard = []
        self._before = {s: signal.signal(s, self._handle) for s in heard}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt(number)
        self.signal = self.signal or number

    @property
    def requested(self) -> bool:
        orphaned = self._parent is not None and os.getppid() != self._parent
        return self.signal is not None or orphaned

    def close(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
