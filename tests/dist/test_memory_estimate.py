"""Estimated against allocated memory of real steps on two gloo ranks, one launch a strategy.

The measuring code is the memory collector's. Shapes are such that states, activations, logits and
buffers each decide the peak of some case.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from group import Group, tiny_case
from training_run import built

from andromeda_scale.collectors.allocations import CpuAllocations
from andromeda_scale.contracts.planned import RankSpec
from andromeda_scale.planning.fits import estimate_memory
from andromeda_scale.rank import runtime
from andromeda_scale.suite.config import Case
from andromeda_scale.suite.world import World

RANKS = 2
STEPS = 3  # the least of them: how far gloo lags behind, holding copies, depends on the machine
MODEL = {
    "family": "llama",
    "vocab_size": 2000,
    "d_model": 128,
    "d_ff": 384,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
}
LONG = {"seq_len": 128, "micro_batch_size": 2}  # activations and logits decide
SHORT = {"seq_len": 8, "micro_batch_size": 1}  # states and buffers do, of a deeper model: what
DEEP = MODEL | {"num_layers": 12, "vocab_size": 1000}  # gloo's threads keep for a while is a unit's
BF16 = {"precision": "bf16"}
TWICE = {"grad_accum": 2}
# DeepSpeed's default holds a small model whole.
BUCKET = {"reduce_bucket_size": 100_000}

# name -> strategy, its options, settings of train
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ddp": ("ddp", {}, LONG),
    "ddp, short": ("ddp", {}, SHORT),
    "ddp, bf16": ("ddp", {}, SHORT | BF16),
    "ddp, accumulating": ("ddp", {}, SHORT | TWICE),
    "ddp, buckets apart": ("ddp", {"gradient_as_bucket_view": False}, SHORT),
    "ddp, compressed": ("ddp", {"compression": "fp16"}, SHORT),
    "ddp, many buckets": ("ddp", {"bucket_cap_mb": 0.5}, SHORT),
    "ddp, forward": ("ddp", {}, LONG | {"mode": "forward"}),
    "ddp, no update": ("ddp", {}, SHORT | {"mode": "forward_backward"}),
    "ddp, checkpointed": ("ddp", {}, LONG | {"activation_checkpointing": "block"}),
    "ddp, compiled": ("ddp", {}, LONG | {"compile": True}),
    "ddp, compiled naive": ("ddp", {}, LONG | {"compile": True, "attention": "naive"}),
    "fsdp2": ("fsdp2", {}, LONG),
    "fsdp2, short": ("fsdp2", {}, SHORT),
    "fsdp2, bf16": ("fsdp2", {}, LONG | BF16),
    "fsdp2, bf16, short": ("fsdp2", {}, SHORT | BF16),
    "fsdp2, accumulating": ("fsdp2", {}, SHORT | TWICE),
    "fsdp2, bf16, accumulating": ("fsdp2", {}, SHORT | TWICE | BF16),
    "fsdp2, kept": ("fsdp2", {"reshard_after_forward": False}, LONG),
    "fsdp2, pairs": ("fsdp2", {"blocks_per_unit": 2}, LONG | BF16),
    "fsdp2, pairs, short": ("fsdp2", {"blocks_per_unit": 2}, SHORT),
    "fsdp2, offloaded": ("fsdp2", {"cpu_offload": True}, SHORT),
    "fsdp2, forward": ("fsdp2", {}, LONG | {"mode": "forward"}),
    "fsdp2, adagrad": ("fsdp2", {}, SHORT | {"optimizer": "adagrad"}),
    "hsdp": ("hsdp", {}, SHORT),
    "fsdp1": ("fsdp1", {}, LONG),
    "fsdp1, short": ("fsdp1", {}, SHORT),
    "fsdp1, bf16": ("fsdp1", {}, LONG | BF16),
    "fsdp1, bf16, short": ("fsdp1", {}, SHORT | BF16),
    "fsdp1, accumulating": ("fsdp1", {}, SHORT | TWICE),
    "fsdp1, kept": ("fsdp1", {"sharding": "shard_grad_op"}, LONG),
    "zero1": ("zero1", {}, LONG),
    "zero1, bf16": ("zero1", {}, LONG | BF16),
    "zero1, small bucket": ("zero1", BUCKET, SHORT),
    "zero1, bf16, short": ("zero1", {}, SHORT | BF16),
    "zero1, offloaded": ("zero1", {"offload_optimizer": True}, LONG | BF16),
    "zero2": ("zero2", {}, LONG),
    "zero2, small bucket": ("zero2", BUCKET, SHORT),
    "zero2, bf16, accumulating": ("zero2", {}, SHORT | BF16 | TWICE),
    "zero2, accumulating much": ("zero2", {}, SHORT | {"grad_accum": 8}),
    "zero3, accumulating much": ("zero3", {}, SHORT | {"grad_accum": 8}),
    "zero2, offloaded": ("zero2", {"offload_optimizer": True}, SHORT | BF16),
    "zero3": ("zero3", {}, LONG),
    "zero3, short": ("zero3", {}, SHORT),
    "zero3, units let go": (
        "zero3",
        {"blocks_per_unit": 4, "max_reuse_distance": 0, "prefetch_bucket_size": 0},
        SHORT,
    ),
    "zero3, bf16": ("zero3", {}, LONG | BF16),
    "zero3, accumulating": ("zero3", BUCKET, LONG | TWICE),
    "zero3, all offloaded": (
        "zero3",
        {"offload_optimizer": True, "offload_parameters": True},
        SHORT,
    ),
}
BARE = ("ddp", "fsdp2", "hsdp", "fsdp1", "zero1", "zero2", "zero3")
NOT_THOROUGH = (*BARE, "zero2, accumulating much")


def _case(name: str) -> Case:
    strategy, options, train = CASES[name]
    model = DEEP if train["seq_len"] == SHORT["seq_len"] else MODEL
    return tiny_case({"name": strategy, "options": options}, model=model, train=train)


def measure(specs: list[RankSpec], out: str) -> None:
    """In a rank: bytes that the third step of each case holds at most, into `out`-<rank>."""
    rt = runtime.start(specs[0])
    runtime.init_process_group(specs[0], rt)
    peaks: list[int] = []
    for spec in specs:
        others = CpuAllocations.alive_bytes()  # of the cases before
        try:
            peaks.append(_peak(spec, rt) - others)
        except Exception:
            traceback.print_exc()  # the process leaves without saying so
            raise
        Path(f"{out}-{rt.rank}").write_text(json.dumps(peaks))
    dist.barrier()  # a rank that leaves ends the others


def _peak(spec: RankSpec, rt: runtime.Runtime) -> int:
    case = spec.case
    strategy, state, step = built(case, rt)
    step(0)
    step(1)  # DDP makes its buckets anew before the second step
    peaks = []
    for index in range(2, 2 + STEPS):
        watched = CpuAllocations()
        watched.start()
        step(index)
        peaks.append(watched.stop(strategy.hidden_bytes(state)).peak)
    return min(peaks[1:])  # the first knows not when what was there before was freed


@pytest.fixture(scope="module")
def measured(
    group: Group, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, int]]:
    """measured(name of a case) -> names of all cases of its launch -> bytes of the fullest rank."""

    @cache
    def of_launch(launch: tuple[str, bool]) -> dict[str, int]:
        names = [name for name in CASES if _launch(name) == launch]
        out = tmp_path_factory.mktemp("peaks") / "rank"
        specs = [group.specs(_case(name), RANKS) for name in names]
        arguments = [([of_case[rank] for of_case in specs], str(out)) for rank in range(RANKS)]
        group.run(measure, arguments)
        ranks = [json.loads(Path(f"{out}-{rank}").read_text()) for rank in range(RANKS)]
        return dict(zip(names, map(max, zip(*ranks, strict=False)), strict=False))

    return lambda name: of_launch(_launch(name))


def _launch(name: str) -> tuple[str, bool]:
    """The cases of a strategy share a launch; compiling takes as long as all others."""
    strategy, _, train = CASES[name]
    return ("each as it is" if name in NOT_THOROUGH else strategy), "compile" in train


@pytest.mark.parametrize(
    "name",
    [
        name if name in NOT_THOROUGH else pytest.param(name, marks=pytest.mark.thorough)
        for name in CASES
    ],
)
def test_the_estimate_is_within_15_percent_of_what_the_fullest_rank_allocates(
    name: str, measured: Callable[[str], dict[str, int]]
) -> None:
    case = _case(name).model_copy(update={"world": World(ranks_per_node=RANKS)})
    estimated = estimate_memory(case, "cpu")
    assert estimated is not None
    found = measured(name)
    assert name in found, "a rank died in this case or in one before"
    assert estimated.total == pytest.approx(found[name], rel=0.15), (
        f"{estimated.total / found[name] - 1:+.1%}, {estimated}"
    )


def test_a_peak_counts_what_was_there_and_what_came_and_went() -> None:
    kept = torch.ones(1 << 18)
    watched = CpuAllocations()
    watched.start()
    for _ in range(3):
        passing = torch.ones(1 << 20)
        del passing
    del kept
    found = watched.stop(hidden=7).peak
    rest = CpuAllocations.alive_bytes()
    assert found - rest == pytest.approx((1 << 22) + 7, abs=1 << 12)  # kept is gone before the end
