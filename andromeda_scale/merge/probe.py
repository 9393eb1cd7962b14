"""Records of a probe -> a row a point, and the ceilings that are kept of them. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from andromeda_scale.analysis.fabric import bandwidths
from andromeda_scale.analysis.results import rows_of, typed_rows
from andromeda_scale.contracts.planned import Plan, PlannedRepeat
from andromeda_scale.contracts.probed import Ceiling, Point, Probed
from andromeda_scale.contracts.records import RepeatRecord, read_repeat, read_status
from andromeda_scale.merge.ranks import rank_table
from andromeda_scale.merge.system import read_system
from andromeda_scale.suite.config import Case
from andromeda_scale.suite.world import written

FILE = "probe.parquet"

COLUMNS: dict[str, str] = {
    "case_id": "str",
    "world_size": "int64",
    "nodes": "int64",
    "ranks_per_node": "int64",
    "device": "str",
    "device_name": "str",
    "status": "str",  # ok; skipped: left out, unavailable: not there; of a launch without kind
    "cause": "str",
    "kind": "str",  # matmul, memory, transfer, collective; empty: how a launch failed
    "op": "str",
    "dtype": "str",
    "threads": "Int64",  # of a CPU
    "group_size": "Int64",  # the first ranks of the world
    "group_nodes": "Int64",
    "shape": "str",  # m x n x k
    "size_bytes": "Int64",  # S of a collective; bytes moved by one call of the others
    "rested": "bool",  # measured after a pause, not in the middle of a sweep
    "calls": "Int64",  # in a block
    "blocks": "Int64",
    "time_s": "float64",  # of a call: see `_row`
    "time_mad_s": "float64",  # median absolute deviation over blocks
    "flops_per_s": "float64",
    "bytes_per_s": "float64",
    "algbw_gbps": "float64",
    "busbw_gbps": "float64",
    "host": "str",
    "software": "str",
    "quick": "bool",
    "measured_unix_s": "float64",
}
_KEY = ("kind", "op", "dtype", "threads", "shape", "rested", "group_size", "size_bytes")


def probe_points(run_dir: Path, plan: Plan) -> tuple[pd.DataFrame, list[str]]:
    """(a row a point in the order they were measured, what was not used).

    A launch that failed keeps the points before, and has one row more with status and cause.
    """
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    for item in plan.repeats:
        case = plan.cases[item.case_id]
        found, said = _launch(run_dir, item, case)
        rows += found
        problems += [f"{item.case_id}: {problem}" for problem in said]
    return typed_rows(rows, COLUMNS), problems


def _launch(
    run_dir: Path, item: PlannedRepeat, case: Case
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of one launch."""
    world = case.world
    head: dict[str, Any] = {
        "case_id": item.case_id,
        "world_size": world.size,
        "nodes": world.nodes,
        "ranks_per_node": world.ranks_per_node,
        "device": item.device,
        "quick": case.model_name == "quick",
        "rested": False,
    }
    directory = run_dir / item.folder
    if item.skip is not None:
        return [head | {"status": "skipped", "cause": item.skip}], []
    if not directory.is_dir():
        return [head | {"status": "pending", "cause": "not ended"}], []
    status, unread = read_status(directory / "status.json")
    problems = [unread] if unread else []
    record = read_repeat(directory, item.case_id, item.repeat, world.size)
    table = rank_table(record, item, world.size)
    system = read_system(record, table)
    head |= {
        "device_name": system.device_name,
        "software": system.software,
        "host": ", ".join(dict.fromkeys(name for name in table.columns["host"] if name)),
        "measured_unix_s": _seconds(status.get("ended_unix_s")),
    }
    word = status.get("status", "interrupted")
    rows = [head | row for row in _points(record, world.ranks_per_node, word == "ok", problems)]
    if word != "ok" or not rows:
        cause = status.get("cause") or ("did not finish" if word != "ok" else "wrote no point")
        who = f"rank {status['rank']}: " if isinstance(status.get("rank"), int) else ""
        rows.append(head | {"status": word if word != "ok" else "invalid", "cause": who + cause})
    return rows, [str(p) for p in record.problems] + problems + system.problems


