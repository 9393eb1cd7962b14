"""An agent's forkservers, one for each environment that its cases need."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from andromeda_scale.launch.beats import BeatTable
from andromeda_scale.launch.messages import RankEnvironment
from andromeda_scale.launch.rendezvous import rank_environment

MAX_FORKSERVERS = 4  # each keeps the imports in memory


class ForkserverClient:
    """A forkserver of this agent, and its pipes."""

    def __init__(
        self, environment: Mapping[str, str], worker: str, modules: Sequence[str], num_slots: int
    ) -> None:
        self.beats = BeatTable(num_slots)
        command_read, self._commands = os.pipe()
        self.events, event_write = os.pipe()
        inherited = (command_read, event_write, self.beats.fd)
        program = [sys.executable, "-m", "andromeda_scale.launch.forkserver"]
        arguments = [os.getpid(), *inherited, num_slots, worker, *modules]
        self._process = subprocess.Popen(
            [*program, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what an import prints is no result
            pass_fds=inherited,
            env=dict(environment),
        )
        os.close(command_read)
        os.close(event_write)
        self._buffer = b""
        self._next_id = 0
        self.ready = False
        self.dead = False

    def new_id(self) -> int:
        """A name for a rank to be forked, never used before."""
        self._next_id += 1
        return self._next_id

    def send(self, command: Mapping[str, Any]) -> None:
        data = json.dumps(command).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._commands, data) :]
        except BrokenPipeError:
            self.dead = True

    def poll(self, wait_s: float) -> list[dict[str, Any]]:
        """Events that have come; waits up to `wait_s` for the first. Sets `ready` and `dead`."""
        if self.dead or not select.select([self.events], [], [], wait_s)[0]:
            return []
        data = os.read(self.events, 1 << 16)
        if not data:
            self.dead = True
            return []
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        events = [json.loads(line) for line in lines]
        for event in events:
            if "ready" in event:
                self.ready = True
                for module, error in event["ready"].items():
                    print(f"forkserver: {module} cannot be imported: {error}", file=sys.stderr)
        return events

    def close(self) -> None:
        """End it; its ranks end with it."""
        self._process.kill()
        self._process.wait()
        for fd in (self._commands, self.events):
            os.close(fd)
        self.beats.close()


class Forkservers:
    """Forkservers by device kind and variables, started when first needed.

    `modules` is what all of them import beyond the common: set it before the first is started.
    """

    def __init__(self, environment: Mapping[str, str], worker: str, num_slots: int) -> None:
        self._environment, self._worker = dict(environment), worker
        self.num_slots = num_slots
        self.modules: tuple[str, ...] = ()
        self._servers: dict[str, ForkserverClient] = {}

    def get(self, wanted: RankEnvironment) -> ForkserverClient:
        """The one for an environment; it takes commands at once and obeys after its imports."""
        key = wanted.model_dump_json()
        server = self._servers.pop(key, None)
        if server is not None and server.dead:
            server.close()
            server = None
        if server is None:
            while len(self._servers) >= MAX_FORKSERVERS:
                self._servers.pop(next(iter(self._servers))).close()
            environment = rank_environment(self._environment, wanted.device, wanted.variables)
            server = ForkserverClient(environment, self._worker, self.modules, self.num_slots)
        self._servers[key] = server  # the last used is last
        return server

    def still_importing(self, wait_s: float) -> bool:
        """Whether any has not finished its imports; waits up to `wait_s` for a change."""
        importing = [s for s in self._servers.values() if not (s.ready or s.dead)]
        if importing:
            importing[0].poll(wait_s)
        return bool(importing)

    def close(self) -> None:
        for server in self._servers.values():
            server.close()
        self._servers = {}
