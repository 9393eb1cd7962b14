"""How far each local rank is: one slot of shared memory per rank, written without a system call.

A rank says which step it finished at every step boundary of a timed window, so this must cost
nothing, never block and never be lost. The table lies in an anonymous memory file that ranks
inherit through the forkserver; nothing is left behind when everything is killed.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

_SLOT = struct.Struct("=16sqqq")  # phase, step, total steps, monotonic time in ns


class Beat(NamedTuple):
    """The last thing a rank said. `time_s` is on the host's monotonic clock."""

    phase: str
    step: int
    total_steps: int
    time_s: float


class BeatTable:
    """`num_slots` slots behind one inheritable file descriptor."""

    def __init__(self, num_slots: int, fd: int | None = None) -> None:
        if fd is None:
            fd = _anonymous_file()
            os.ftruncate(fd, num_slots * _SLOT.size)
        self.fd = fd
        self._memory = mmap.mmap(fd, num_slots * _SLOT.size)

    def clear(self, slot: int) -> None:
        _SLOT.pack_into(self._memory, slot * _SLOT.size, b"", 0, 0, 0)

    def writer(self, slot: int) -> Callable[[str, int, int], None]:
        """The `beat(phase, step, total_steps)` of the rank that owns this slot."""
        memory, offset, pack, now = self._memory, slot * _SLOT.size, _SLOT.pack_into, time

        def beat(phase: str, step: int, total_steps: int) -> None:
            pack(memory, offset, phase.encode(), step, total_steps, now.monotonic_ns())

        return beat

    def read(self, slot: int) -> Beat | None:
        """The last beat of a slot; None before the first."""
        start, end = slot * _SLOT.size, (slot + 1) * _SLOT.size
        content = self._memory[start:end]
        while content != (again := self._memory[start:end]):  # caught the rank while writing
            content = again
        phase, step, total_steps, time_ns = _SLOT.unpack(content)
        if time_ns == 0:
            return None
        return Beat(phase.rstrip(b"\0").decode(), step, total_steps, time_ns / 1e9)

    def close(self) -> None:
        self._memory.close()
        os.close(self.fd)


def _anonymous_file() -> int:
    # A file on a disk would be written back now and then, and hold up the rank that writes next.
    if hasattr(os, "memfd_create"):
        return os.memfd_create("andromeda_scale beats", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
