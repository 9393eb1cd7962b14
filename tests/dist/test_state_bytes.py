"""Bytes of live states under every strategy at 1, 2 and 4 ranks, against closed forms to the byte.

All cases of a world share one process group. A case is built, takes a step, and is read back
between backward and update of a second; of some, a third is taken apart into the peaks of its
parts.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterable
from functools import cache
from itertools import accumulate
from math import ceil, prod
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from group import Group, tiny_case
from training_run import built

from andromeda_scale.collectors import step_memory
from andromeda_scale.collectors.base import Context
from andromeda_scale.contracts.planned import RankSpec
from andromeda_scale.models.factory import ModelFactory
from andromeda_scale.rank import runtime
from andromeda_scale.registry import load
from andromeda_scale.strategies.hsdp import shard_size
from andromeda_scale.suite.config import Case
from andromeda_scale.suite.world import World

WORLDS = (1, 2, 4)
KINDS = ("parameters", "gradients", "master", "optimizer_state")
# Every tensor's first dimension and size is a multiple of 16: nothing is padded.
EVEN = {
    "family": "llama",
    "vocab_size": 256,
    "d_model": 16,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 2,
}
# Sizes that ranks cannot halve: rows of 257 and 21, and a norm astride the middle.
UNEVEN = EVEN | {"vocab_size": 257, "d_model": 12, "d_ff": 21, "num_kv_heads": 1}
SMALL_WHOLE = {"param_persistence_threshold": 100_000}
BF16 = {"precision": "bf16"}

# name -> strategy, its options, settings of train
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "single": ("single", {}, {}),
    "single, bf16, sgd": ("single", {}, BF16 | {"optimizer": "sgd"}),
    "ddp": ("ddp", {}, {}),
    "ddp, buckets apart": ("ddp", {"gradient_as_bucket_view": False}, {}),
    "ddp, bf16, accumulating": ("ddp", {}, BF16 | {"grad_accum": 2}),
    "fsdp1": ("fsdp1", {}, {}),
    "fsdp1, kept, bf16": ("fsdp1", {"sharding": "shard_grad_op"}, BF16),
    "fsdp1, hybrid": ("fsdp1", {"sharding": "hybrid_shard"}, {}),
    "fsdp2": ("fsdp2", {}, {}),
    "fsdp2, kept, bf16": ("fsdp2", {"reshard_after_forward": False}, BF16),
    "fsdp2, offloaded, adagrad": ("fsdp2", {"cpu_offload": True}, {"optimizer": "adagrad"}),
    "hsdp": ("hsdp", {}, {"grad_accum": 2}),
    "zero1": ("zero1", {}, {}),
    "zero1, bf16": ("zero1", {}, BF16),
    "zero1, offloaded": ("zero1", {"offload_optimizer": True}, {}),
    "zero2": ("zero2", {}, {"optimizer": "sgd"}),
    "zero2, bf16, fp32 gradients": ("zero2", {"grad_accum_dtype": "float32"}, BF16),
    "zero2, offloaded, accumulating": (
        "zero2",
        {"offload_optimizer": True},
        BF16 | {"grad_accum": 2},
    ),
    "zero3": ("zero3", {}, {}),
    "zero3, bf16": ("zero3", {}, BF16),
    "zero3, small ones whole": ("zero3", SMALL_WHOLE, {}),
    "zero3, bf16, fp32 gradients": ("zero3", {"grad_accum_dtype": "float32"}, BF16),
    "zero3, all offloaded": (
        "zero3",
        {"offload_optimizer": True, "offload_parameters": True},
        BF16,
    ),
}
# Cases whose padding is checked too.
PADDED = ("single", "ddp", "fsdp1", "fsdp2", "hsdp", "zero1", "zero2", "zero3")
OPTIONS_AT = 2  # ranks; in the other worlds the strategies as they are, and what 2 ranks cannot do
# Bytes per element of a gradient that is kept whole on both sides of a cut through it: stages 1 and
# 2 keep the tensor itself, unless they change its dtype or copy it to the host.
WHOLE_ASTRIDE = {"zero1": 4, "zero1, bf16": 2, "zero2": 4, "zero2, offloaded, accumulating": 2}
TAKEN_APART = ("ddp", "ddp, buckets apart", "fsdp1", "fsdp2", "zero2", "zero3")
MULTI_RANK_ONLY = ("fsdp1, hybrid",)


def make_case(name: str, model: dict[str, Any], num_ranks: int) -> Case | None:
    """The case, if its strategy takes so many ranks."""
    strategy, options, train = CASES[name]
    if strategy == "single" and num_ranks > 1:
        return None
    only_at = 4 if name in MULTI_RANK_ONLY else 1 if strategy == "single" else OPTIONS_AT
    if num_ranks != only_at and name not in PADDED:
        return None
    if name in MULTI_RANK_ONLY:
        options = options | {"shard_size": 2}
    spec = {"name": strategy, "options": options}
    return tiny_case(spec, model=model, train=train | {"seq_len": 8, "micro_batch_size": 1})


def measure(specs: list[RankSpec], taken_apart: list[bool], out: str) -> None:
    """In a rank: what every case holds, as JSON, into `out`-<rank>."""
    rt = runtime.start(specs[0])
    control = runtime.init_process_group(specs[0], rt)
    found = []
    for spec, apart in zip(specs, taken_apart, strict=True):
        try:
            found.append(_held(spec.case, rt, control, taken_apart=apart))
        except Exception:
            traceback.print_exc()  # the process leaves without saying so
            raise
        Path(f"{out}-{rt.rank}").write_text(json.dumps(found))
    dist.barrier()  # a rank that leaves ends the others


def _held(
    case: Case, rt: runtime.Runtime, control: runtime.Control, *, taken_apart: bool
) -> dict[str, Any]:
    strategy, state, step = built(case, rt)
    described: dict[str, Any] = {}
    step(0)
    step(1, before_update=lambda: described.update(strategy.describe(state)))
    read = {"bytes": described["bytes"], "bytes_on": described["bytes_on"]}
    if not taken_apart:
        return read
    context = Context(
        case=case,
        runtime=rt,
        strategy=strategy,
        state=state,
        gather=control.gather,
        step=lambda mark: (step(2, mark), None)[1],
        directory=Path(),
    )
    return read | step_memory.of_one_step(context)


Held = dict[str, list[dict[str, Any]]]  # "name" or "name, uneven" -> what each rank held


@pytest.fixture(scope="module")
def held(group: Group, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Held]:
    """held(number of ranks) -> every case of that world."""

    @cache
    def of_world(num_ranks: int) -> Held:
        wanted = [(name, name, EVEN) for name in CASES]
        wanted += [(f"{name}, uneven", name, UNEVEN) for name in PADDED]
        cases = {
            key: case
            for key, name, model in wanted
            if (case := make_case(name, model, num_ranks)) is not None
        }
        out = tmp_path_factory.mktemp("held") / "rank"
        specs = [group.specs(case, num_ranks) for case in cases.values()]
        apart = [num_ranks == 2 and key in TAKEN_APART for key in cases]
        arguments = [([of[rank] for of in specs], apart, str(out)) for rank in range(num_ranks)]
        group.run(measure, arguments)
        ranks = [json.loads(Path(f"{out}-{rank}").read_text()) for rank in range(num_ranks)]
        return {key: [rank[i] for rank in ranks if i < len(rank)] for i, key in enumerate(cases)}

    return of_world


def sizes(model: dict[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every parameter, in the order of the module."""
    case = tiny_case("single", model=model)
    module = ModelFactory(case.model, case.train, case.seed).build()
    return [(name, tuple(parameter.shape)) for name, parameter in module.named_parameters()]


