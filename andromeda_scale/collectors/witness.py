"""The bytes of a phase as the kernel counted them: a second witness of what gloo moved.

The first adds up tensors; this one knows nothing of them.
"""

from __future__ import annotations

import socket
import struct
import time
from contextlib import suppress

import psutil

from andromeda_scale.rank.sockets import End, connections

_TCP_INFO = getattr(socket, "TCP_INFO", 11)
_BYTES_RECEIVED = 128  # offset of tcpi_bytes_received in linux/tcp.h, since Linux 4.1
_LOOPBACK = "lo"
_IDLE_S = 0.1  # how long the device is watched while no rank sends
MAX_IDLE_SHARE = 0.05  # of others' bytes on the device, above which it says nothing of ours


class Witness:
    """What this process received over TCP, and the whole loopback device carried, since `start`."""

    def start(self) -> None:
        self._received = _received_by_connection()
        self._loopback = _loopback()
        self._started = time.monotonic()

    def received_bytes(self) -> int | None:
        """Bytes that came in since `start`; None where no kernel counts. In a ring as many go out,
        but of those the last are counted only when the other end has acknowledged them."""
        found = _received_by_connection()
        if not found:
            return None
        return sum(max(0, came - self._received.get(key, 0)) for key, came in found.items())

    def loopback_bytes(self) -> float | str:
        """Bytes of all packets since `start`, less what others send: call while no rank sends.

        A text says why where the device cannot tell.
        """
        after, seconds = _loopback(), time.monotonic() - self._started
        if after is None or self._loopback is None:
            return f"there is no device {_LOOPBACK}"
        watched = time.monotonic()
        time.sleep(_IDLE_S)
        last = _loopback()
        idle = ((last or after) - after) / (time.monotonic() - watched) * seconds
        counted = after - self._loopback
        if idle > MAX_IDLE_SHARE * counted:
            return f"too noisy: others send {idle:.3g} of {counted:.3g} bytes on {_LOOPBACK}"
        return counted - idle


def _received_by_connection() -> dict[tuple[End, End], int]:
    """Bytes that came by every TCP connection; empty where the kernel does not say."""
    found = {}
    for one, here, there in connections():
        with one, suppress(OSError, struct.error):  # it may have closed
            info = one.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 256)
            found[here, there] = int(struct.unpack_from("=Q", info, _BYTES_RECEIVED)[0])
    return found


def _loopback() -> int | None:
    counters = psutil.net_io_counters(pernic=True).get(_LOOPBACK)
    return None if counters is None else int(counters.bytes_sent)
