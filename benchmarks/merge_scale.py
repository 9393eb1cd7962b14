"""Seconds and memory of merging a synthetic run of many ranks, at a quarter, half and full size.

    python benchmarks/merge_scale.py [--ranks 16384] [--steps 200]

Writes the records of one repeat, 8 ranks a node, as a worker and its agents write them, then
merges them in a fresh process. Merging grows linearly if the last column stays constant.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from andromeda_scale.analysis.breakdown import CLASSES
from andromeda_scale.contracts.planned import Plan, PlannedRepeat
from andromeda_scale.contracts.records import SCHEMA_VERSION
from andromeda_scale.suite.config import Case, Measure, StrategySpec
from andromeda_scale.suite.training import Train
from andromeda_scale.suite.world import World

RANKS_PER_NODE = 8
WARMUP_STEPS = 20
PROFILE_STEPS = 20
MODEL = {
    "family": "llama",
    "vocab_size": 256,
    "d_model": 128,
    "d_ff": 256,
    "num_layers": 2,
    "num_heads": 2,
}
ENVIRONMENT = {
    "versions": {"python": "3.11.9", "torch": "2.13.0", "deepspeed": "0.19.8"},
    "source_sha256": "0" * 16,
    "machine": "x86_64",
    "cpu_model": "synthetic",
    "cpu_cores": 128,
    "gpu_driver": "580.00",
    "gpus": [{"name": "NVIDIA H100 80GB HBM3", "uuid": f"GPU-{i}"} for i in range(RANKS_PER_NODE)],
}


def write_run(directory: Path, num_ranks: int, num_steps: int) -> None:
    """A run directory with one finished repeat of one case of `num_ranks` ranks."""
    case = Case(
        model_name="synthetic",
        model=MODEL,
        strategy=StrategySpec(name="ddp"),
        train=Train(seq_len=8192),
        world=World(nodes=num_ranks // RANKS_PER_NODE, ranks_per_node=RANKS_PER_NODE),
        parity="off",
        measure=Measure(steps=num_steps, repeats=1, profile_steps=PROFILE_STEPS),
    )
    write_plan(directory, "merge_scale", [case])
    write_repeat(directory, case, 0, np.random.default_rng(0))


def write_plan(directory: Path, suite_name: str, cases: Sequence[Case]) -> None:
    """plan.json of one launch of each case."""
    plan = Plan(
        suite_name=suite_name,
        question="Which strategy, at which batch, on how many GPUs?",
        cases={case.case_id: case for case in cases},
        repeats=tuple(PlannedRepeat(case_id=c.case_id, repeat=0, device="cuda") for c in cases),
    )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "plan.json").write_text(plan.model_dump_json())


def write_repeat(
    directory: Path, case: Case, repeat: int, rng: np.random.Generator, step_s: float = 0.1
) -> None:
    """What the nodes of a finished repeat leave, at `step_s` a step."""
    place = directory / "cases" / case.case_id / str(repeat)
    place.mkdir(parents=True)
    for node in range(case.world.nodes):
        lines: list[dict[str, object]] = [
            {"kind": "node", "rank": None, "values": {"environment": ENVIRONMENT}}
        ]
        for local in range(case.world.ranks_per_node):
            lines += rank_lines(case, node, local, rng, step_s)
        head = {"v": SCHEMA_VERSION, "case_id": case.case_id, "repeat": repeat}
        text = "".join(json.dumps(head | line) + "\n" for line in lines)
        (place / f"node-{node}.jsonl").write_text(text)
    (place / "status.json").write_text(json.dumps({"v": 1, "status": "ok", "outside_s": 1.0}))


def rank_lines(
    case: Case, node: int, local: int, rng: np.random.Generator, step_s: float
) -> list[dict[str, object]]:
    """What one rank writes: every phase with its raw values."""
    rank, world_size = node * case.world.ranks_per_node + local, case.world.size
    num_steps, num_profiled = case.measure.steps, case.measure.profile_steps
    step_ns = rng.normal(step_s * 1e9, step_s * 1e7, num_steps).astype(int)
    memory = {"peak_memory_bytes": int(6e10), "host": {"rss_bytes": int(3e9)}}
    classes = {name: rng.normal(step_s / 5, step_s / 100, num_profiled) for name in CLASSES}
    exposed = classes["exposed_wait_s"] + classes["exposed_transfer_s"]
    parts = {name: seconds.tolist() for name, seconds in classes.items()}
    parts |= {"step_s": sum(classes.values()).tolist(), "comm_exposed_s": exposed.tolist()}
    parts |= {"comm_total_s": exposed.tolist(), "comm_overlapped_s": [0.0] * num_profiled}
    collectives = [{"op": "all_reduce", "bytes_per_step": 10**9, "total_s": 0.03}] * 4
    start = {
        "host": f"n{node}",
        "local_rank": local,
        "node_rank": node,
        "device": "NVIDIA H100 80GB HBM3",
    }
    phases: dict[str, dict[str, object]] = {
        "setup": {"memory": memory},
        "warmup": {"step_time": {"step_ns": step_ns[:WARMUP_STEPS].tolist()}, "memory": memory},
        "measure": {
            "step_time": {
                "step_ns": step_ns.tolist(),
                "window_ns": int(step_ns.sum()),
                "tokens": case.train.seq_len * case.train.micro_batch_size * num_steps,
            },
            "memory": memory,
        },
        "profile": {"communication": {**parts, "collectives": collectives}, "memory": memory},
    }
    return [
        {"kind": "start", "rank": rank, "world_size": world_size, **start},
        {"kind": "describe", "rank": rank, "values": {"wrapper": "DistributedDataParallel"}},
        *(
            {"kind": "phase", "rank": rank, "phase": p, "start_s": 0.0, "end_s": 1.0, "values": v}
            for p, v in phases.items()
        ),
        {"kind": "end", "rank": rank, "status": "ok"},
    ]


def merge(directory: Path) -> None:
    """Merge and write, in a process of its own; prints seconds, CPU seconds, peak resident MiB."""
    from andromeda_scale.merge import merge_run, write

    start, cpu_start = time.perf_counter(), time.process_time()
    results = merge_run(directory)
    write(results, directory)
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
    if list(results.cases["status"]) != ["ok"] or results.problems:
        sys.exit(f"not merged: {results.cases['cause'].tolist()} {results.problems[:3]}")
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{seconds:.3f} {cpu_s:.3f} {peak_mib:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=16384, help="a multiple of 32")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--merge", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.merge:
        merge(options.merge)
        return
    columns = ("ranks", "files", "MB", "merge s", "CPU s", "peak MiB", "CPU us/rank")
    print(" ".join(f"{column:>11}" for column in columns))
    for share in (4, 2, 1):
        num_ranks = options.ranks // share
        with tempfile.TemporaryDirectory() as name:
            write_run(Path(name), num_ranks, options.steps)
            size = sum(path.stat().st_size for path in Path(name).rglob("*.jsonl")) / 1e6
            command = [sys.executable, __file__, "--merge", name]
            found = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds, cpu_s, peak_mib = (float(value) for value in found.stdout.split())
        values = (
            f"{num_ranks}",
            f"{num_ranks // RANKS_PER_NODE}",
            f"{size:.0f}",
            f"{seconds:.2f}",
            f"{cpu_s:.2f}",
            f"{peak_mib:.0f}",
            f"{cpu_s / num_ranks * 1e6:.0f}",
        )
        print(" ".join(f"{value:>11}" for value in values), flush=True)


if __name__ == "__main__":
    main()
