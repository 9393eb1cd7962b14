"""What the profiler and the flight recorder say of real gloo ranks: bytes, calls, seconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import several
from group import Group, Line, of_kind, read_lines, tiny_case
from profiled_cases import CLASSES, PROFILED, communication

from andromeda_scale import registry
from andromeda_scale.cost.comm import CommunicationBytes, bytes_per_step
from andromeda_scale.suite.training import Train
from andromeda_scale.suite.world import World

RunCase = Callable[..., list[list[Line]]]


class Way(NamedTuple):
    """A strategy under settings that make it communicate otherwise."""

    strategy: str
    options: Mapping[str, Any] = MappingProxyType({})
    driver: str = "native"
    grad_accum: int = 1

    def case(self, **settings: Any) -> Any:
        return tiny_case(
            {"name": self.strategy, "options": dict(self.options)},
            driver=self.driver,
            train={"grad_accum": self.grad_accum},
            **PROFILED,
            **settings,
        )

    def closed_form(self, ranks: int = 2) -> CommunicationBytes:
        kind = registry.load("strategy", self.strategy)
        train = Train(grad_accum=self.grad_accum)
        traffic = kind.traffic(kind.Options(**self.options), train, World(ranks_per_node=ranks))
        return bytes_per_step(
            traffic,
            P,
            ranks,
            self.grad_accum,
            num_block_parameters=2 * BLOCK,
            num_blocks=2,
            backend="gloo",
        )


_REDUCED = {"use_multi_rank_bucket_allreduce": False}
WAYS = {
    "ddp": Way("ddp"),
    "ddp-fp16": Way("ddp", {"compression": "fp16"}),
    "ddp-accumulated": Way("ddp", grad_accum=2),
    "ddp-accelerate": Way("ddp", driver="accelerate"),
    "fsdp2": Way("fsdp2"),
    "fsdp2-kept": Way("fsdp2", {"reshard_after_forward": False}),
    "fsdp2-pairs": Way("fsdp2", {"blocks_per_unit": 2}),
    "fsdp2-accumulated": Way("fsdp2", grad_accum=2),
    "hsdp": Way("hsdp"),
    "hsdp-one-replica": Way("hsdp", {"shard_size": 2}),
    "hsdp-accumulated": Way("hsdp", grad_accum=2),
    "fsdp1": Way("fsdp1"),
    "fsdp1-kept": Way("fsdp1", {"sharding": "shard_grad_op"}),
    "fsdp1-accumulated": Way("fsdp1", grad_accum=2),
    "zero1": Way("zero1"),
    "zero1-reduced": Way("zero1", _REDUCED),
    "zero1-accumulated": Way("zero1", grad_accum=2),
    "zero2": Way("zero2"),
    "zero2-reduced": Way("zero2", _REDUCED),
    "zero2-overlapped": Way("zero2", {"overlap_comm": True}),
    "zero2-accumulated": Way("zero2", grad_accum=2),
    "zero2-accelerate": Way("zero2", driver="accelerate"),
    "zero3": Way("zero3"),
    "zero3-pairs": Way(
        "zero3", {"blocks_per_unit": 2, "max_reuse_distance": 0, "prefetch_bucket_size": 0}
    ),
    "zero3-persistent": Way("zero3", {"param_persistence_threshold": 100_000}),
}
# One more combination of what is tried above.
MORE = {
    "ddp-accelerate-fp16": Way("ddp", {"compression": "fp16"}, "accelerate"),
    "ddp-accelerate-accumulated": Way("ddp", driver="accelerate", grad_accum=2),
    "fsdp2-last": Way("fsdp2", {"reshard_last": True}),
    "fsdp2-kept-accumulated": Way("fsdp2", {"reshard_after_forward": False}, grad_accum=2),
    "fsdp1-kept-accumulated": Way("fsdp1", {"sharding": "shard_grad_op"}, grad_accum=2),
    "zero1-overlapped": Way("zero1", {"overlap_comm": True}),
    "zero1-accelerate": Way("zero1", driver="accelerate"),
    "zero2-reduced-accumulated": Way("zero2", _REDUCED, grad_accum=2),
    "zero3-accumulated": Way("zero3", grad_accum=2),
    "zero3-accelerate": Way("zero3", driver="accelerate"),
}
ALL = [*WAYS, *(pytest.param(name, marks=pytest.mark.thorough) for name in MORE)]
# tests/dist/group.py, LLAMA: 2 blocks of q, k, v, o, three of the FFN, two norms; embedding,
# final norm, head outside them.
BLOCK = 32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
ROOT = 2 * 256 * 32 + 32
P = 2 * BLOCK + ROOT
NUM_PARAMETER_TENSORS = 2 * 9 + 3
LAUNCH_S = 300.0  # some twenty cases, on a machine that others use
# Above the tensors: gloo's headers, and the worker's one barrier in the window.
HEADER_BYTES = 1024
# Above the tensors on the device: headers of packets of up to 64 KiB, acknowledgements.
PACKETS_SHARE, PACKETS_BYTES = 0.02, 2048
ON_FOUR = [
    Way("hsdp"),
    Way("fsdp1", {"sharding": "hybrid_shard"}),
    Way("fsdp2", {"reshard_after_forward": 2}),
]


def payload(found: dict[str, Any], key: str) -> dict[str, float]:
    """Sum of a column by op, scalars (the norms of clipping) excluded."""
    sums: dict[str, float] = defaultdict(float)
    for row in found["collectives"]:
        if not row["scalar"]:
            sums[row["op"]] += row[key]
    return sums


def in_one_launch(group: Group, ways: list[Way], ranks: int) -> list[list[list[Line]]]:
    """The lines of each rank of each way, run one after another in one process group."""
    specs = [group.specs(way.case(), ranks) for way in ways]
    arguments = [([of_way[rank] for of_way in specs],) for rank in range(ranks)]
    group.run(several.cases, arguments, timeout_s=LAUNCH_S)
    return [[read_lines(Path(spec.record_path)) for spec in of_way] for of_way in specs]


@pytest.fixture(scope="module")
def profiled(group: Group) -> Callable[[str], list[list[Line]]]:
    """profiled(way) -> lines of each of two ranks; every way runs once, with all of its dict."""
    runs: dict[str, list[list[Line]]] = {}

    def lines(way: str) -> list[list[Line]]:
        if way not in runs:
            ways = WAYS if way in WAYS else MORE
            runs.update(zip(ways, in_one_launch(group, list(ways.values()), 2), strict=True))
        return runs[way]

    return lines


@pytest.mark.parametrize("way", ALL)
def test_bytes_are_those_of_the_closed_form(
    way: str, profiled: Callable[[str], list[list[Line]]]
) -> None:
    expected = {**WAYS, **MORE}[way].closed_form()
    for lines in profiled(way):
        found = communication(lines)
        assert payload(found, "bytes_per_step") == expected.payload
        assert payload(found, "wire_bytes_per_step") == pytest.approx(expected.wire)


@pytest.mark.parametrize("way", ALL)
def test_the_kernel_counted_the_same_bytes_on_tcp(
    way: str, profiled: Callable[[str], list[list[Line]]]
) -> None:
    """Mean over ranks: a reduce moves more on its root. The rest are gloo's headers."""
    of_ranks = [communication(lines) for lines in profiled(way)]
    counted = np.mean([found["counted"]["tcp_bytes_per_step"] for found in of_ranks])
    kinds = of_ranks[0]["collectives"]
    wire = sum(row["wire_bytes_per_step"] for row in kinds)
    assert wire < counted < wire + HEADER_BYTES * sum(row["count_per_step"] for row in kinds)


