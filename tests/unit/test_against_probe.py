"""What a run reached, held against the probe that its directory has a copy of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from merging import ENVIRONMENT, case_row, change_line
from run_files import make_case, rank_lines, write_plan, write_repeat

import andromeda_scale
from andromeda_scale.analysis.fabric import NO_PROBE
from andromeda_scale.contracts.records import RankRecord, RepeatRecord
from andromeda_scale.merge import merge_run
from andromeda_scale.merge.communication import launch_kinds
from andromeda_scale.report.catalogue import make_table
from andromeda_scale.report.scaling import scaling_table

CPU = ENVIRONMENT["cpu_model"]
MIB = 2**20


def kind(op: str = "all_reduce", *, size: float = 4 * MIB, seconds: float = 0.01,
         **values: Any) -> dict[str, Any]:  # fmt: skip
    """A kind of collective as the communication collector writes it: two calls a step."""
    row = {
        "op": op, "backend_op": f"gloo:{op}", "dtype": "Float", "ranks": [0, 1], "scalar": False,
        "count_per_step": 2.0, "bytes_per_step": size, "wire_bytes_per_step": size,
        "total_s_per_step": 2 * seconds, "transfer_s_per_step": seconds, "busbw_gbps": 1.0,
    }  # fmt: skip
    return row | values


def write_run(run: Path, *kinds: dict[str, Any], ceilings: Any = None) -> None:
    """Two launches of ddp on two ranks with these collectives."""
    case = make_case("ddp", 2)
    write_plan(run, [case], repeats=2)
    for repeat in range(2):
        lines = [line for r in range(2) for line in rank_lines(r, [0.1] * 4, compute_s=[0.1] * 8)]
        for line in lines:
            if line.get("phase") == "profile":
                line["values"]["communication"]["collectives"] = list(kinds)
        write_repeat(run, case, repeat, lines, environment=ENVIRONMENT)
    if ceilings is not None:
        (run / "calibration.json").write_text(json.dumps({"ceilings": ceilings}))


def probed(*points: dict[str, Any], device_name: str = CPU) -> dict[str, Any]:
    about = {"software": "", "host": "h", "run_dir": "p", "measured_unix_s": 1.0, "quick": False}
    point = {"dtype": "float32", "group_size": 1, "group_nodes": 1, "time_s": 1.0}
    found = [point | one for one in points]
    return {"cpu/2": {**about, "device_name": device_name, "world_size": 2, "points": found}}


def fabric(size: int, gbps: float) -> dict[str, Any]:
    about = {"kind": "collective", "op": "all_reduce", "group_size": 2}
    return {**about, "size_bytes": size, "busbw_gbps": gbps}


def test_the_largest_collective_is_held_against_the_probe_at_its_message_size(
    tmp_path: Path,
) -> None:
    small = kind("broadcast", size=1024.0)
    number = kind(size=16.0, scalar=True)
    write_run(tmp_path, small, kind(), number,
              ceilings=probed(fabric(MIB, 0.5), fabric(4 * MIB, 2.0)))  # fmt: skip
    row = case_row(tmp_path)
    assert row["busbw_op"] == "all_reduce"
    assert row["busbw_gbps"] == pytest.approx(4 * MIB / 0.01 / 1e9)  # two ranks: factor 1
    assert row["busbw_probe_gbps"] == pytest.approx(1.0)  # 2 MiB a call, between 1 and 4
    assert row["busbw_share"] == pytest.approx(row["busbw_gbps"])
    kinds = merge_run(tmp_path).communication
    assert list(kinds["op"]) == ["all_reduce", "broadcast", "all_reduce"]
    assert list(kinds["busbw_cause"]) == [
        "", "the probe has no broadcast over 2 ranks", "a single number",
    ]  # fmt: skip
    table = andromeda_scale.load_run(tmp_path).table("communication")
    assert list(table["op"]) == ["all_reduce", "broadcast"]
    assert table["bytes_per_call"][0] == 2 * MIB


def test_achieved_flops_stand_against_the_best_product_where_no_peak_is_published(
    tmp_path: Path,
) -> None:
    product = {"kind": "matmul", "op": "matmul", "threads": 1, "flops_per_s": 1e9}
    write_run(tmp_path, ceilings=probed(product))
    row = case_row(tmp_path)
    flops = row["tokens_per_s"] * row["flops_per_token"] / 2
    assert row["mfu_of_mamf"] == pytest.approx(flops / 1e9)
    assert row["mamf_flops_per_s"] == 1e9
    scaling = andromeda_scale.load_run(tmp_path).table("scaling")
    assert scaling["mfu_of_mamf"][0] == row["mfu_of_mamf"]
    assert "of mamf: a rank's FLOP/s over" in scaling_table(merge_run(tmp_path)).to_markdown()


def test_without_a_probe_columns_are_empty_with_the_reason(tmp_path: Path) -> None:
    write_run(tmp_path, kind())
    row = case_row(tmp_path)
    assert row["busbw_gbps"] > 0
    assert row["busbw_cause"] == row["mamf_cause"] == NO_PROBE
    assert row["mfu_of_mamf"] != row["mfu_of_mamf"]


def test_a_probe_of_another_device_is_not_used(tmp_path: Path) -> None:
    product = {"kind": "matmul", "op": "matmul", "threads": 1, "flops_per_s": 1e9}
    write_run(tmp_path, kind(), ceilings=probed(product, device_name="Other"))
    row = case_row(tmp_path)
    assert "is of Other, not of" in row["mamf_cause"]
    assert "is of Other, not of" in row["busbw_cause"]


@pytest.mark.parametrize("ceilings", [3, [1], "x", {"cpu/2": None}, {"cpu/2": {"points": {}}}])
def test_a_garbled_calibration_is_a_problem_and_the_rest_is_merged(
    ceilings: Any, tmp_path: Path
) -> None:
    write_run(tmp_path, kind(), ceilings=ceilings)
    results = merge_run(tmp_path)
    assert any("calibration.json" in problem for problem in results.problems)
    assert results.cases["busbw_gbps"][0] > 0


@pytest.mark.parametrize(
    "garbage",
    [
        None, "x", {}, [None, 3, {}], [kind(ranks=None)], [kind(ranks=[-1, 10**9])],
        [kind(bytes_per_step=float("nan"))], [kind(op=7)], [kind(transfer_s_per_step="x")],
    ],
)  # fmt: skip
def test_garbage_among_collectives_is_left_out(garbage: Any) -> None:
    values = {"values": {"communication": {"collectives": garbage}}}
    record = RepeatRecord(ranks={0: RankRecord(0, phases={"profile": values})})
    assert launch_kinds(record, 2) == []


def test_collectives_of_one_rank_have_no_bandwidth(tmp_path: Path) -> None:
    write_run(tmp_path, kind(ranks=[0]))
    row = case_row(tmp_path)
    assert row["busbw_cause"] == "one rank sends nothing"
    assert andromeda_scale.load_run(tmp_path).table("communication").empty


def test_a_rank_without_collectives_is_left_out_of_the_mean(tmp_path: Path) -> None:
    write_run(tmp_path, kind())
    (case,) = merge_run(tmp_path).cases["case_id"]

    def without(line: dict[str, Any]) -> dict[str, Any]:
        del line["values"]["communication"]["collectives"]
        return line

    change_line(tmp_path / "cases" / case / "0", 1, "profile", without)
    assert merge_run(tmp_path).communication["count_per_step"][0] == 2.0


def test_seconds_without_transfer_make_no_bandwidth(tmp_path: Path) -> None:
    write_run(tmp_path, kind(transfer_s_per_step=0.0), ceilings=probed(fabric(MIB, 1.0)))
    row = case_row(tmp_path)
    assert row["busbw_cause"] == "no seconds of transfer"
    assert row["busbw_gbps"] != row["busbw_gbps"]


def test_exposed_seconds_and_the_kernels_count_stand_beside_a_collective(tmp_path: Path) -> None:
    spent = {"exposed_s_per_step": 0.008, "exposed_wait_s_per_step": 0.002}
    write_run(tmp_path, kind(**spent, overlapped_s_per_step=0.004))
    for file in tmp_path.glob("cases/*/*/node-0.jsonl"):
        counted = {"counted": {"tcp_bytes_per_step": 4.2 * MIB, "loopback_bytes_per_step": "noisy"}}
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines:
            if line.get("phase") == "profile":
                line["values"]["communication"] |= counted
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = merge_run(tmp_path)
    assert results.cases["comm_tcp_bytes"].iloc[0] == pytest.approx(4.2 * MIB)
    assert results.cases["comm_loopback_bytes"].isna().all()
    table = make_table(results, "communication")
    assert "8.000 (2.000)" in table.cells()[0]
    assert any("ddp at world 2: +5.00%" in note for note in table.notes)
