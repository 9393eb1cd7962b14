"""What a probe plans, what its raw points become, and how its ceilings are looked up."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from merging import ENVIRONMENT

from andromeda_scale.analysis.fabric import NO_PROBE, Ceilings, bandwidths, interpolate
from andromeda_scale.contracts import probed
from andromeda_scale.contracts.planned import Plan
from andromeda_scale.errors import UserError
from andromeda_scale.hardware.machine import Machine
from andromeda_scale.launch.preload import modules_of
from andromeda_scale.merge.probe import ceilings, probe_points
from andromeda_scale.planning.probe import make_probe
from andromeda_scale.report.probe import plot, probe_table

CPU = Machine(cpu_cores=4)
GPUS = Machine(cpu_cores=64, gpus=(80 * 2**30,) * 8)


# Plan


def worlds(plan: Plan) -> list[tuple[str, str, str | None]]:
    items = plan.repeats
    return [(str(plan.cases[i.case_id].world), i.device, i.skip) for i in items]


def test_a_probe_launches_every_doubling_of_what_is_here() -> None:
    assert worlds(make_probe([], None, CPU, quick=True)) == [
        ("1", "cpu", None), ("2", "cpu", None), ("4", "cpu", None),
    ]  # fmt: skip
    six = Machine(cpu_cores=64, gpus=(1,) * 6)
    assert [w for w, *_ in worlds(make_probe([], None, six, quick=True))] == ["1", "2", "4", "6"]
    assert {device for _, device, _ in worlds(make_probe([], None, six, quick=True))} == {"cuda"}


def test_a_world_that_does_not_fit_is_skipped_and_the_others_run() -> None:
    found = worlds(make_probe(["8", "2", "2"], "cpu", CPU, quick=True))
    assert found == [("2", "cpu", None), ("8", "cpu", "8 ranks a node, and 4 cores here")]


@pytest.mark.parametrize(
    ("worlds", "device", "machine", "says"),
    [
        (["0"], None, CPU, r"--world: .0. is not a world; use a number"),
        (["x"], None, CPU, r"--world: .x. is not a world; use a number"),
        (["8"], None, CPU, r"--world 8: 4 CPU cores are here; use --world 4 or smaller"),
        ([], "cuda", CPU, r"--device cuda: no GPU is here; use --device cpu"),
    ],
)
def test_a_probe_of_nothing_says_what_to_give(
    worlds: list[str], device: Any, machine: Machine, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        make_probe(worlds, device, machine, quick=True)


def test_ranks_of_a_probe_need_no_more_than_torch() -> None:
    assert modules_of(make_probe([], None, CPU, quick=True).cases.values()) == ()


def test_a_full_sweep_is_from_one_kib_to_one_gib_and_shapes_stay_within_the_largest() -> None:
    full = probed.settings(quick=False, cuda=True, threads=())
    assert (full.sizes[0], full.sizes[-1]) == (2**10, 2**30)
    shapes = probed.matmul_shapes(full.matmul_sizes)
    assert (16384, 16384, 16384) in shapes
    assert (16384, 16384, 4096) in shapes
    assert max(map(max, shapes)) == 16384
    work = [math.prod(shape) for shape in shapes]
    assert work == sorted(work)


def test_short_calls_are_repeated_in_blocks_and_long_ones_left_out() -> None:
    probe = probed.settings(quick=False, cuda=False, threads=(1,))
    calls, blocks = probed.repetition(1e-5, probe)
    assert calls * 1e-5 >= probed.MIN_BLOCK_S
    assert blocks == probed.MAX_BLOCKS
    assert probed.repetition(3.0, probe) == (1, probed.MIN_BLOCKS)
    assert probed.too_long(1.0, probe) is None
    assert "would take about 90 s; a point has 30 s" in str(probed.too_long(10.0, probe))


# Closed forms


@pytest.mark.parametrize(
    ("op", "factor"),  # nccl-tests, PERFORMANCE.md, for 4 ranks
    [("all_reduce", 1.5), ("all_gather", 0.75), ("reduce_scatter", 0.75), ("all_to_all", 0.75),
     ("broadcast", 1), ("send", 1)],
)  # fmt: skip
def test_a_gigabyte_in_half_a_second_is_an_algorithm_bandwidth_of_two(
    op: str, factor: float
) -> None:
    assert bandwidths(op, 4, 1e9, 0.5) == (2.0, 2.0 * factor)


def test_between_sizes_bandwidth_is_interpolated_on_logarithms() -> None:
    sizes, values = [2**10, 2**14, 2**20], [0.1, 1.6, 4.0]
    assert interpolate(2**14, sizes, values) == pytest.approx(1.6)
    assert interpolate(2**12, sizes, values) == pytest.approx(0.4)  # the geometric mean
    assert interpolate(2**30, sizes, values) == pytest.approx(4.0)
    assert math.isnan(interpolate(1000, sizes, values))


# Records -> points


def plan_of(world: int) -> Plan:
    return make_probe([str(world)], "cpu", CPU, quick=True)


def write(run: Path, plan: Plan, points: dict[int, list[dict[str, Any]]], **status: Any) -> None:
    """A launch whose ranks wrote these points."""
    (item,) = plan.repeats
    place = run / item.folder
    place.mkdir(parents=True)
    head = {"v": 1, "case_id": item.case_id, "repeat": 0}
    lines = [{**head, "rank": None, "kind": "node", "values": {"environment": ENVIRONMENT}}]
    for rank, of_rank in points.items():
        start = {"kind": "start", "host": "h", "device": "cpu", "threads": 1}
        lines.append({**head, "rank": rank, **start})
        lines += [{**head, "rank": rank, "kind": "point", "values": point} for point in of_rank]
        lines.append({**head, "rank": rank, "kind": "end", "status": "ok"})
    (place / "node-0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ended = {"status": "ok", "ended_unix_s": 5.0, **status}
    (place / "status.json").write_text(json.dumps(ended))


def collective(op: str, size: int, block_ns: list[int], group: int = 2) -> dict[str, Any]:
    about = {"kind": "collective", "op": op, "size_bytes": size, "group_size": group}
    return {**about, "calls": 10, "block_ns": block_ns}


def test_a_point_is_the_median_over_blocks_of_the_slowest_rank(tmp_path: Path) -> None:
    plan = plan_of(2)
    mine, other = [100, 900, 300], [200, 100, 600]  # slowest: 200, 900, 600
    write(tmp_path, plan, {
        0: [collective("all_reduce", 4000, mine)], 1: [collective("all_reduce", 4000, other)],
    })  # fmt: skip
    points, problems = probe_points(tmp_path, plan)
    assert problems == []
    (row,) = points.to_dict("records")
    assert row["time_s"] == pytest.approx(600 / 10 / 1e9)
    assert row["time_mad_s"] == pytest.approx(300 / 10 / 1e9)
    assert row["busbw_gbps"] == row["algbw_gbps"] == pytest.approx(4000 / 60)  # factor of 2: 1
    assert (row["status"], row["blocks"], row["group_nodes"]) == ("ok", 3, 1)


def test_a_matmul_is_two_m_n_k_and_memory_counts_bytes_moved(tmp_path: Path) -> None:
    plan = plan_of(1)
    matmul = {"kind": "matmul", "op": "matmul", "dtype": "bfloat16", "shape": [2, 3, 5]}
    memory = {"kind": "memory", "op": "triad", "size_bytes": 3000, "threads": 1}
    timed = {"calls": 1, "block_ns": [50, 30, 40]}  # the fastest block counts
    write(tmp_path, plan, {0: [{**matmul, "threads": 2, **timed}, {**memory, **timed}]})
    points, _ = probe_points(tmp_path, plan)
    assert points["flops_per_s"][0] == pytest.approx(60 / 30e-9)
    assert points["bytes_per_s"][1] == pytest.approx(1e11)


def test_what_was_left_out_or_is_not_there_is_a_row_that_says_why(tmp_path: Path) -> None:
    plan = plan_of(2)
    left = {"kind": "collective", "op": "send", "size_bytes": 2**30, "group_size": 2}
    missing = {**left, "op": "all_to_all", "left_out": "unavailable: gloo has none"}
    both = [{**left, "left_out": "would take about 90 s"}, missing]
    write(tmp_path, plan, {0: both, 1: both})
    points, _ = probe_points(tmp_path, plan)
    assert list(zip(points["status"], points["cause"], strict=True)) == [
        ("skipped", "would take about 90 s"),
        ("unavailable", "gloo has none"),
    ]
    assert "would take about 90 s" in probe_table(points, []).to_markdown()


def test_a_failed_world_keeps_its_whole_points_and_is_a_row(tmp_path: Path) -> None:
    plan = plan_of(2)
    whole, half = collective("all_reduce", 1024, [9]), collective("all_reduce", 2048, [9])
    end = {"status": "crashed", "rank": 1, "cause": "killed by SIGKILL"}
    write(tmp_path, plan, {0: [whole, half], 1: [whole]}, **end)
    points, problems = probe_points(tmp_path, plan)
    assert problems == []
    assert list(points["status"]) == ["ok", "crashed"]
    assert points["cause"][1] == "rank 1: killed by SIGKILL"
    assert "world 2: crashed: rank 1: killed by SIGKILL" in probe_table(points, []).to_markdown()


@pytest.mark.parametrize(
    "garbage",
    [
        {},
        {"kind": "nonsense", "op": "x"},
        collective("all_reduce", -1, [9]),
        collective("all_reduce", 1024, [0]),
        {**collective("all_reduce", 1024, [9]), "calls": "many"},
        {**collective("all_reduce", 1024, [9]), "group_size": 10**5},
        {**collective("all_reduce", 2**70, [9])},
        {**collective("all_reduce", 1024, [2**70])},
        {**collective("all_reduce", 1024, [9]), "size_bytes": None},
    ],
)
def test_garbage_among_points_is_named_and_the_rest_is_used(
    garbage: dict[str, Any], tmp_path: Path
) -> None:
    plan = plan_of(2)
    good = collective("broadcast", 1024, [9])
    write(tmp_path, plan, {0: [garbage, good], 1: [garbage, good]})
    points, problems = probe_points(tmp_path, plan)
    assert problems
    assert list(points["op"]) == ["broadcast"]


def test_products_of_another_dtype_are_shown_without_a_peak(tmp_path: Path) -> None:
    plan = plan_of(1)
    about = {"kind": "matmul", "op": "matmul", "dtype": "float8", "shape": [8, 8, 8]}
    write(tmp_path, plan, {0: [{**about, "calls": 1, "block_ns": [1000]}]})
    points, problems = probe_points(tmp_path, plan)
    assert problems == []
    assert "| float8" in probe_table(points, []).to_markdown()


def test_a_probe_that_never_started_has_rows_tables_and_a_plot(tmp_path: Path) -> None:
    points, _ = probe_points(tmp_path, plan_of(2))
    assert list(points["status"]) == ["pending"]
    assert ceilings(points, tmp_path) == {}
    assert "world 2: pending" in probe_table(points, []).to_markdown()
    (tmp_path / "p.html").write_text(plot(points))
    assert (tmp_path / "p.html").stat().st_size > 10**6  # with the library: no network is needed


# Ceilings


def point(kind: str, **values: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "device": "cpu", "device_name": "Some CPU", "status": "ok", "world_size": 2, "nodes": 1,
        "kind": kind, "op": kind, "dtype": "float32", "threads": None, "group_size": 1,
        "group_nodes": 1, "shape": "", "size_bytes": None, "time_s": 1.0, "flops_per_s": math.nan,
        "bytes_per_s": math.nan, "busbw_gbps": math.nan, "software": "", "host": "h",
        "quick": False, "measured_unix_s": 5.0,
    }  # fmt: skip
    return row | values


def stored(*rows: dict[str, Any]) -> Ceilings:
    text = json.dumps(ceilings(pd.DataFrame(rows), Path("runs/p")))
    return Ceilings(json.loads(text))


def test_mamf_is_the_fastest_shape_of_the_device_dtype_and_threads() -> None:
    def product(flops: float, **values: Any) -> dict[str, Any]:
        return point("matmul", flops_per_s=flops, world_size=1, **values)

    known = stored(
        product(5e9, threads=1), product(7e9, threads=1, shape="1 x 2 x 3"),
        product(9e9, threads=2), product(8e9, threads=1, dtype="bfloat16"),
    )  # fmt: skip
    assert known.problems == []
    assert known.matmul("cpu", "Some CPU", "fp32", 1) == (7e9, "")
    assert known.matmul("cpu", "Some CPU", "fp32", 2) == (9e9, "")
    assert known.matmul("cpu", "Some CPU", "bf16", 1) == (8e9, "")
    for asked, why in (
        (("cpu", "Some CPU", "fp32", 3), "no matrix products on 3 threads"),
        (("cpu", "Some CPU", "fp16", 1), "no matrix products in fp16"),
        (("cpu", "Other", "fp32", 1), "is of Some CPU, not of Other"),
        (("cuda", "Some CPU", "fp32", 1), "is of Some CPU"),
    ):
        found, said = known.matmul(*asked)
        assert found is None
        assert why in said


def test_the_fabric_of_the_same_world_goes_before_that_of_a_larger() -> None:
    def reduce(size: int, gbps: float, world: int, **values: Any) -> dict[str, Any]:
        values = {"group_size": 2, "op": "all_reduce", **values}
        return point("collective", size_bytes=size, busbw_gbps=gbps, world_size=world, **values)

    known = stored(
        reduce(1024, 1.0, 2), reduce(4096, 4.0, 2), reduce(4096, 3.0, 4),
        reduce(4096, 9.0, 16, nodes=2, group_size=16, group_nodes=2),
    )  # fmt: skip

    def asked(op: str, size: int, group: int, world: int, nodes: int = 1) -> Any:
        return known.busbw("cpu", "Some CPU", op, size, group_size=group, group_nodes=nodes,
                           world_size=world)  # fmt: skip

    assert asked("all_reduce", 2048, 2, 2) == (pytest.approx(2.0), "")
    assert asked("all_reduce", 4096, 2, 4) == (pytest.approx(3.0), "")
    assert asked("all_reduce", 4096, 2, 8)[0] == pytest.approx(3.0)
    assert asked("all_reduce", 4096, 16, 16, 2)[0] == pytest.approx(9.0)
    assert asked("all_reduce", 4096, 16, 16) == (None, "the probe has no all_reduce over 16 ranks")
    assert asked("all_reduce", 4, 2, 2) == (None, "messages under 1024 bytes are not probed")
    assert asked("barrier", 4096, 2, 2) == (None, "barrier is not probed")
    assert asked("recv", 4096, 2, 2) == (None, "the probe has no send over 2 ranks")


def test_without_a_probe_every_answer_says_how_to_get_one() -> None:
    assert Ceilings({}).matmul("cpu", "x", "fp32", 1) == (None, NO_PROBE)
    busbw = Ceilings({}).busbw(
        "cpu", "x", "all_reduce", 1, group_size=2, group_nodes=1, world_size=2
    )
    assert busbw == (None, NO_PROBE)


@pytest.mark.parametrize(
    "garbage", [None, 3, [], {}, {"points": 1}, {"device_name": "x", "points": [{}]}]
)
def test_garbage_among_ceilings_is_named_and_never_raises(garbage: Any) -> None:
    known = Ceilings({"cpu/2": garbage})
    assert len(known.problems) == 1
    assert "calibration.json: ceilings.cpu/2" in known.problems[0]
    assert known.matmul("cpu", "x", "fp32", 1)[0] is None