def test_the_loopback_device_counted_the_same_bytes(
    profiled: Callable[[str], list[list[Line]]],
) -> None:
    """It belongs to all processes of this machine: one way undisturbed by others is enough."""
    excess, noise = [], []
    for way in WAYS:
        found, other = (communication(lines) for lines in profiled(way))
        counted = found["counted"]["loopback_bytes_per_step"]
        assert "loopback_bytes_per_step" not in other["counted"]
        if isinstance(counted, str):
            noise.append(counted)
            continue
        kinds = found["collectives"]
        calls = sum(row["count_per_step"] for row in kinds)
        wire = 2 * sum(row["wire_bytes_per_step"] for row in kinds)
        excess.append((counted - wire) / (PACKETS_SHARE * wire + 2 * PACKETS_BYTES * calls))
    if not excess or min(excess) > 1:
        pytest.skip(f"too noisy: others use the loopback device ({'; '.join(noise[:1])})")
    assert 0 < min(excess) < 1


@pytest.fixture(scope="module")
def on_four(group: Group) -> list[list[list[Line]]]:
    """ON_FOUR, the lines of each rank."""
    return in_one_launch(group, ON_FOUR, 4)


@pytest.mark.thorough
@pytest.mark.parametrize("index", [0, 1])
def test_groups_of_ranks_gather_inside_and_all_reduce_across(
    index: int, on_four: list[list[list[Line]]]
) -> None:
    expected = ON_FOUR[index].closed_form(ranks=4)
    for rank, lines in enumerate(on_four[index]):
        found = communication(lines)
        assert payload(found, "bytes_per_step") == expected.payload
        assert payload(found, "wire_bytes_per_step") == expected.wire
        groups = {r["op"]: r["ranks"] for r in found["collectives"] if not r["scalar"]}
        first, across = rank // 2 * 2, rank % 2
        assert groups["all_gather"] == groups["reduce_scatter"] == [first, first + 1]
        assert groups["all_reduce"] == [across, across + 2]


