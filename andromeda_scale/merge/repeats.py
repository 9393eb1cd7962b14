"""One repeat -> one row: how it ended, on what, and its numbers if it is ok."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from andromeda_scale.analysis import breakdown
from andromeda_scale.analysis.throughput import step_times, throughput
from andromeda_scale.contracts.parity import First
from andromeda_scale.contracts.planned import PlannedRepeat
from andromeda_scale.contracts.records import (
    RankRecord,
    RepeatRecord,
    read_repeat,
    read_status,
)
from andromeda_scale.merge import ablation, blame, devices, energy, memory, parity
from andromeda_scale.merge.checks import contradictions
from andromeda_scale.merge.communication import launch_kinds
from andromeda_scale.merge.facts import repeat_facts
from andromeda_scale.merge.profile import profile_columns
from andromeda_scale.merge.ranks import RankTable, rank_table
from andromeda_scale.merge.steps import Series, repeat_steps
from andromeda_scale.merge.system import distortions, read_system
from andromeda_scale.merge.values import Columns, integer, most, number, of_ranks, text
from andromeda_scale.metrics import METRICS
from andromeda_scale.suite.config import Case

MAX_NAMED = 3  # contradictions in the cause of an invalid repeat
# Metrics that relate rows to each other, or to a device's peak: made from cases, not repeats.
OF_CASES = (
    "speedup",
    "half_width",
    "rank_hours_per_gtoken",
    "efficiency",
    "karp_flatt",
    "efficiency_common",
    "mfu",
    "estimate_error",
    "mfu_of_mamf",
    "busbw_gbps",
    "busbw_probe_gbps",
    "busbw_share",
    *breakdown.COLUMNS,
)

COLUMNS: dict[str, str] = {
    "case_id": "str",
    "repeat": "int64",
    "status": "str",
    "cause": "str",
    "phase": "str",  # where a repeat that is not ok ended
    "rank": "Int64",
    "host": "str",
    "unfinished_ranks": "str",
    "stderr_tail": "str",  # the last lines of the rank that ended it
    "pooled": "bool",  # its numbers are in the case's row
    "device_name": "str",
    "software": "str",
    "threads": "Int64",  # per rank, the most of any
    "fingerprint": "str",
    "hosts": "str",
    "started_unix_s": "float64",
    "ended_unix_s": "float64",
    "outside_s": "float64",  # seconds the repeat took outside the ranks' phases
    "warmup_steps": "Int64",
    "warmup_ended_by": "str",  # the rule that ended it; max_steps: none before its upper bound
    "num_parameters": "Int64",  # of the module that rank 0 built
    "num_steps": "Int64",
    "num_profile_steps": "Int64",
    **parity.REPEAT_COLUMNS,
    "graph_breaks": "Int64",  # of torch.compile, the most of any rank
    "tokens": "float64",
    "window_s": "float64",
    **{name: "float64" for name in METRICS if name not in OF_CASES},
    **blame.COLUMNS,
    **ablation.COLUMNS,
    **memory.COLUMNS,
    **energy.COLUMNS,
    "throttled": "str",  # ranks whose GPU was held below its clocks in the measured window, and why
    "facts": "str",  # what ranks read back, canonical JSON; empty unless the repeat is ok
}


class Ending(NamedTuple):
    """How a repeat ended, and where, if not ok."""

    status: str
    cause: str = ""
    phase: str = ""
    rank: int | None = None
    host: str = ""


@dataclass
class MergedRepeat:
    """One repeat's row, its ranks' rows (None if it never started), and what was not used."""

    row: dict[str, Any]
    ranks: Columns | None
    problems: list[str] = field(default_factory=list)
    numbers: frozenset[str] = frozenset()  # what the row has because the repeat is ok
    collectives: list[dict[str, Any]] = field(default_factory=list)  # their kinds, if it is ok
    steps: list[Series] = field(default_factory=list)  # of warm-up and window, however it ended
    distortions: tuple[str, ...] = ()  # by variables that nobody asked for
    first: First | None = None  # its losses and norms, where cases are compared with each other

    def condemn(self, cause: str) -> None:
        """It is `diverged` by what other launches show, and has no numbers."""
        for name in self.numbers:
            self.row.pop(name, None)
        self.row |= _ended(Ending("diverged", cause))


def merge_repeat(run_dir: Path, item: PlannedRepeat, case: Case) -> MergedRepeat:
    """Read one planned repeat's directory; never raises for what is in it."""
    row: dict[str, Any] = {"case_id": item.case_id, "repeat": item.repeat}
    directory = run_dir / item.folder
    if item.skip is not None:
        return MergedRepeat(row | _ended(Ending("skipped", item.skip)), None)
    if not directory.is_dir():
        return MergedRepeat(row | _ended(Ending("pending", "not ended")), None)
    size = case.world.size
    record = read_repeat(directory, item.case_id, item.repeat, size)
    table = rank_table(record, item, size, case.train.mode)
    system = read_system(record, table)
    status, unread = read_status(directory / "status.json")
    ending = _ending(status, record, table, unread)
    row |= system.columns() | _about(status, table)
    if 0 in record.ranks:
        row |= _model(record.ranks[0]) | _warmup(record.ranks[0])
        row |= parity.of_rank_0(record.ranks[0])
    numbers: dict[str, Any] = {}
    if ending.status == "ok":
        numbers, why = _numbers(table, case)
        if why:
            ending = Ending("invalid", why)
        if numbers and "energy" in case.collect:
            numbers |= energy.energy_columns(record, table)
        if numbers:
            numbers |= ablation.ablation_columns(
                record, size, table.problems, profiled=bool(table.profile)
            )
        if numbers and table.profile:
            numbers |= blame.of_launch(run_dir, item.device, table)
        if numbers:
            facts = repeat_facts(record, table.problems)
            numbers["facts"] = json.dumps(facts, sort_keys=True)
    found = [str(problem) for problem in record.problems]
    found += [*([unread] if unread else []), *table.problems, *system.problems]
    where = f"{item.case_id}/{item.repeat}"
    return MergedRepeat(
        row | numbers | _ended(ending),
        table.columns,
        [f"{where}: {problem}" for problem in found],
        frozenset(numbers),
        launch_kinds(record, case.world.ranks_per_node) if numbers and table.profile else [],
        repeat_steps(record, item.case_id, item.repeat),
        distortions(record, item.device, case.env),
        parity.first_of(record) if case.parity == "cross" else None,
    )


