"""The record format: what one rank wrote about one repeat. Versioned JSON lines, raw values.

A repeat's directory `cases/<case_id>/<repeat>/` holds

    node-<node_rank>.jsonl   every line of that node's ranks and of its agent, written once, whole
    status.json              how the repeat ended, by agent 0: the one file that says "finished"
    rank-<rank>.stdout, rank-<rank>.stderr

Every line is one JSON object with "v" (SCHEMA_VERSION), "kind", "case_id", "repeat", "rank"
(null on a node's own line):

    start     host, local_rank, node_rank, world_size, device, device_uuid (null: a CPU), pid,
              unix_time_s
    describe  values: what Strategy.describe() read back from live objects
    phase     phase, values: {collector name: mapping of raw values}, "start_s"/"end_s" on the
              node's monotonic clock, which its ranks and agents share
    point     values: one point of a probe (probed.Point), as many lines as there are points
    node      values of the agent's samplers: {"environment": {...}, "system": {...}}
    end       status, end_s, and for a failure: phase, cause, detail. A record without it is not ok.

History of the format
    1  first
       Added since, which no reader needs: `losses` of a phase have `gradient_norm` beside loss_sum
       and tokens; `parity` stands where losses do, with the differences of both; `device_uuid`,
       and `start_s` of every window and of the system's samples, which relate them; `charged_s` of
       `communication`; `point` lines, in probes alone; `end_s` of `end`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

SCHEMA_VERSION = 1

Phase = Literal["setup", "warmup", "measure", "profile", "inspect"]

Status = Literal[
    "pending",
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


STATUSES: dict[Status, str] = {
    "pending": "planned, and not ended",
    "ok": "every rank wrote its end, and its numbers are in the table",
    "oom": "a rank asked for more memory than there was",
    "timeout": "it took over limits.timeout_s, or a rank said nothing for limits.heartbeat_s",
    "diverged": "its first losses or gradients are not those of its reference: it has no speed",
    "crashed": "a rank ended with an error or by a signal",
    "node_failed": "an agent was lost, with its node or the network to it",
    "interrupted": "the run was stopped while it was going on; a resume launches it again",
    "unavailable": "this machine lacks what it needs, such as a library or a device",
    "invalid": "it ended well and its records contradict each other or what was asked",
    "skipped": "the planner left it out, and says why",
}


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


class Problem(NamedTuple):
    """Something in a run's files that was not used, or cannot be relied on."""

    file: str  # relative to what was read
    line: int  # 1 is the first; 0: the file as a whole
    what: str

    def __str__(self) -> str:
        return f"{self.file}{f':{self.line}' if self.line else ''}: {self.what}"


@dataclass
class RankRecord:
    """The lines of one rank of one repeat, as they were written. `end` is None if there is none."""

    rank: int
    file: str = ""  # that has them, of those of its repeat
    start: dict[str, Any] = field(default_factory=dict)
    describe: dict[str, Any] = field(default_factory=dict)
    phases: dict[str, dict[str, Any]] = field(default_factory=dict)  # phase name -> its line
    points: list[dict[str, Any]] = field(default_factory=list)  # of a probe, in their order
    end: dict[str, Any] | None = None
    lines: dict[str, dict[str, Any]] = field(default_factory=dict)  # by phase, or by kind

    def values(self, phase: Phase, collector: str) -> dict[str, Any]:
        """What a collector wrote in a phase; empty if it wrote nothing."""
        values = self.phases.get(phase, {}).get("values", {}).get(collector)
        return values if isinstance(values, dict) else {}


@dataclass
class RepeatRecord:
    """Everything readable in a repeat's node files, and what was not."""

    ranks: dict[int, RankRecord] = field(default_factory=dict)  # in the order of the files
    nodes: list[dict[str, Any]] = field(default_factory=list)  # values of each agent's line
    problems: list[Problem] = field(default_factory=list)