def _points(
    record: RepeatRecord, ranks_per_node: int, whole: bool, problems: list[str]
) -> Iterable[dict[str, Any]]:
    """A row a point of which every rank of its group wrote the same blocks."""
    points: dict[tuple[Any, ...], dict[int, Point]] = {}
    for rank in record.ranks.values():
        for values in rank.points:
            try:
                point = Point.model_validate(values)
            except ValidationError as error:
                problems.append(f"rank {rank.rank}: a point cannot be read: {_first(error)}")
                continue
            key = tuple(getattr(point, name) for name in _KEY)
            points.setdefault(key, {})[rank.rank] = point
    for key, of_ranks in points.items():
        first = next(iter(of_ranks.values()))
        alike = {(p.calls, len(p.block_ns), p.left_out is None) for p in of_ranks.values()}
        everyone = len(of_ranks) == first.group_size == 1 + max(of_ranks)
        if not everyone or len(alike) > 1:
            if whole:
                problems.append(f"point {key}: not all ranks of its group wrote it alike")
            continue
        yield _row(first, np.array([p.block_ns for p in of_ranks.values()]), ranks_per_node)


def _row(point: Point, block_ns: np.ndarray, ranks_per_node: int) -> dict[str, Any]:
    """Values of one point from (ranks, blocks) nanoseconds.

    The time of a collective is the max over ranks of each block, then the median over blocks; that
    of anything else its fastest block, as STREAM and the search for MAMF take it.
    """
    row: dict[str, Any] = {
        **point.model_dump(include={*_KEY} - {"shape"}),
        "shape": " x ".join(map(str, point.shape or ())),
        "group_nodes": -(-point.group_size // ranks_per_node),
        "status": "ok",
    }
    if point.left_out is not None or not point.calls or not block_ns.size:
        why = point.left_out or "without a block"
        missing = why.startswith("unavailable: ")
        status = "unavailable" if missing else "skipped"
        return row | {"status": status, "cause": why.removeprefix("unavailable: ")}
    calls_s = block_ns.max(axis=0) / point.calls / 1e9
    median_s = float(np.median(calls_s))
    time_s = median_s if point.kind == "collective" else float(calls_s.min())
    row |= {
        "calls": point.calls,
        "blocks": len(calls_s),
        "time_s": time_s,
        "time_mad_s": float(np.median(np.abs(calls_s - median_s))),
    }
    if point.kind == "matmul" and point.shape:
        m, n, k = point.shape
        return row | {"flops_per_s": 2.0 * m * n * k / time_s}
    if point.kind == "collective" and point.size_bytes:
        found = bandwidths(point.op, point.group_size, point.size_bytes, time_s)
        return row | found._asdict()
    return row | {"bytes_per_s": (point.size_bytes or 0) / time_s}


def ceilings(points: pd.DataFrame, run_dir: Path) -> dict[str, dict[str, Any]]:
    """What is kept of a probe, by "<device>/<world>".

    Of matrix products the fastest shape of each dtype and number of threads, of memory the
    largest arrays, which no cache holds; of collectives every point.
    """
    kept: dict[str, dict[str, Any]] = {}
    worlds: dict[tuple[str, int, int], list[dict[Any, Any]]] = {}
    for row in rows_of(points[points["status"] == "ok"]):
        worlds.setdefault((row["device"], row["world_size"], row["nodes"]), []).append(row)
    for (device, size, nodes), rows in worlds.items():
        best: dict[tuple[Any, ...], dict[Any, Any]] = {}
        for row in rows:
            key = tuple(row[n] for n in ("kind", "op", "dtype", "group_size"))
            key += (None if pd.isna(row["threads"]) else row["threads"],)
            key += (row["size_bytes"],) if row["kind"] == "collective" else ()
            if key not in best or _rank_of(row) > _rank_of(best[key]):
                best[key] = row
        kept[f"{device}/{written(nodes, size // nodes)}"] = Probed(
            world_size=size,
            device_name=rows[0]["device_name"],
            software=rows[0]["software"],
            host=rows[0]["host"],
            run_dir=str(run_dir),
            measured_unix_s=rows[0]["measured_unix_s"],
            quick=rows[0]["quick"],
            points=tuple(map(_ceiling, best.values())),
        ).model_dump(mode="json", exclude_none=True)
    return kept


def _rank_of(row: dict[Any, Any]) -> float:
    """By which the better of two points of one kind is chosen."""
    return float(row["flops_per_s"] if row["kind"] == "matmul" else row["size_bytes"])


def _ceiling(row: dict[Any, Any]) -> Ceiling:
    values = {k: row[k] for k in Ceiling.model_fields if not pd.isna(row[k])}
    return Ceiling.model_validate(values)


def _first(error: ValidationError) -> str:
    return str(error.errors()[0]["msg"])


def _seconds(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and value >= 0 else 0.0
