"""Writes small run directories as a worker and its agents would, for tests of what reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from andromeda_scale.contracts.planned import Plan, PlannedRepeat
from andromeda_scale.suite.config import Case, Measure, StrategySpec
from andromeda_scale.suite.training import Train
from andromeda_scale.suite.world import World

MODEL = {
    "family": "llama",
    "vocab_size": 256,
    "d_model": 64,
    "d_ff": 128,
    "num_layers": 1,
    "num_heads": 2,
}

# What a rank of ddp reads back of one step in fp32.
DESCRIBED = {
    "wrapper": "DistributedDataParallel",
    "mode": "train_step",
    "dtypes": {
        "parameters": "float32",
        "master": "float32",
        "compute": "float32",
        "gradients": "float32",
        "reduction": "float32",
        "optimizer_state": "float32",
    },
    "optimizer": {"class": "AdamW", "kernel": "fused", "weight_decay": 0.1},
    "gradient_clipping": 1.0,
    "matmul_precision": "highest",
    "compile": None,
}


def make_case(strategy: str = "ddp", world: int = 1, **settings: Any) -> Case:
    """A case of one node."""
    train = settings.pop("train", {})
    return Case(
        model_name="tiny",
        model=MODEL,
        strategy=StrategySpec(name=strategy, options=settings.pop("options", {})),
        world=World(ranks_per_node=world),
        train=Train(seq_len=16, micro_batch_size=2).model_copy(update=train),
        measure=Measure(steps=4, repeats=3, profile_steps=8),
        **settings,
    )


def write_plan(
    directory: Path, cases: list[Case], repeats: int = 3, skip: dict[str, str] | None = None
) -> None:
    """plan.json, repeats outermost."""
    items = tuple(
        PlannedRepeat(case_id=case.case_id, repeat=repeat, skip=(skip or {}).get(case.case_id))
        for repeat in range(repeats)
        for case in cases
    )
    plan = Plan(
        suite_name="test",
        question="What does a rank buy?",
        cases={case.case_id: case for case in cases},
        repeats=items,
    )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "plan.json").write_text(plan.model_dump_json())


def rank_lines(
    rank: int,
    step_s: list[float],
    *,
    tokens: int = 128,
    compute_s: list[float] | None = None,
    charged_s: list[float] | None = None,
    peak_memory_bytes: int = 1000,
    host: str = "node0",
    describe: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """The lines of a rank that finished; the window is the sum of its steps."""
    step_ns = [round(value * 1e9) for value in step_s]
    measured = {"step_ns": step_ns, "window_ns": sum(step_ns), "tokens": tokens}
    memory = {"peak_memory_bytes": peak_memory_bytes}
    phases: dict[str, Any] = {
        "setup": {"memory": memory, "data": {"fingerprint": "0123" if rank == 0 else None}},
        "warmup": {
            "step_time": {"step_ns": [step_ns[0] * 2, step_ns[0]]},
            "warmup": {"ended_by": "slope", "steps": 2},
        },
        "measure": {"step_time": measured, "memory": memory},
    }
    if compute_s is not None:
        num = len(compute_s)
        series = {
            "step_s": [0.2] * num,
            "compute_s": compute_s,
            "exposed_wait_s": [0.01] * num,
            "exposed_transfer_s": [0.03] * num,
            "data_s": [0.002] * num,
            "host_s": [0.158 - value for value in compute_s],
            "comm_total_s": [0.05] * num,
            "comm_exposed_s": [0.04] * num,
            "comm_overlapped_s": [0.01] * num,
        }
        if charged_s is not None:
            series["charged_s"] = charged_s
        phases["profile"] = {"communication": series}
    start = {"host": host, "local_rank": rank, "node_rank": 0, "device": "cpu", "threads": 1}
    return [
        {"kind": "start", "rank": rank, **start},
        {"kind": "describe", "rank": rank, "values": {**DESCRIBED, **(describe or {})}},
        *(
            {"kind": "phase", "rank": rank, "phase": p, "start_s": 1.0, "end_s": 3.5, "values": v}
            for p, v in phases.items()
        ),
        {"kind": "end", "rank": rank, "status": "ok"},
    ]


def write_repeat(
    directory: Path,
    case: Case,
    repeat: int,
    lines: list[dict[str, Any]],
    status: dict[str, Any] | None = None,
    environment: dict[str, Any] | None = None,
) -> Path:
    """One node's file and status.json; returns the repeat's directory."""
    place = directory / "cases" / case.case_id / str(repeat)
    place.mkdir(parents=True)
    if environment is not None:
        node = {"kind": "node", "rank": None, "values": {"environment": environment}}
        lines = [node, *lines]
    head = {"v": 1, "case_id": case.case_id, "repeat": repeat}
    (place / "node-0.jsonl").write_text("".join(json.dumps(head | line) + "\n" for line in lines))
    (place / "status.json").write_text(json.dumps(status or {"v": 1, "status": "ok"}))
    return place
