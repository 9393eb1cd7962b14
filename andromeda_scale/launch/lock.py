"""Who runs a run: one driver at a time, as the file system's lock on its file `lock` says."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from andromeda_scale.errors import UserError
from andromeda_scale.launch.disk import is_full


@contextmanager
def held(run_dir: Path) -> Iterator[int]:
    """Hold a run for this driver; yields the descriptor whose inheritors hold it too.

    Raises UserError naming the process and host that hold it.
    """
    try:
        fd = os.open(run_dir / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        if is_full(error):
            raise  # its caller says what to do
        raise UserError(
            f"{run_dir}/lock: cannot be opened ({error.strerror}); remove it, or mend "
            "who may write it"
        ) from None
    try:
        _take(run_dir, fd)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        yield fd
    finally:
        os.close(fd)


def is_held(run_dir: Path) -> bool:
    """Whether a driver holds a run.

    Where files cannot be locked nobody can tell, and one that ever held it is taken to: better to
    wait for who has left than to leave who goes on.
    """
    try:
        file = open(run_dir / "lock", "rb")
    except OSError:  # a copy, none was ever started, or not ours to see
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:  # held, or no file that can be
            return True
    return False


def holder(run_dir: Path) -> tuple[int, str] | None:
    """(process id, host) of the driver that holds a run; None: nobody does, or it gave no name."""
    if not is_held(run_dir):
        return None
    try:
        pid, _, host = _named((run_dir / "lock").read_bytes())
    except OSError:
        return None
    return (int(pid), host) if pid.isdecimal() else None


def _named(held: bytes) -> tuple[str, str, str]:
    """Process, a space and host of what a lock file says; a damaged one still locks."""
    return held.decode(errors="replace").strip().partition(" ")


def _take(run_dir: Path, fd: int) -> None:
    start = time.monotonic()
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pid, _, host = _named(os.pread(fd, 300, 0))
            # The agent of a killed driver holds the lock for the moment it takes to die, and who
            # asks whether it is held does so for less.
            dying = host == socket.gethostname() and not Path(f"/proc/{pid}").exists()
            if time.monotonic() - start > (2.0 if dying else 0.2):
                raise UserError(
                    f"{run_dir}: is in use by process {pid or '?'} on {host or '?'}; wait "
                    "for it to end, or choose another --run-dir"
                ) from None
            time.sleep(0.05)
        except OSError as error:
            raise UserError(
                f"{run_dir}: its file system cannot lock files ({error.strerror}); choose a "
                "--run-dir on another one"
            ) from None