def astride(counts: list[int], share: int, rank: int) -> int:
    """Elements of the parameters that reach into a rank's share of one flat tensor."""
    starts = accumulate(counts, initial=0)
    return sum(
        count
        for start, count in zip(starts, counts, strict=False)
        if start < (rank + 1) * share and start + count > rank * share
    )


def combinations(names: Iterable[str]) -> list[tuple[str, int]]:
    return [(n, size) for size in WORLDS for n in names if make_case(n, EVEN, size) is not None]


@pytest.mark.parametrize(("name", "num_ranks"), combinations(CASES))
def test_states_that_need_no_padding_are_the_layouts(
    name: str, num_ranks: int, held: Callable[[int], Held]
) -> None:
    case = make_case(name, EVEN, num_ranks)
    assert case is not None
    strategy = load("strategy", case.strategy.name)
    options = strategy.Options.model_validate(case.strategy.options)
    layout = strategy.layout(options, case.train, World(ranks_per_node=num_ranks))
    counts = [prod(shape) for _, shape in sizes(EVEN)]
    total = sum(counts)
    ranks = held(num_ranks)[name]
    assert len(ranks) == num_ranks, "a rank died in this case or in one before"
    for rank, found in enumerate(ranks):
        expected = {kind: getattr(layout, kind).per_rank * total for kind in KINDS}
        if name == "ddp, buckets apart":  # the other half are the buckets
            expected["gradients"] /= 2
        if width := WHOLE_ASTRIDE.get(name):
            share = total // num_ranks
            expected["gradients"] += width * (astride(counts, share, rank) - share)
        if name == "zero3, small ones whole" and num_ranks > 1:
            expected["parameters"] += 4 * total  # one rank's partition is the parameter
        assert found["bytes"] == expected
        assert found["bytes_on"] == {"cpu": sum(expected.values())}


@pytest.mark.parametrize("name", TAKEN_APART)
def test_a_step_is_taken_apart_into_the_peaks_of_its_parts(
    name: str, held: Callable[[int], Held]
) -> None:
    for found in held(2)[name]:
        parts = found["parts"]
        assert list(parts) == ["start", "forward", "backward", "update"]
        assert max(parts.values()) == found["peak_allocated_bytes"]
        states = sum(found["bytes"].values())
        assert states - found["bytes"]["gradients"] <= parts["start"]
        assert parts["backward"] > states