def test_blocks_kept_in_two_shards_are_gathered_again_between_neighbours(
    on_four: list[list[list[Line]]],
) -> None:
    expected = ON_FOUR[2].closed_form(ranks=4)
    for rank, lines in enumerate(on_four[2]):
        found = communication(lines)
        assert payload(found, "bytes_per_step") == expected.payload
        assert payload(found, "wire_bytes_per_step") == pytest.approx(expected.wire)
        groups = {tuple(r["ranks"]) for r in found["collectives"] if r["op"] == "all_gather"}
        assert groups == {(0, 1, 2, 3), (rank // 2 * 2, rank // 2 * 2 + 1)}


@pytest.mark.parametrize(
    ("strategy", "counts"),
    [
        # Embedding, two blocks, final norm with head; the first block again.
        ("fsdp2", {"all_gather": 5, "reduce_scatter": 4}),
        ("fsdp2-kept", {"all_gather": 4, "reduce_scatter": 4}),
        ("fsdp1", {"all_gather": 5, "reduce_scatter": 3}),
        ("fsdp1-kept", {"all_gather": 3, "reduce_scatter": 3}),
        ("hsdp", {"all_reduce": 4}),
        ("ddp-accumulated", {"all_reduce": 1}),
        ("zero1", {"all_reduce": 1, "all_gather": 1}),
        ("zero1-reduced", {"reduce": 2, "all_gather": 1}),
        ("zero1-accumulated", {"all_reduce": 1, "all_gather": 1}),
        ("zero2-accumulated", {"all_reduce": 2, "all_gather": 1}),
        ("zero2", {"all_reduce": 1, "all_gather": 1}),
        # All blocks of so small a model are prefetched with the first.
        ("zero3", {"all_gather": 1, "reduce_scatter": 1}),
        # Embedding, a unit of both blocks, final norm, head: there and back.
        ("zero3-pairs", {"all_gather": 8, "reduce_scatter": 1}),
        # Small parameters stay whole: each is gathered once, after the update.
        ("zero3-persistent", {"all_gather": NUM_PARAMETER_TENSORS, "reduce_scatter": 1}),
    ],
)
def test_collectives_are_counted(
    strategy: str, counts: dict[str, int], profiled: Callable[[str], list[list[Line]]]
) -> None:
    for lines in profiled(strategy):
        assert payload(communication(lines), "count_per_step") == counts


def test_ddp_reduces_each_of_its_buckets_once(
    profiled: Callable[[str], list[list[Line]]],
) -> None:
    for lines in profiled("ddp"):
        buckets = of_kind(lines, "describe")[-1]["values"]["buckets"]["bytes"]
        found = communication(lines)
        assert payload(found, "count_per_step") == {"all_reduce": len(buckets)}
        assert payload(found, "bytes_per_step") == {"all_reduce": sum(buckets)}


def test_what_was_asked_and_what_gloo_ran_are_both_named(
    profiled: Callable[[str], list[list[Line]]],
) -> None:
    rows = communication(profiled("fsdp2")[0])["collectives"]
    (row,) = (row for row in rows if row["op"] == "reduce_scatter")
    assert row["c10d_op"] == "c10d::_reduce_scatter_base_"
    assert row["backend_op"] == "gloo:all_reduce"
    assert row["ranks"] == [0, 1]
    assert row["dtype"] == "Float"


@pytest.mark.parametrize("strategy", WAYS)
def test_the_classes_of_a_step_are_disjoint_and_complete(
    strategy: str, profiled: Callable[[str], list[list[Line]]]
) -> None:
    of_ranks = [communication(lines) for lines in profiled(strategy)]
    charged, waited = (
        [np.array(found[name]) for found in of_ranks] for name in ("charged_s", "exposed_wait_s")
    )
    for lines in profiled(strategy):
        found = {k: np.array(v) for k, v in communication(lines).items() if k.endswith("_s")}
        assert {len(series) for series in found.values()} == {4}
        assert all((series >= 0).all() for series in found.values())
        assert sum(found[name] for name in CLASSES) == pytest.approx(found["step_s"])
        assert sum(charged) == pytest.approx(sum(waited))
        exposed = found["exposed_wait_s"] + found["exposed_transfer_s"]
        assert found["comm_exposed_s"] == pytest.approx(exposed)
        overlapped = found["comm_total_s"] - found["comm_exposed_s"]
        assert found["comm_overlapped_s"] == pytest.approx(overlapped)
        assert (found["compute_s"] > 0).all()
        assert (found["comm_total_s"] > 0).all()
        kinds = communication(lines)["collectives"]
        for name in ("exposed", "overlapped", "exposed_wait"):
            series = found["exposed_wait_s" if name == "exposed_wait" else f"comm_{name}_s"]
            of_kinds = sum(row[f"{name}_s_per_step"] for row in kinds)
            assert of_kinds == pytest.approx(series.mean(), rel=0.01, abs=1e-6)


def test_each_collective_of_a_step_has_its_group_number_size_and_times(
    profiled: Callable[[str], list[list[Line]]],
) -> None:
    first, second = (communication(lines)["last_step"] for lines in profiled("fsdp2"))
    for name in ("op", "backend_op", "group", "seq", "dtype", "bytes"):
        assert first[name] == second[name], name
    assert first["transfer_s"] == pytest.approx(second["transfer_s"])
    assert all(np.diff(first["seq"]) == 1)
    assert first["op"][0] == "all_gather"
    kinds = communication(profiled("fsdp2")[0])["collectives"]
    assert len(first["op"]) == sum(row["count_per_step"] for row in kinds)
    assert sum(first["bytes"]) == sum(row["bytes_per_step"] for row in kinds)
    for total, transfer, wait in zip(
        first["total_s"], first["transfer_s"], first["exposed_wait_s"], strict=True
    ):
        assert 0 < transfer <= total
        assert 0 <= wait <= total - transfer + 1e-9


def test_transfer_is_the_same_on_every_rank(profiled: Callable[[str], list[list[Line]]]) -> None:
    for strategy in WAYS:
        seconds = [
            sorted(
                row["transfer_s_per_step"]
                for row in communication(lines)["collectives"]
                if len(row["ranks"]) > 1  # a group of one has nobody to share its time with
            )
            for lines in profiled(strategy)
        ]
        assert seconds[0] == pytest.approx(seconds[1])


def test_one_rank_communicates_nothing(run_case: RunCase) -> None:
    (lines,) = run_case(tiny_case("single", **PROFILED), 1)
    found = communication(lines)
    assert found["collectives"] == []
    assert found["comm_total_s"] == [0.0] * 4


def test_forward_alone_of_replicas_needs_no_collective(run_case: RunCase) -> None:
    lines = run_case(tiny_case("ddp", **PROFILED, train={"mode": "forward"}), 2)
    assert communication(lines[0])["comm_total_s"] == [0.0] * 4
