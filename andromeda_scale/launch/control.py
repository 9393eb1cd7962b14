"""The control store: what agents tell each other, as JSON over torch's TCPStore on agent 0."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from andromeda_scale.suite.schema import Schema

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store, TCPStore

S = TypeVar("S", bound=Schema)

CHUNK_BYTES = 4 << 20  # the store refuses values above 8 MiB
ALIVE_PERIOD_S = 0.5
_SILENCE_S = 20.0  # after which an agent that says nothing is given up, agent 0 by the others


class Control:
    """One agent's view of the control store.

    Nothing here blocks on another agent: a key is looked for, never waited for. Every method
    raises RuntimeError (torch's DistError) when agent 0 is gone, or answers nothing for
    `silence_s`.
    """

    def __init__(
        self,
        store: Store,
        *,
        host: str,
        port: int,
        agent: int,
        num_agents: int,
        node: str,
    ) -> None:
        self._store = store
        self.host, self.port = host, port  # where this agent's ranks reach it
        self.agent, self.num_agents = agent, num_agents
        self.node = node  # this agent's host name
        self.unanswered = False  # agent 0 was given up while its host still held the connection
        self.silence_s = _SILENCE_S
        self._asked_s: float | None = None  # since when a call has been waiting for its answer
        self._beats = 0
        self._next_beat_s = 0.0
        if agent:
            threading.Thread(target=self._hang_up, daemon=True).start()

    def say(self, word: str) -> None:
        with self._asking() as store:
            store.set(word, "")

    def said(self, word: str) -> bool:
        """Whether some agent has said a word, or set a key."""
        with self._asking() as store:
            return store.check([word])

    def set(self, key: str, message: Schema) -> None:
        with self._asking() as store:
            store.set(key, message.model_dump_json())

    def set_first(self, key: str, message: Schema) -> None:
        """Set a key unless another agent was first."""
        with self._asking() as store:
            store.compare_set(key, "", message.model_dump_json())

    def get(self, key: str, kind: type[S]) -> S | None:
        """The message under `key`; None if there is none yet."""
        text = self.read(key)
        return None if text is None else kind.model_validate_json(text)

    def read(self, key: str) -> bytes | None:
        """The text under `key`; None if there is none yet."""
        with self._asking() as store:
            return store.get(key) if store.check([key]) else None

    def push(self, key: str, data: bytes) -> int:
        """Store bytes in chunks; returns how many."""
        chunks = [data[i : i + CHUNK_BYTES] for i in range(0, len(data), CHUNK_BYTES)]
        for index, chunk in enumerate(chunks):
            with self._asking() as store:
                store.set(f"{key}/{index}", chunk)  # type: ignore[arg-type]  # bytes are taken too
        return len(chunks)

    def pull(self, key: str, num_chunks: int) -> bytes:
        """Bytes pushed under `key`, which are then deleted."""
        keys = [f"{key}/{index}" for index in range(num_chunks)]
        with self._asking() as store:
            data = b"".join(store.get(k) for k in keys)
            for k in keys:
                store.delete_key(k)
        return data

    def say_alive(self) -> None:
        """Tell agent 0 twice a second that this agent still runs."""
        now = time.monotonic()
        if self.agent and now >= self._next_beat_s:
            self._beats += 1
            self._next_beat_s = now + ALIVE_PERIOD_S
            with self._asking() as store:
                store.set(f"alive/{self.agent}", json.dumps(self._beats))

    @contextmanager
    def _asking(self) -> Iterator[Store]:
        self._asked_s = time.monotonic()
        try:
            yield self._store
        finally:
            self._asked_s = None

    def _hang_up(self) -> None:
        """Close the connection under a call that has no answer: torch would wait for ever, where
        agent 0 is stopped or its node has no power."""
        while True:
            time.sleep(self.silence_s / 10)
            asked_s = self._asked_s
            if asked_s is not None and time.monotonic() - asked_s > self.silence_s:
                self.unanswered = True
                _shut_connections(self.port)


class Silence:
    """For agent 0: how long each other agent has said nothing, on agent 0's own clock."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._last: dict[int, tuple[Any, float]] = {}

    def longest(self, agents: Iterable[int]) -> tuple[int, float]:
        """(agent, seconds) of the agent that has been silent longest; (0, 0.0) without any."""
        now = time.monotonic()
        worst = (0, 0.0)
        for agent in agents:
            beat = self._control.read(f"alive/{agent}")
            known, since = self._last.setdefault(agent, (beat, now))
            if beat != known:
                known, since = self._last[agent] = (beat, now)
            if now - since > worst[1]:
                worst = (agent, now - since)
        return worst


def open_server(host: str, port: int, *, loopback: bool) -> TCPStore:
    """agent 0's store; port 0 lets the operating system choose. On loopback nobody else hears."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # no stubs

    listener = socket.create_server(
        ("127.0.0.1" if loopback else "", port),
        backlog=4096,
    )
    chosen = listener.getsockname()[1]
    return TCPStore(
        host,
        chosen,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=60),
        master_listen_fd=listener.detach(),
    )


def open_client(host: str, port: int, timeout_s: float) -> Store:
    """Another agent's connection to it."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # no stubs

    return TCPStore(
        host,
        port,
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
    )


def _shut_connections(port: int) -> None:
    """Shut this process's connections to a port, whose descriptors torch keeps to itself."""
    for found in psutil.Process().net_connections("tcp"):
        if found.raddr and found.raddr.port == port:
            with socket.socket(fileno=os.dup(found.fd)) as connection:
                connection.shutdown(socket.SHUT_RDWR)