def test_communication_buffers_are_read_where_they_are_fullest(held: Callable[[int], Held]) -> None:
    counts = {name: prod(shape) for name, shape in sizes(EVEN)}
    total = sum(counts.values())
    block = sum(count for name, count in counts.items() if name.startswith("blocks.0."))
    root = total - 2 * block
    buffers = {
        name: [one["communication_buffers"] for one in held(2)[name]] for name in TAKEN_APART
    }
    assert buffers["ddp"] == [{"buckets": 0}] * 2  # its gradients are views of them
    assert buffers["ddp, buckets apart"] == [{"buckets": 4 * total}] * 2
    # DeepSpeed's bucket holds a small model whole, in the dtype of its parameters or reduction.
    assert buffers["zero2"] == [{"reduce_buckets": 4 * total}] * 2
    for found in buffers["zero3"]:
        assert found["reduce_buckets"] == 4 * total
        assert 0 < found["gathered"] <= 4 * total
    # The root stays gathered, and a block with it.
    for name in ("fsdp1", "fsdp2"):
        for found in buffers[name]:
            assert 4 * (root + block) <= sum(found.values()) <= 2 * 4 * total


def replicated(total: int) -> dict[str, int]:
    return states(4 * total, 4 * total, 0, 8 * total)


def states(parameters: int, gradients: int, master: int, optimizer_state: int) -> dict[str, int]:
    return dict(zip(KINDS, (parameters, gradients, master, optimizer_state), strict=True))


def fsdp2(shapes: list[tuple[int, ...]], rank: int, shards: int) -> dict[str, int]:
    """ceil(dim0 / N) rows a rank, of which the optimizer sees only those that exist."""
    padded = existing = 0
    for rows, *rest in shapes:
        share = ceil(rows / shards)
        padded += share * prod(rest)
        existing += min(max(rows - rank * share, 0), share) * prod(rest)
    return states(4 * padded, 4 * padded, 0, 8 * existing)


def fsdp1(names: list[str], counts: list[int], rank: int, shards: int) -> dict[str, int]:
    """A unit is one flat tensor: each parameter starts at 16 bytes, and all are cut into N.

    One rank has nothing to shard, and its gradients are the parameters' own.
    """
    units: dict[str, list[int]] = {}
    for name, count in zip(names, counts, strict=True):
        block = name.split(".")[1] if name.startswith("blocks.") else "root"
        units.setdefault(block, []).append(count)
    held = existing = 0
    for of_unit in units.values():
        end, spans = 0, []
        for count in of_unit:
            start = 4 * ceil(end / 4)
            end = start + count
            spans.append((start, end))
        share = ceil(end / shards)
        held += share
        low, high = rank * share, (rank + 1) * share
        existing += sum(max(min(stop, high) - max(begin, low), 0) for begin, stop in spans)
    return states(4 * held, 4 * held, 0, 8 * existing)


def zero12(counts: list[int], rank: int, num_ranks: int, width: int, kept: int) -> dict[str, int]:
    """One flat tensor, padded to 2N elements, cut into N partitions; `kept` bytes of state.

    A gradient astride a cut is whole on both sides; the padding has one too.
    """
    flat = 2 * num_ranks * ceil(sum(counts) / (2 * num_ranks))
    share = flat // num_ranks
    gradients = astride(counts, share, rank)
    if rank == num_ranks - 1:
        gradients += flat - sum(counts)
    gradients *= width
    return states(width * flat, gradients, 4 * share, kept * share)


def zero3(counts: list[int], num_ranks: int, width: int) -> dict[str, int]:
    """Each parameter is cut alone."""
    share = sum(ceil(count / num_ranks) for count in counts)
    return states(width * share, width * share, 4 * share, 8 * share)


@pytest.mark.parametrize(("name", "num_ranks"), combinations(PADDED))
def test_padding_is_that_of_its_formula(
    name: str, num_ranks: int, held: Callable[[int], Held]
) -> None:
    case = make_case(name, UNEVEN, num_ranks)
    assert case is not None
    named = sizes(UNEVEN)
    shapes = [shape for _, shape in named]
    counts = [prod(shape) for shape in shapes]
    width = 2 if case.train.precision == "bf16" else 4
    found = held(num_ranks)[f"{name}, uneven"]
    assert len(found) == num_ranks, "a rank died in this case or in one before"
    for rank, of_rank in enumerate(found):
        match case.strategy.name:
            case "fsdp2":
                expected = fsdp2(shapes, rank, num_ranks)
            case "hsdp":
                shards = shard_size(None, World(ranks_per_node=num_ranks))
                expected = fsdp2(shapes, rank % shards, shards)
            case "fsdp1":
                expected = fsdp1([n for n, _ in named], counts, rank, num_ranks)
            case "zero1" | "zero2":
                kept = case.train.optimizer.state_bytes
                expected = zero12(counts, rank, num_ranks, width, kept)
            case "zero3":
                expected = zero3(counts, num_ranks, width)
            case _:
                expected = replicated(sum(counts))
        assert of_rank["bytes"] == expected, rank
