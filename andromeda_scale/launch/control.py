"""The control store: what agents tell each other, as JSON over torch's TCPStore on agent 0."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from andromeda_scale.schema import Schema

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store, TCPStore

S = TypeVar("S", bound=Schema)

CHUNK_BYTES = 4 << 20  # the store refuses values above 8 MiB
ALIVE_PERIOD_S = 0.5


class Control:
    """One agent's view of the control store.

    Nothing here blocks on another agent: a key is looked for, never waited for. Every method
    raises RuntimeError (torch's DistError) when agent 0 is gone.
    """

    def __init__(
        self, store: Store, *, host: str, port: int, agent: int, num_agents: int, node: str
    ) -> None:
        self.store = store
        self.host, self.port = host, port  # where this agent's ranks reach it
        self.agent, self.num_agents = agent, num_agents
        self.node = node  # this agent's host name
        self._beats = 0
        self._next_beat_s = 0.0

    def set(self, key: str, message: Schema) -> None:
        self.store.set(key, message.model_dump_json())

    def set_first(self, key: str, message: Schema) -> None:
        """Set a key unless another agent was first."""
        self.store.compare_set(key, "", message.model_dump_json())

    def get(self, key: str, kind: type[S]) -> S | None:
        """The message under `key`; None if there is none yet."""
        if not self.store.check([key]):
            return None
        return kind.model_validate_json(self.store.get(key))

    def push(self, key: str, data: bytes) -> int:
        """Store bytes in chunks; returns how many."""
        chunks = [data[i : i + CHUNK_BYTES] for i in range(0, len(data), CHUNK_BYTES)]
        for index, chunk in enumerate(chunks):
            self.store.set(f"{key}/{index}", chunk)  # type: ignore[arg-type]  # bytes are taken too
        return len(chunks)

    def pull(self, key: str, num_chunks: int) -> bytes:
        """Bytes pushed under `key`, which are then deleted."""
        keys = [f"{key}/{index}" for index in range(num_chunks)]
        data = b"".join(self.store.get(k) for k in keys)
        for k in keys:
            self.store.delete_key(k)
        return data

    def say_alive(self) -> None:
        """Tell agent 0 twice a second that this agent still runs."""
        now = time.monotonic()
        if self.agent and now >= self._next_beat_s:
            self._beats += 1
            self._next_beat_s = now + ALIVE_PERIOD_S
            self.store.set(f"alive/{self.agent}", json.dumps(self._beats))


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
            key = f"alive/{agent}"
            beat = self._control.store.get(key) if self._control.store.check([key]) else None
            known, since = self._last.setdefault(agent, (beat, now))
            if beat != known:
                known, since = self._last[agent] = (beat, now)
            if now - since > worst[1]:
                worst = (agent, now - since)
        return worst


def open_server(host: str, port: int, *, loopback: bool) -> TCPStore:
    """agent 0's store; port 0 lets the operating system choose. On loopback nobody else hears."""
    import socket

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
