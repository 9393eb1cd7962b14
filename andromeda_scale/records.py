"""The record format: what one rank wrote about one repeat. Versioned JSON lines, raw values.

A repeat's directory `cases/<case_id>/<repeat>/` holds

    node-<node_rank>.jsonl   every line of that node's ranks and of its agent, written once, whole
    status.json              how the repeat ended, by agent 0: the one file that says "finished"
    rank-<rank>.stdout, rank-<rank>.stderr

Every line is one JSON object with "v" (SCHEMA_VERSION), "kind", "case_id", "repeat", "rank"
(null on a node's own line):

    start     host, local_rank, node_rank, world_size, device, pid, unix_time_s
    describe  values: what Strategy.describe() read back from live objects
    phase     phase, values: {collector name: mapping of raw values}, "start_s"/"end_s" on the
              rank's monotonic clock
    node      values of the agent's samplers: {"environment": {...}, "system": {...}}
    end       status, and for a failure: phase, cause, detail. A record without it is not ok.

History of the format
    1  first
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

SCHEMA_VERSION = 1

Phase = Literal["setup", "warmup", "measure", "profile", "inspect"]

Status = Literal[
    "pending",
    "running",
    "ok",
    "oom",
    "timeout",
    "diverged",
    "crashed",
    "node_failed",
    "interrupted",
    "unavailable",
    "invalid",
    "skipped",
]


class RecordWriter:
    """Appends one rank's lines to its own file; the agent later gathers them per node."""

    def __init__(self, path: str | Path, case_id: str, repeat: int, rank: int | None) -> None:
        self._file = open(path, "a", encoding="utf-8")
        self._head = {"v": SCHEMA_VERSION, "case_id": case_id, "repeat": repeat, "rank": rank}

    def write(self, kind: str, **fields: Any) -> None:
        """Append one line and hand it to the operating system at once."""
        line = json.dumps({**self._head, "kind": kind, **fields}, allow_nan=True)
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
