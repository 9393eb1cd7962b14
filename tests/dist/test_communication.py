"""What the profiler and the flight recorder say of real gloo ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
from group import Group, Line, end, of_kind, phase_values, read_lines, tiny_case

from andromeda_scale import registry
from andromeda_scale.analysis.blame import MIN_STEPS, blame, lateness
from andromeda_scale.analysis.breakdown import SERIES
from andromeda_scale.cost.comm import CommunicationBytes, bytes_per_step
from andromeda_scale.training import Train
from andromeda_scale.world import World

RunCase = Callable[..., list[list[Line]]]

# A strategy and the options under which it communicates otherwise.
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddp": ("ddp", {}),
    "ddp-fp16": ("ddp", {"compression": "fp16"}),
    "fsdp2": ("fsdp2", {}),
    "fsdp2-kept": ("fsdp2", {"reshard_after_forward": False}),
    "hsdp": ("hsdp", {}),
    "hsdp-one-replica": ("hsdp", {"shard_size": 2}),
    "fsdp1": ("fsdp1", {}),
    "fsdp1-kept": ("fsdp1", {"sharding": "shard_grad_op"}),
    "zero1": ("zero1", {}),
    "zero2": ("zero2", {}),
    "zero3": ("zero3", {}),
}
CLASSES = ("compute_s", "exposed_wait_s", "exposed_transfer_s", "data_s", "host_s")
PROFILED = {"collect": ("communication",), "measure": {"steps": 1, "profile_steps": 4}}
# tests/dist/group.py, LLAMA: 2 blocks of q, k, v, o, three of the FFN, two norms; embedding,
# final norm, head outside them.
BLOCK = 32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
ROOT = 2 * 256 * 32 + 32
P = 2 * BLOCK + ROOT
NUM_PARAMETER_TENSORS = 2 * 9 + 3
LATE_S = 0.06


def communication(lines: list[Line]) -> dict[str, Any]:
    assert end(lines)["status"] == "ok", end(lines)
    found: dict[str, Any] = phase_values(lines, "profile")["communication"]
    return found


def payload(found: dict[str, Any], key: str) -> dict[str, float]:
    """Sum of a column by op, scalars (the norms of clipping) excluded."""
    sums: dict[str, float] = defaultdict(float)
    for row in found["collectives"]:
        if not row["scalar"]:
            sums[row["op"]] += row[key]
    return sums


def closed_form(way: str, ranks: int = 2, grad_accum: int = 1) -> CommunicationBytes:
    """Bytes of gloo ranks, which reduce-scatter by all-reduce."""
    name, options = WAYS[way]
    kind = registry.load("strategy", name)
    return bytes_per_step(
        kind.traffic(kind.Options(**options), Train(), World(ranks_per_node=ranks)),
        P,
        ranks,
        grad_accum,
        num_block_parameters=2 * BLOCK,
        doubled=frozenset({"reduce_scatter"}),
    )


def way_case(way: str, **settings: Any) -> Any:
    name, options = WAYS[way]
    return tiny_case({"name": name, "options": options}, **PROFILED, **settings)


@pytest.fixture(scope="module")
def profiled(run_case: RunCase) -> Callable[[str], list[list[Line]]]:
    """profiled(way) -> lines of each of two ranks; every way runs once."""
    runs: dict[str, list[list[Line]]] = {}

    def lines(way: str) -> list[list[Line]]:
        if way not in runs:
            runs[way] = run_case(way_case(way), 2)
        return runs[way]

    return lines


@pytest.mark.parametrize("way", WAYS)
def test_bytes_are_those_of_the_closed_form(
    way: str, profiled: Callable[[str], list[list[Line]]]
) -> None:
    expected = closed_form(way)
    for lines in profiled(way):
        found = communication(lines)
        assert payload(found, "bytes_per_step") == expected.payload
        assert payload(found, "wire_bytes_per_step") == expected.wire


@pytest.mark.parametrize(
    ("name", "options"), [("hsdp", {}), ("fsdp1", {"sharding": "hybrid_shard"})]
)
def test_groups_of_ranks_gather_inside_and_all_reduce_across(
    name: str, options: dict[str, Any], run_case: RunCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WAYS, "groups", (name, options))
    expected = closed_form("groups", ranks=4)
    for rank, lines in enumerate(run_case(way_case("groups"), 4)):
        found = communication(lines)
        assert payload(found, "bytes_per_step") == expected.payload
        assert payload(found, "wire_bytes_per_step") == expected.wire
        groups = {r["op"]: r["ranks"] for r in found["collectives"] if not r["scalar"]}
        first, across = rank // 2 * 2, rank % 2
        assert groups["all_gather"] == groups["reduce_scatter"] == [first, first + 1]
        assert groups["all_reduce"] == [across, across + 2]


@pytest.mark.parametrize(
    ("strategy", "counts"),
    [
        ("fsdp2", {"all_gather": 5, "reduce_scatter": 3}),
        ("fsdp2-kept", {"all_gather": 3, "reduce_scatter": 3}),
        ("fsdp1", {"all_gather": 5, "reduce_scatter": 3}),
        ("fsdp1-kept", {"all_gather": 3, "reduce_scatter": 3}),
        ("hsdp", {"all_reduce": 3}),
        ("zero1", {"all_reduce": 1, "all_gather": 1}),
        ("zero2", {"all_reduce": 1, "all_gather": 1}),
        # Small parameters stay whole in stage 3: each is gathered once, after the update.
        ("zero3", {"all_gather": NUM_PARAMETER_TENSORS, "reduce_scatter": 1}),
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


@pytest.mark.parametrize("strategy", ["fsdp2", "fsdp1", "fsdp1-kept", "hsdp", "zero2"])
def test_bytes_grow_with_micro_batches_where_gradients_are_not_accumulated(
    strategy: str, run_case: RunCase
) -> None:
    case = way_case(strategy, train={"grad_accum": 2})
    expected = closed_form(strategy, grad_accum=2).payload
    sent = payload(communication(run_case(case, 2)[0]), "bytes_per_step")
    assert {op: sent[op] for op in expected} == expected


def test_one_rank_communicates_nothing(run_case: RunCase) -> None:
    (lines,) = run_case(tiny_case("single", **PROFILED), 1)
    found = communication(lines)
    assert found["collectives"] == []
    assert found["comm_total_s"] == [0.0] * 4


def run_slow(run_case: RunCase, kind: str) -> list[dict[str, Any]]:
    """What two ranks of ddp found when rank 1 was late by LATE_S in every step."""
    planted = [{"kind": kind, "rank": 1, "delay_s": LATE_S}]
    settings = PROFILED | {"measure": {"steps": 1, "profile_steps": MIN_STEPS}}
    return [communication(lines) for lines in run_case(tiny_case("ddp", faults=planted, **settings), 2)]


def blamed(*ranks: dict[str, Any]) -> tuple[int, str, str]:
    """The one rank that the records of all ranks blame."""
    series = {name: np.array([found[name] for found in ranks]) for name in (*SERIES, "charged_s")}
    (one,) = blame(series, None).blamed
    assert one.late_s == pytest.approx(np.median(lateness(series)[one.rank]))
    return one.rank, one.kind, one.cause


def test_planted_compute_is_compute_there_and_waiting_elsewhere(run_case: RunCase) -> None:
    fast, slow = run_slow(run_case, "compute")
    median = {k: np.median(slow[k]) - np.median(fast[k]) for k in CLASSES}
    assert 0.6 * LATE_S < median["compute_s"] < 1.6 * LATE_S
    assert 0.6 * LATE_S < np.median(fast["exposed_wait_s"]) < 1.6 * LATE_S
    assert np.median(slow["exposed_wait_s"]) < 0.3 * LATE_S
    assert blamed(fast, slow) == (1, "persistent", "compute")


def test_a_planted_sleep_is_host_time_there_and_waiting_elsewhere(run_case: RunCase) -> None:
    fast, slow = run_slow(run_case, "host")
    median = {k: np.median(slow[k]) - np.median(fast[k]) for k in CLASSES}
    assert abs(median["compute_s"]) < 0.3 * LATE_S
    assert 0.6 * LATE_S < median["host_s"] < 1.6 * LATE_S
    assert 0.6 * LATE_S < np.median(fast["exposed_wait_s"]) < 1.6 * LATE_S
    assert blamed(fast, slow) == (1, "persistent", "host")


def test_ranks_that_never_communicate_are_an_error_not_a_zero(group: Group) -> None:
    specs = group.specs(tiny_case("ddp", **PROFILED), 2)
    group.run(planted.silent, [(spec,) for spec in specs])
    for spec in specs:
        assert "no collective" in communication(read_lines(Path(spec.record_path)))["error"]


def test_forward_alone_of_replicas_needs_no_collective(run_case: RunCase) -> None:
    lines = run_case(tiny_case("ddp", **PROFILED, train={"mode": "forward"}), 2)
    assert communication(lines[0])["comm_total_s"] == [0.0] * 4


def test_a_flight_recorder_that_is_too_small_is_named(run_case: RunCase) -> None:
    lines = run_case(tiny_case("ddp", **PROFILED, env={"TORCH_FR_BUFFER_SIZE": "2"}), 2)
    assert "TORCH_FR_BUFFER_SIZE" in communication(lines[0])["error"]
