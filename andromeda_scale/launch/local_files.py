"""What an agent keeps on its node's own disk, and takes away again."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "andromeda_scale-"  # of a temporary directory, then the pid it lives as long as


def make_directory() -> Path:
    """A new directory of this agent."""
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))


def remove_stale() -> None:
    """Remove the directories of agents that were killed, by their pid."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        pid = path.name.removeprefix(_PREFIX).partition("-")[0]
        try:
            if pid.isdigit() and path.lstat().st_uid == os.getuid():
                os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except (OSError, OverflowError):
            continue  # another user's process has the number, or another agent was faster


class CompileCaches:
    """torch.compile's caches of one sweep: a directory per case, which all ranks of a node share.

    Nothing that another run compiled is in them, so a case's first launch here is cold and its
    later ones are warm. `token` is the sweep's.
    """

    def __init__(self, num_agents: int) -> None:
        # The agents that an outer launcher started on a node are children of one process.
        self._owner = os.getppid() if num_agents > 1 else os.getpid()
        self.token = ""

    @property
    def _root(self) -> Path:
        return Path(tempfile.gettempdir()) / f"{_PREFIX}{self._owner}-compiled-{self.token}"

    def of_case(self, case_id: str) -> Path:
        """The directory of a case's cache, which exists from now on."""
        self._root.mkdir(mode=0o700, exist_ok=True)
        path = self._root / case_id
        path.mkdir(exist_ok=True)
        return path

    def close(self) -> None:
        """Remove them all; the ranks have ended."""
        if self.token:
            shutil.rmtree(self._root, ignore_errors=True)