def merge_parity_launch(run_dir: Path, item: PlannedRepeat, world_size: int) -> dict[str, Any]:
    """`status`, `cause` and what was compared of a launch made for parity alone."""
    directory = run_dir / item.folder
    status, _ = read_status(directory / "status.json")
    if not status:
        return {}
    record = read_repeat(directory, item.case_id, item.repeat, world_size)
    ending = _ending(status, record, rank_table(record, item, world_size))
    found = parity.of_rank_0(record.ranks[0]) if 0 in record.ranks else {}
    return {"status": ending.status, "cause": ending.cause, **found}


def _ending(
    status: dict[str, Any], record: RepeatRecord, table: RankTable, unread: str | None = None
) -> Ending:
    """status.json's word, unless a rank contradicts it: ok means complete end records.

    `unread`: why there is no word, if it is not that there is no file.
    """
    if not status:
        return Ending("interrupted", f"did not finish: {unread or 'there is no status.json'}")
    if status["status"] != "ok":
        return _ending_of(status, status.get("rank"), status.get("host"))
    for rank in sorted(record.ranks.values(), key=lambda rank: rank.rank):
        if rank.end is not None and rank.end["status"] != "ok":
            return _ending_of(rank.end, rank.rank, rank.start.get("host"))
    if table.unfinished:
        why = f"; {record.problems[0]}" if record.problems else ""
        return Ending("invalid", f"no end record of {of_ranks(table.unfinished)}{why}")
    return Ending("ok")


def _ending_of(words: dict[str, Any], rank: Any, host: Any) -> Ending:
    return Ending(
        status=words["status"],
        cause=str(words.get("cause") or ""),
        phase=str(words.get("phase") or ""),
        rank=rank if type(rank) is int and abs(rank) < 2**31 else None,
        host=str(host or ""),
    )


def _ended(ending: Ending) -> dict[str, Any]:
    return {**ending._asdict(), "pooled": False}


def _about(status: dict[str, Any], table: RankTable) -> dict[str, Any]:
    threads = most(table.columns["threads"])
    hosts = dict.fromkeys(host for host in table.columns["host"] if host)
    return {
        "unfinished_ranks": of_ranks(table.unfinished) if table.unfinished else "",
        "hosts": ", ".join(hosts),
        "stderr_tail": _last_words(status.get("stderr_tail")),
        "threads": None if math.isnan(threads) else int(threads),
        **{name: number(status, name) for name in ("started_unix_s", "ended_unix_s", "outside_s")},
    }


def _last_words(lines: Any) -> str:
    return "\n".join(map(str, lines)) if isinstance(lines, list) else ""


def _model(rank_0: RankRecord) -> dict[str, Any]:
    """What rank 0 built."""
    count = number(rank_0.values("setup", "model"), "num_parameters")
    return {"num_parameters": int(count) if 0 < count < 2**63 else None}  # NaN is neither


def _warmup(rank_0: RankRecord) -> dict[str, Any]:
    """How warm-up ended, which rank 0 decides for all."""
    values = rank_0.values("warmup", "warmup")
    return {
        "warmup_steps": integer(values, "steps"),
        "warmup_ended_by": text(values, "ended_by"),
    }


def _numbers(table: RankTable, case: Case) -> tuple[dict[str, Any], str]:
    """METRICS of an ok repeat, or why it cannot have any."""
    columns, step_s = table.columns, table.step_s
    if step_s is None:
        unequal = "the ranks' step times of phase measure are missing or unequal in number"
        return {}, table.bad_steps or unequal
    window_s, tokens = columns["window_s"], columns["tokens"]
    if not ((window_s > 0) & (tokens > 0)).all() or not math.isfinite(tokens.sum()):
        bad = ~((window_s > 0) & (tokens > 0))
        who = of_ranks(np.flatnonzero(bad)) if bad.any() else "all ranks"
        return {}, f"the window or tokens of phase measure are missing on {who}"
    wrong = contradictions(table, case)
    if wrong:
        return {}, "; ".join(wrong[:MAX_NAMED]) + ("; ..." if len(wrong) > MAX_NAMED else "")
    row: dict[str, Any] = {
        "num_steps": step_s.shape[1],
        "tokens": float(tokens.sum()),
        "window_s": float(window_s.max()),
        **step_times(step_s),
        **throughput(window_s, tokens, step_s.shape[1]),
        **{name: most(columns[name]) for name in ("setup_s", "first_step_s")},
        **memory.of_repeat(columns, table.problems),
        "throttled": devices.throttled_ranks(list(columns["throttled"])),
    }
    # One rank that had to compile makes the launch a cold one: the others wait for it.
    cold_s, breaks = most(columns["compile_cold_s"]), most(columns["graph_breaks"])
    if math.isnan(cold_s):
        row["compile_warm_s"] = most(columns["compile_warm_s"])
    else:
        row["compile_cold_s"] = cold_s
    if case.train.compile and not math.isnan(breaks):
        row["graph_breaks"] = int(breaks)
    if table.profile:
        row |= profile_columns(table, row["step_time_s"])
    return row, ""
