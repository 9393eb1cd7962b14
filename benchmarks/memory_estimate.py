"""Estimated against allocated memory of each strategy and lever: one launch each, any device.

    python benchmarks/memory_estimate.py cs336-large --world 2 \\
        --set train.seq_len=1024 --set train.micro_batch_size=8 --set train.precision=bf16

Prints a line a case: GiB that the plan estimates, GiB that torch allocated on the fullest rank,
and the error. A case that does not fit is a line with the reason. Exit status 1 if an estimate is
off by more than 15 %.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from typing import Any

import andromeda_scale
from andromeda_scale.errors import UserError

GIB = 1 << 30
BOUND = 0.15
STRATEGIES: list[Any] = [
    "ddp",
    {"name": "ddp", "gradient_as_bucket_view": False},
    {"name": "ddp", "compression": "bf16"},
    "fsdp2",
    {"name": "fsdp2", "reshard_after_forward": False},
    {"name": "fsdp2", "cpu_offload": True},
    "hsdp",
    "fsdp1",
    {"name": "fsdp1", "sharding": "shard_grad_op"},
    "zero1",
    "zero2",
    {"name": "zero2", "offload_optimizer": True},
    "zero3",
    {"name": "zero3", "offload_optimizer": True, "offload_parameters": True},
]
# Each of them alone, under the strategies of --levers-of.
LEVERS: list[dict[str, Any]] = [
    {"train.activation_checkpointing": "block"},
    {"train.activation_checkpointing": "selective"},
    {"train.activation_checkpointing": {"every": 2}},
    {"train.activation_checkpointing": {"segment": 4}},
    {"train.compile": True},
    {"train.attention": "naive"},
    {"train.attention": "sdpa_bias"},
    {"train.grad_accum": 2},
    {"train.optimizer": "adagrad"},
    {"train.mode": "forward"},
    {"train.mode": "forward_backward"},
    {"driver": "accelerate"},
]
SHORT = {"warmup": {"min_steps": 3, "max_steps": 3}, "steps": 3, "repeats": 1, "profile_steps": 0}


def measure(
    model: str, world: int, strategies: list[Any], sets: dict[str, Any], directory: str
) -> list[dict[str, Any]]:
    """The rows of one run: a case a strategy."""
    suite = {
        "question": "How far is the estimate of a rank's memory from what it allocates?",
        "model": model,
        "world": [world],
        "parity": "off",
        "collect": ["memory"],
        "measure": SHORT,
        "axes": {"strategy": strategies},
    }
    run = andromeda_scale.run(suite, sets=sets, run_dir=directory, quiet=True)
    rows: list[dict[str, Any]] = run.table("cases").to_dict("records")
    return rows


def line(row: dict[str, Any], lever: dict[str, Any]) -> tuple[str, float]:
    """What is printed of a case, and its error; 0 without a measurement."""
    said = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in lever.items())
    name = " ".join(part for part in (row["strategy"], row["options"], said) if part)
    estimated, measured = row["estimated_memory_bytes"], row["peak_allocated_bytes"]
    if row["status"] != "ok" or not measured > 0 or not estimated > 0:
        return f"{name:60s} {row['status']}: {row['cause']}", 0.0
    error = float(row["estimate_error"])
    return f"{name:60s} {estimated / GIB:10.3f} {measured / GIB:10.3f} {error:+8.1%}", error


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a name in configs/models, or a file")
    parser.add_argument("--world", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sets")
    parser.add_argument("--levers-of", nargs="*", default=["ddp"], help="[] for none")
    arguments = parser.parse_args()
    sets = {key: _value(text) for key, _, text in (word.partition("=") for word in arguments.sets)}
    runs = [({}, STRATEGIES), *((lever, arguments.levers_of) for lever in LEVERS)]
    print(f"{'case':60s} {'estimated':>10} {'allocated':>10} {'error':>8}  (GiB)")
    errors = []
    for lever, strategies in runs:
        if not strategies:
            continue
        with tempfile.TemporaryDirectory() as directory:
            try:
                rows = measure(
                    arguments.model, arguments.world, strategies, sets | lever, f"{directory}/run"
                )
            except UserError as error:
                print(f"{lever}: {error}", flush=True)
                continue
        for row in rows:
            text, error = line(row, lever)
            errors.append(error)
            print(text, flush=True)
    sys.exit(any(abs(error) > BOUND for error in errors))


if __name__ == "__main__":
    main()
