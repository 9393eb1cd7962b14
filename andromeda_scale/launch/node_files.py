"""What one agent leaves of a repeat: its node file, its ranks' output, and its own line."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from andromeda_scale import registry
from andromeda_scale.contracts.records import SCHEMA_VERSION
from andromeda_scale.errors import CollectorUnavailable
from andromeda_scale.hardware import environment
from andromeda_scale.launch.ranks import complete_lines
from andromeda_scale.launch.rendezvous import without_guesses


def write_node_file(
    directory: Path, agent: int, records: Sequence[Path], node_line: dict[str, Any] | None
) -> None:
    """Gather the ranks' lines into node-<agent>.jsonl, whole or not at all; drop their own files.

    Named by agent, because under a launcher that starts one agent a rank a node has several.
    """
    temporary = directory / f".node-{agent}.jsonl"
    with open(temporary, "wb") as file:
        if node_line is not None:
            file.write(json.dumps(node_line).encode() + b"\n")
        for record in records:
            file.writelines(complete_lines(record))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(directory / f"node-{agent}.jsonl")
    for record in records:
        record.unlink(missing_ok=True)


def pack(directory: Path) -> bytes:
    """The files of a directory as a compressed archive, for an agent without a shared disk."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path in sorted(directory.iterdir()):
            archive.add(path, path.name)
    return buffer.getvalue()


def unpack(data: bytes, directory: Path) -> None:
    """Lay the files of `pack` beside agent 0's."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        archive.extractall(directory, filter="data")


class NodeSamplers:
    """The collectors that watch a node from its agent, and its environment."""

    def __init__(self) -> None:
        self._environment: dict[str, Any] | None = None
        self._running: dict[str, Any] = {}
        self._failed: dict[str, Any] = {}

    def start(self, collect: Iterable[str]) -> None:
        """Start those of a case's collectors whose `where` is "agent"."""
        self._running, self._failed = {}, {}
        for name in collect:
            try:
                kind = registry.load("collector", name)
                if kind.where == "agent":
                    sampler = kind()
                    sampler.start()
                    self._running[name] = sampler
            except CollectorUnavailable as error:
                self._failed[name] = {"unavailable": str(error)}
            except Exception as error:  # a sampler that fails costs its values, not the repeat
                self._failed[name] = {"error": f"{type(error).__name__}: {error}"}

    def before_ranks(self, collect: Iterable[str]) -> None:
        """Let those that must see this node without ranks do so, once a run."""
        for name in collect:
            try:
                kind = registry.load("collector", name)
                if kind.where == "agent":
                    kind.before_ranks()
            except Exception as error:  # what it would have said is missing, which its values show
                print(f"{name} before ranks: {type(error).__name__}: {error}", file=sys.stderr)

    def stop(self, case_id: str, repeat: int) -> dict[str, Any]:
        """The node's line: environment and what each sampler saw."""
        values = {"environment": self.environment(), **self._failed}
        for name, sampler in self._running.items():
            try:
                values[name] = dict(sampler.stop())
            except Exception as error:  # its values are lost, not the others'
                values[name] = {"error": f"{type(error).__name__}: {error}"}
        self._running = {}
        head = {"v": SCHEMA_VERSION, "kind": "node", "case_id": case_id, "repeat": repeat}
        return {**head, "rank": None, "values": values}

    def environment(self) -> dict[str, Any]:
        """This node's environment, collected once."""
        if self._environment is None:
            try:
                self._environment = environment.collect(without_guesses(os.environ))
            except Exception as error:  # merging says that systems cannot be told
                self._environment = {"error": f"{type(error).__name__}: {error}"}
        return self._environment
