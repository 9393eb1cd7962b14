"""Every strategy by hand and through accelerate: the same training, and what accelerate costs.

    python benchmarks/drivers.py [--world 1 2] [--precision fp32 bf16 fp16] [--device cuda]
                                 [--strategy ddp fsdp2 ...] [--model andromeda-tiny] [--run-dir D]

Runs one sweep of strategies x drivers x precisions and prints a line a pair: both statuses, the
largest differences from the single-process reference, tokens/s by accelerate over those by hand,
and every fact but the driver's and the units' that is not the same. FSDP under accelerate runs on
GPUs alone; elsewhere its pair is named with the reason. Exit status 1 if a row that was launched is
not ok, has no parity, or trains in other dtypes or with another wrapper than its pair.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

STRATEGIES = ("single", "ddp", "fsdp1", "fsdp2", "hsdp", "zero1", "zero2", "zero3")
SAME = ("wrapper", "dtypes.", "optimizer.", "gradient_clipping", "attention.", "data.", "mode")
PAIR = ["strategy", "world_size", "precision"]


def sweep(asked: argparse.Namespace, run_dir: Path) -> None:
    """Run the suite; its own exit status is 1 where any case failed, which is judged here."""
    worlds, precisions = map(str, asked.world), asked.precision
    sets = {
        "model": asked.model,
        "device": asked.device,
        "train.seq_len": "256",
        "train.micro_batch_size": "2",
        "train.grad_accum": "2",
        "measure.repeats": "1",
        "measure.steps": str(asked.steps),
        "measure.warmup": "{min_steps: 5, max_steps: 10}",
        "measure.profile_steps": "5",
    }
    axes = {
        "world": ",".join(worlds),
        "strategy": ",".join(asked.strategy),
        "driver": "native,accelerate",
        "train.precision": ",".join(precisions),
    }
    program = "import sys; from andromeda_scale.cli import main; main()"
    subprocess.run(
        [
            *(sys.executable, "-c", program, "run", "drivers", "--run-dir", str(run_dir)),
            *(word for key, value in sets.items() for word in ("--set", f"{key}={value}")),
            *(word for key, value in axes.items() for word in ("--axis", f"{key}={value}")),
        ],
        check=False,
    )


def compare(native: Any, driven: Any) -> tuple[str, bool]:
    """(what to print of a pair, whether it is as it must be)."""
    if driven.status in ("skipped", "unavailable"):
        return f"{driven.status}: {driven.cause}", True
    states = f"{native.status}/{driven.status}"
    if driven.status != "ok" or native.status != "ok":
        return f"{states}: {driven.cause or native.cause}", False
    ratio = driven.tokens_per_s / native.tokens_per_s
    away = f"loss {driven.parity_loss_difference:.1e}, norm {driven.parity_norm_difference:.1e}"
    mine, other = json.loads(driven.facts), json.loads(native.facts)
    unlike = [
        f"{key} {mine.get(key)!r} for {other.get(key)!r}"
        for key in sorted(mine.keys() | other.keys())
        if mine.get(key) != other.get(key) and not key.startswith(("driver.", "units", "mesh"))
    ]
    wrong = any(text.startswith(SAME) for text in unlike)
    proven = driven.parity in ("ok", "reference") or driven.strategy == "single"
    text = f"{states} x{ratio:.2f} parity {driven.parity} ({away})"
    return "; ".join([text, *unlike]), proven and not wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16", "fp16"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--strategy", nargs="+", default=list(STRATEGIES))
    parser.add_argument("--model", default="andromeda-tiny")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--run-dir", type=Path)
    asked = parser.parse_args()
    run_dir = asked.run_dir or Path(tempfile.mkdtemp()) / "drivers"
    sweep(asked, run_dir)
    rows = pd.read_parquet(run_dir / "results.parquet")
    good = True
    for pair, group in rows.groupby(PAIR, sort=False):
        by = {row.driver: row for row in group.itertuples()}
        if {"native", "accelerate"} <= by.keys():
            text, fine = compare(by["native"], by["accelerate"])
            good &= fine
            print(*pair, "ok" if fine else "WRONG", text)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