def read_repeat(directory: Path, case_id: str, repeat: int, world_size: int) -> RepeatRecord:
    """Read the node files of one repeat: every sound line is used, every other is named.

    Of two lines that say the same thing of one rank the first is used; where they differ, what
    comes after the second may be another launch's, and is not. Never raises for what a file holds,
    and fills in nothing that is not there.
    """
    record = RepeatRecord()
    repeated: set[int] = set()
    problems: list[Problem] = []
    for path in sorted(directory.glob("node-*.jsonl"), key=lambda p: (len(p.name), p.name)):
        of_node: list[dict[str, Any]] = []
        for number, line in _lines(path, problems):
            problem = _fault(line, case_id, repeat, world_size)
            rank: Any = line.get("rank")
            if problem is None and rank is None:
                if line in of_node:
                    problem = "this node's line was already read; the first is used"
                else:
                    of_node.append(line)
                    record.nodes.append(line["values"])
            elif problem is None and rank not in repeated:
                known = record.ranks.setdefault(rank, RankRecord(rank, path.name))
                found = _add(known, line) if known.file == path.name else None
                if found is not line:
                    problem = f"rank {rank} was already read from {known.file}; the first is used"
                    if found != line:
                        repeated.add(rank)
            if problem is not None:
                problems.append(Problem(path.name, number, problem))
    record.problems = _at_first(problems)
    return record


def read_status(path: Path) -> tuple[dict[str, Any], str | None]:
    """(agent 0's word on how a repeat ended, why it is not used); nothing where there is no file.

    Never raises for what the file holds; without a word there is no status.
    """
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}, None
    except (OSError, ValueError, RecursionError):
        return {}, f"{path.name}: is not a JSON file"
    if not isinstance(found, dict) or found.get("status") not in get_args(Status):
        return {}, f"{path.name}: has no known status"
    if wrong := wrong_version(found.get("v", SCHEMA_VERSION)):
        return {}, f"{path.name}: {wrong}"
    return found, None


def _at_first(problems: list[Problem]) -> list[Problem]:
    """What many lines of a file have in common is said of the first of them."""
    alike = Counter((problem.file, problem.what) for problem in problems)
    firsts = {(problem.file, problem.what): problem for problem in reversed(problems)}
    return [
        problem._replace(what=f"{what} ({alike[file, what]} lines like it)")
        if alike[file, what] > 1
        else problem
        for (file, what), problem in reversed(firsts.items())
    ]


def _lines(path: Path, problems: list[Problem]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and content of each line that is a JSON object; the others become problems."""
    try:
        file = path.open("rb")
    except OSError as error:
        problems.append(Problem(path.name, 0, f"cannot be read: {error.strerror}"))
        return
    with file:
        for number, text in enumerate(file, start=1):
            try:
                line = json.loads(text.decode())
            except (ValueError, RecursionError):
                cut = "" if text.endswith(b"\n") else "; the file ends in the middle of it"
                problems.append(Problem(path.name, number, f"is not a JSON line{cut}"))
                continue
            if isinstance(line, dict):
                yield number, line
            else:
                problems.append(Problem(path.name, number, "is not a JSON object"))


def wrong_version(found: Any) -> str | None:
    """Why what another version wrote is not read; None for this one's."""
    if type(found) is int and found == SCHEMA_VERSION:
        return None
    return f"has format version {found!r}; this reads {SCHEMA_VERSION}"


def _fault(line: dict[str, Any], case_id: str, repeat: int, world_size: int) -> str | None:
    """Why a line cannot be used; None if it can."""
    kind, rank = line.get("kind"), line.get("rank")
    if wrong := wrong_version(line.get("v")):
        return wrong
    if line.get("case_id") != case_id or line.get("repeat") != repeat:
        return f"belongs to {line.get('case_id')!r} repeat {line.get('repeat')!r}"
    if kind not in ("start", "describe", "phase", "point", "node", "end"):
        return f"is of unknown kind {kind!r}"
    if kind == "node":
        if rank is not None:
            return f"is a node's line with a rank ({rank!r})"
    elif type(rank) is not int or not 0 <= rank < world_size:
        return f"has rank {rank!r} in a world of {world_size}"
    if kind in ("describe", "phase", "point", "node") and not isinstance(line.get("values"), dict):
        return f"is a {kind!r} line without values"
    if kind == "phase" and line.get("phase") not in get_args(Phase):
        return f"is of unknown phase {line.get('phase')!r}"
    if kind == "end" and line.get("status") not in get_args(Status):
        return f"has unknown status {line.get('status')!r}"
    return None


def _add(record: RankRecord, line: dict[str, Any]) -> dict[str, Any]:
    """File a sound line of a rank; the line that has its place, which is this one or an older."""
    kind = line["kind"]
    if kind == "point":
        record.points.append(line["values"])
        return line
    place = line["phase"] if kind == "phase" else kind
    taken = record.lines.setdefault(place, line)
    if taken is line and kind == "phase":
        record.phases[place] = line
    elif taken is line:
        setattr(record, kind, line["values"] if kind == "describe" else line)
    return taken
