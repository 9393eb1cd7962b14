"""The ranks of one agent during one launch: forked, watched, ended."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

from andromeda_scale.contracts.planned import RankSpec
from andromeda_scale.launch.beats import Beat
from andromeda_scale.launch.forkservers import ForkserverClient
from andromeda_scale.launch.messages import RankEnd

_STDERR_LINES = 20
_TAIL_BYTES = 1 << 16


class LocalRank:
    """One rank of this agent during one launch."""

    def __init__(self, identity: int, slot: int, spec: RankSpec) -> None:
        self.identity, self.slot, self.spec = identity, slot, spec
        self.record = Path(spec.record_path)
        self.stderr = self.record.with_suffix(".stderr")
        self.pid: int | None = None
        self.code: int | None = None
        self.ended_s: float | None = None  # on the node's monotonic clock
        self.ended_by_agent = False
        self.last_beat: Beat | None = None
        self.end_line: dict[str, Any] | None = None
        self.phases_s = 0.0

    def left(self, code: int | None) -> None:
        """Note that the process is gone and what it wrote last."""
        self.code, self.ended_s = code, time.monotonic()
        for line in map(json.loads, complete_lines(self.record)):
            if line.get("kind") == "phase":
                self.phases_s += float(line.get("end_s", 0)) - float(line.get("start_s", 0))
            elif line.get("kind") == "end":
                self.end_line = line
                # It left when it said so, before its libraries tore down.
                self.ended_s = float(line.get("end_s", self.ended_s))

    @property
    def ok(self) -> bool:
        return self.end_line is not None and self.end_line.get("status") == "ok"

    def _last_words(self) -> tuple[str, ...]:
        """The tail of stderr, and the traceback that the worker put into its end line instead.

        Of a rank that was asked where it stands: the innermost frames of its main thread.
        """
        if self.ended_by_agent and (stack := stack_head(self.stderr)):
            return stack
        detail = (self.end_line or {}).get("detail") or {}
        return (*tail(self.stderr), *detail.get("traceback", ()))[-_STDERR_LINES:]

    def end(self, host: str, zero_unix_s: float) -> RankEnd:
        """What this agent tells agent 0 of it; `zero_unix_s` is the monotonic clock's zero."""
        line, beat = self.end_line or {}, self.last_beat
        assert self.ended_s is not None
        return RankEnd(
            rank=self.spec.rank,
            host=host,
            status=line.get("status"),
            code=self.code,
            ended_by_agent=self.ended_by_agent and not line,
            ended_unix_s=zero_unix_s + self.ended_s,
            phase=line.get("phase") or (beat.phase if beat else None),
            step=beat.step if beat else None,
            total_steps=beat.total_steps if beat else None,
            cause=line.get("cause"),
            odd_ranks=(line.get("detail") or {}).get("odd_ranks"),
            phases_s=self.phases_s,
            pid=self.pid,
            stderr_tail=() if self.ok else self._last_words(),
        )


class RankGroup:
    """The local ranks of one launch."""

    def __init__(self, server: ForkserverClient, specs: list[RankSpec]) -> None:
        self._server = server
        self.ranks = [LocalRank(server.new_id(), slot, spec) for slot, spec in enumerate(specs)]
        self._signalled: set[int] = set()

    def start(self) -> None:
        for rank in self.ranks:
            self._server.beats.clear(rank.slot)
            self._server.send(
                {
                    "fork": rank.identity,
                    "slot": rank.slot,
                    "spec": rank.spec.model_dump(mode="json"),
                    "stdout": str(rank.record.with_suffix(".stdout")),
                    "stderr": str(rank.stderr),
                }
            )

    def poll(self, wait_s: float) -> None:
        """Take in what happened to the ranks."""
        known = {rank.identity: rank for rank in self.ranks}
        for event in self._server.poll(wait_s):
            if event.get("forked") in known:
                known[event["forked"]].pid = event["pid"]
            elif event.get("exited") in known:  # not one that an earlier launch gave up
                rank = known[event["exited"]]
                rank.last_beat = self._server.beats.read(rank.slot)
                rank.left(event["code"])
        for rank in self.alive:
            rank.last_beat = self._server.beats.read(rank.slot)
            if self._server.dead:
                rank.left(None)

    @property
    def alive(self) -> list[LocalRank]:
        return [rank for rank in self.ranks if rank.ended_s is None]

    @property
    def failed(self) -> list[LocalRank]:
        return [rank for rank in self.ranks if rank.ended_s is not None and not rank.ok]

    def silent(self, longest_s: float) -> list[LocalRank]:
        """Ranks past their first step that said nothing for `longest_s`."""
        now = time.monotonic()
        return [
            rank
            for rank in self.alive
            if (beat := rank.last_beat)
            and beat.phase != "setup"
            and (beat.step > 0 or beat.phase != "warmup")
            and now - beat.time_s > longest_s
        ]

    def ask_where(self) -> None:
        """Have every rank that still runs write the Python stack it stands on to its stderr."""
        self._signal(signal.SIGUSR1)

    def kill(self) -> None:
        """End every rank that still runs, and whatever it started."""
        for rank in self.alive:
            rank.ended_by_agent = True
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        ids = [rank.identity for rank in self.alive]
        if ids and number not in self._signalled:
            self._signalled.add(number)
            self._server.send({"signal": number, "ids": ids})


def complete_lines(path: Path) -> list[bytes]:
    """The complete JSON lines of a rank's file: a killed rank may leave half a line."""
    try:
        content = path.read_bytes()
    except OSError:
        return []
    return [line for line in content.splitlines(keepends=True) if _is_object(line)]


def _is_object(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False


def tail(path: Path) -> tuple[str, ...]:
    """The last lines of a text file that may be large, empty or missing."""
    return _lines(path)[-_STDERR_LINES:]


def stack_head(path: Path) -> tuple[str, ...]:
    """The start of the last stack in a rank's stderr; empty without one.

    faulthandler writes the main thread last, and of every thread the innermost frame first.
    """
    lines = _lines(path)
    heads = [i for i, line in enumerate(lines) if line.endswith("(most recent call first):")]
    return lines[heads[-1] :][:_STDERR_LINES] if heads else ()


def _lines(path: Path) -> tuple[str, ...]:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ()
    return tuple(line for line in text.splitlines() if line.strip())
