"""The TCP connections of this process, as the kernel knows them."""

from __future__ import annotations

import os
import socket

End = tuple[str, int]


def connections() -> list[tuple[socket.socket, End, End]]:
    """(a copy of the socket, this end, the other end) of every TCP connection of this process."""
    found = []
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            one = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # closed meanwhile
            continue
        try:
            if one.family not in (socket.AF_INET, socket.AF_INET6):
                raise OSError("no internet socket")
            here, there = one.getsockname()[:2], one.getpeername()[:2]
            if one.type != socket.SOCK_STREAM:
                raise OSError("no TCP")
            found.append((one, here, there))
        except OSError:  # listens, or is of another kind
            one.close()
    return found
