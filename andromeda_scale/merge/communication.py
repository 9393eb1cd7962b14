"""The collectives of a case, a row a kind, and how near they and its products came to a probe."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from andromeda_scale.analysis.fabric import Ceilings, bandwidths
from andromeda_scale.contracts.records import RepeatRecord
from andromeda_scale.merge.values import number, text
from andromeda_scale.suite.config import Case
from andromeda_scale.suite.schema import MAX_RANKS

Row = dict[str, Any]

_SUMS = (
    "count_per_step",
    "bytes_per_step",
    "wire_bytes_per_step",
    "total_s_per_step",
    "transfer_s_per_step",
)
_ADDED = (  # later
    "exposed_s_per_step",
    "overlapped_s_per_step",
    "exposed_wait_s_per_step",
    "moving_s_median",  # transfers that share the link counted once
)
_ALL = (*_SUMS, *_ADDED)
_KIND: dict[str, str] = {
    "op": "str",
    "backend_op": "str",  # what the backend ran
    "dtype": "str",
    "group_size": "int64",
    "group_nodes": "int64",
    "scalar": "bool",  # a single number, such as a norm: not probed
}
COLUMNS: dict[str, str] = {
    "case_id": "str",
    **_KIND,
    **dict.fromkeys(_ALL, "float64"),  # of a rank, mean over ranks and launches
    "bytes_per_call": "float64",
    "busbw_gbps": "float64",
    "busbw_probe_gbps": "float64",
    "busbw_share": "float64",
    "busbw_cause": "str",  # why there is nothing to compare with
}
# Of a case's row: its kind with the most wire bytes, and its products.
CASE_COLUMNS: dict[str, str] = {
    "busbw_op": "str",
    "busbw_gbps": "float64",
    "busbw_probe_gbps": "float64",
    "busbw_share": "float64",
    "busbw_cause": "str",
    "mamf_flops_per_s": "float64",
    "mfu_of_mamf": "float64",
    "mamf_cause": "str",  # why there is none
}


def launch_kinds(record: RepeatRecord, ranks_per_node: int) -> list[Row]:
    """The kinds of collectives of one launch, means over the ranks that took part."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for rank in record.ranks.values():
        kinds = rank.values("profile", "communication").get("collectives")
        mine: dict[tuple[Any, ...], Row] = {}
        for row in (_read(kind, ranks_per_node) for kind in _list(kinds)):
            if row is not None:  # a rank of several groups of one size has one row of them
                _add(mine.setdefault(_key(row), dict.fromkeys(_ALL, 0.0)), row)
        for key, sums in mine.items():
            found.setdefault(key, []).append(sums)
    return [dict(zip(_KIND, key, strict=True)) | _means(rows) for key, rows in found.items()]


def case_kinds(
    case: Case, row: Mapping[str, Any], launches: Sequence[list[Row]], ceilings: Ceilings
) -> list[Row]:
    """A case's kinds over its pooled launches, most wire bytes first, held against a probe.

    busbw = bytes x factor / transfer seconds, all of the median step: the mean of a kind whose
    messages differ in size, looked up at their mean size.
    """
    found: dict[tuple[Any, ...], list[Row]] = {}
    for kinds in launches:
        for kind in kinds:
            found.setdefault(_key(kind), []).append(kind)
    rows = []
    for key, same in found.items():
        kind = {"case_id": row["case_id"], **dict(zip(_KIND, key, strict=True)), **_means(same)}
        rows.append(kind | _bandwidth(kind, case, row, ceilings))
    return sorted(rows, key=lambda kind: kind["wire_bytes_per_step"], reverse=True)


def against_ceilings(row: Mapping[str, Any], kinds: Sequence[Row], ceilings: Ceilings) -> Row:
    """CASE_COLUMNS of a case with numbers."""
    if not row.get("tokens_per_s"):
        return {}
    found: Row = {}
    main = next((kind for kind in kinds if not kind["scalar"]), None)
    if main is not None:
        found = {name: main[name] for name in CASE_COLUMNS if name in main}
        found["busbw_op"] = main["op"]
    flops, why = ceilings.matmul(
        row["device"], row["device_name"], row["precision"], row["threads_per_rank"]
    )
    if flops is None or not row.get("flops_per_token"):
        return found | {"mamf_cause": why or "the model has no closed form of its FLOPs"}
    done = row["tokens_per_s"] * row["flops_per_token"] / row["world_size"]
    return found | {"mamf_flops_per_s": flops, "mfu_of_mamf": done / flops}


def _bandwidth(kind: Row, case: Case, row: Mapping[str, Any], ceilings: Ceilings) -> Row:
    """What a kind reached, and what the probe did at its message size."""
    size, calls = kind["bytes_per_step"], kind["count_per_step"]
    if not (size > 0 and calls > 0 and kind["transfer_s_per_step"] > 0):
        return {"busbw_cause": "no seconds of transfer"}
    if kind["group_size"] == 1:
        return {"bytes_per_call": size / calls, "busbw_cause": "one rank sends nothing"}
    median_s = kind["moving_s_median"]
    seconds = median_s if median_s > 0 else kind["transfer_s_per_step"]  # of an older record
    reached = bandwidths(kind["op"], kind["group_size"], size, seconds)
    found: Row = {"bytes_per_call": size / calls, "busbw_gbps": reached.busbw_gbps}
    if kind["scalar"]:
        return found | {"busbw_cause": "a single number"}
    probed, why = ceilings.busbw(
        row["device"],
        row["device_name"],
        kind["op"],
        size / calls,
        group_size=kind["group_size"],
        group_nodes=kind["group_nodes"],
        world_size=case.world.size,
    )
    if probed is None:
        return found | {"busbw_cause": why}
    return found | {"busbw_probe_gbps": probed, "busbw_share": reached.busbw_gbps / probed}


def _read(kind: Any, ranks_per_node: int) -> Row | None:
    """One kind as a rank wrote it; None if it cannot be used."""
    if not isinstance(kind, dict) or not text(kind, "op"):
        return None
    ranks = [r for r in _list(kind.get("ranks")) if type(r) is int and 0 <= r < MAX_RANKS]
    row: Row = {name: number(kind, name) for name in _SUMS}
    if not ranks or any(math.isnan(value) for value in row.values()):
        return None
    row |= {name: number(kind, name) for name in _ADDED}
    return row | {
        "op": text(kind, "op"),
        "backend_op": text(kind, "backend_op"),
        "dtype": text(kind, "dtype"),
        "group_size": len(ranks),
        "group_nodes": len({rank // ranks_per_node for rank in ranks}),
        "scalar": kind.get("scalar") is True,
    }


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in _KIND)


def _add(sums: Row, row: Row) -> None:
    for name in _ALL:
        sums[name] += row[name]


def _means(rows: Iterable[Row]) -> Row:
    rows = list(rows)
    return {name: float(np.mean([row[name] for row in rows])) for name in _ALL}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
