"""Seconds and megabytes of the page of a synthetic run of many ranks and cases.

    python benchmarks/report_scale.py [--ranks 1024] [--keep DIR]

Five strategies at five micro-batch sizes on 8, 16, ... ranks: 200 cases at 1,024. Their records
are written as a worker and its agents write them, merged, and made into one page. Every strategy
loses a percentage of its own with each doubling.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from merge_scale import MODEL, RANKS_PER_NODE, write_plan, write_repeat

from andromeda_scale.merge import merge_run
from andromeda_scale.report.html import make_page
from andromeda_scale.suite.config import Case, Measure, StrategySpec
from andromeda_scale.suite.training import Train
from andromeda_scale.suite.world import World

LOSSES = {"ddp": 0.01, "fsdp2": 0.02, "zero1": 0.03, "zero2": 0.04, "zero3": 0.07}  # a doubling
BATCHES = (1, 2, 4, 8, 16)


def sweep(worlds: Sequence[int], batches: Sequence[int] = BATCHES) -> list[Case]:
    """Every strategy at every batch and world."""
    return [
        Case(
            model_name="synthetic",
            model=MODEL,
            strategy=StrategySpec(name=strategy),
            train=Train(seq_len=8192, micro_batch_size=batch),
            world=_world(size),
            parity="off",
            measure=Measure(steps=20, repeats=1, profile_steps=4),
        )
        for strategy in LOSSES
        for batch in batches
        for size in worlds
    ]


def write_run(directory: Path, cases: Sequence[Case]) -> None:
    """A run directory with one finished repeat of each case."""
    write_plan(directory, "report_scale", cases)
    rng = np.random.default_rng(0)
    for case in cases:
        doublings = np.log2(case.world.size)
        step_s = (
            0.1 * case.train.micro_batch_size**0.9 * (1 + LOSSES[case.strategy.name]) ** doublings
        )
        write_repeat(directory, case, 0, rng, float(step_s))


def _world(size: int) -> World:
    if size <= RANKS_PER_NODE:
        return World(ranks_per_node=size)
    return World(nodes=size // RANKS_PER_NODE, ranks_per_node=RANKS_PER_NODE)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=1024, help="of the largest world")
    parser.add_argument("--keep", type=Path, help="write the run and its page here")
    options = parser.parse_args()
    worlds = [2**power for power in range(3, options.ranks.bit_length())]
    with tempfile.TemporaryDirectory() as name:
        directory = options.keep or Path(name)
        cases = sweep(worlds)
        write_run(directory, cases)
        start = time.perf_counter()
        results = merge_run(directory)
        merged = time.perf_counter()
        page = make_page(results)
        made = time.perf_counter()
        (directory / "report.html").write_text(page, encoding="utf-8")
    print(f"{'cases':>6} {'ranks':>7} {'merge s':>8} {'page s':>7} {'page MB':>8}")
    print(
        f"{len(cases):>6} {len(results.ranks):>7} {merged - start:>8.1f} {made - merged:>7.1f} "
        f"{len(page.encode()) / 1e6:>8.2f}"
    )


if __name__ == "__main__":
    main()
