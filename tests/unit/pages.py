"""Runs whose pages tests look at: one with something in every figure, one that means harm."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from run_files import make_case, rank_lines, write_plan, write_repeat

from andromeda_scale.analysis.results import Results
from andromeda_scale.contracts.probed import Ceiling, Probed
from andromeda_scale.merge import merge_run

REPEATS = 2
HOSTILE = (
    "<b></script><script>alert(1); window.ran = 1</script>"
    '<img src=x onerror="window.ran = 2"><a href="javascript:window.ran=3">{{ 7*7 }}'
)


def rich_run(directory: Path, *, worlds: tuple[int, ...] = (1, 2), **lines: Any) -> Path:
    """ddp and fsdp2 with profiled steps, memory and collectives; zero3 out of memory."""
    cases = [make_case(name, world) for name in ("ddp", "fsdp2") for world in worlds]
    failed = make_case("zero3", worlds[-1])
    write_plan(directory, [*cases, failed], repeats=REPEATS)
    for case in cases:
        for repeat in range(REPEATS):
            size = case.world.size
            of_rank = [
                rank_lines(rank, [0.1] * 4, compute_s=[0.1 + 0.02 * rank] * 20, **lines)
                for rank in range(size)
            ]
            for rank in range(size):
                add_memory_and_collectives(of_rank[rank], size)
            write_repeat(directory, case, repeat, [line for one in of_rank for line in one])
    status = {"status": "oom", "rank": 0, "cause": "2 GiB", "stderr_tail": ["OutOfMemoryError"]}
    for repeat in range(REPEATS):
        write_repeat(directory, failed, repeat, [], status=status)
    return directory


def add_memory_and_collectives(lines: list[dict[str, Any]], size: int) -> None:
    for line in lines:
        if line["kind"] == "describe":
            line["values"]["bytes"] = {"parameters": 400, "gradients": 400, "optimizer_state": 800}
        if line.get("phase") == "profile":
            kind = {
                "op": "all_reduce", "backend_op": "gloo:all_reduce", "dtype": "Float",
                "ranks": list(range(size)), "count_per_step": 2.0, "bytes_per_step": 2e6,
                "wire_bytes_per_step": 2e6, "total_s_per_step": 0.02, "transfer_s_per_step": 0.01,
                "exposed_s_per_step": 0.01, "overlapped_s_per_step": 0.01,
                "exposed_wait_s_per_step": 0.005, "moving_s_median": 0.01, "scalar": False,
            }  # fmt: skip
            line["values"]["communication"]["collectives"] = [kind]


def ceilings() -> dict[str, Any]:
    points = tuple(
        Ceiling(kind="collective", op="all_reduce", dtype="float32", size_bytes=size, group_size=2,
                group_nodes=1, time_s=1e-3, busbw_gbps=size / 1e6)
        for size in (10**5, 10**6)
    )  # fmt: skip
    probed = Probed(world_size=2, device_name="x", software="", host="h", run_dir="r",
                    measured_unix_s=1.0, quick=False, points=points)  # fmt: skip
    return {"cpu/2": probed.model_dump(mode="json", exclude_none=True)}


def hostile_run(directory: Path) -> Path:
    """A case that ended ok and one that crashed, with HOSTILE wherever a record holds text."""
    case = make_case("ddp", 2)
    failed = make_case("fsdp2", 2)
    write_plan(directory, [case, failed], repeats=1)
    plan = json.loads((directory / "plan.json").read_text())
    plan["question"] = plan["suite_name"] = HOSTILE
    for one in plan["cases"].values():
        one["model_name"] = HOSTILE
        one["strategy"]["options"] = {HOSTILE: HOSTILE}
    (directory / "plan.json").write_text(json.dumps(plan))
    lines = [
        line
        for rank in range(2)
        for line in rank_lines(rank, [0.1] * 4, compute_s=[0.1] * 20, host=HOSTILE,
                               describe={"wrapper": HOSTILE, "matmul_precision": HOSTILE})
    ]  # fmt: skip
    ids = list(plan["cases"])
    for case_id, status in zip(
        ids,
        ({"v": 1, "status": "ok"}, {"v": 1, "status": "crashed", "cause": HOSTILE, "host": HOSTILE,
                                    "phase": HOSTILE, "stderr_tail": [HOSTILE]}),
        strict=True,
    ):  # fmt: skip
        place = directory / "cases" / case_id / "0"
        place.mkdir(parents=True)
        head = {"v": 1, "case_id": case_id, "repeat": 0}
        text = "".join(json.dumps(head | line) + "\n" for line in lines)
        (place / "node-0.jsonl").write_text(text)
        (place / "status.json").write_text(json.dumps(status))
    return directory


@cache
def merged(directory: Path) -> Results:
    return merge_run(directory)
