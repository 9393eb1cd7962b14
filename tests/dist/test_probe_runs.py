"""A probe of this machine on real gloo ranks, one world of which dies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from andromeda_scale.commands import probing, sweep
from andromeda_scale.contracts.planned import Plan
from andromeda_scale.contracts.probed import COLLECTIVES
from andromeda_scale.cost.comm import bus_factor
from andromeda_scale.hardware import calibration, environment
from andromeda_scale.hardware.machine import Machine
from andromeda_scale.launch import driver
from andromeda_scale.merge.probe import FILE
from andromeda_scale.planning.probe import make_probe

DIES_AT = 5  # the point after which rank 2 of 3 is killed
QUICK_SIZES = 4


def plan_with_a_death() -> Plan:
    """Worlds of 3, 1 and 2 ranks; a rank of the first is killed."""
    machine = Machine(cpu_cores=3, memory_bytes=2**33)
    plan = make_probe(["1", "2", "3"], "cpu", machine, quick=True)
    *others, three = plan.repeats
    dying = plan.cases[three.case_id].model_copy(update={"env": {"KILL": f"2:{DIES_AT}"}})
    cases = {i.case_id: plan.cases[i.case_id] for i in others} | {dying.case_id: dying}
    first = three.model_copy(update={"case_id": dying.case_id})
    return plan.model_copy(update={"cases": cases, "repeats": (first, *others)})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(run directory, exit status of its end, what was kept of it)."""
    folder = tmp_path_factory.mktemp("probe")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        path = f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        patch.setenv("PYTHONPATH", path)
        started = sweep.start(folder / "run", plan_with_a_death(), probing.SUITE_TEXT)
        outcome = driver.run(started, quiet=True, worker="probe_worker:main")
        assert outcome.exit_code == 0, outcome.error
        status = sweep.finish(started.path, quiet=True)
        kept = calibration.load(environment.fingerprint(environment.collect()))
        yield started.path, status, kept


@pytest.fixture(scope="module")
def points(run: Any) -> pd.DataFrame:
    return pd.read_parquet(run[0] / FILE)


def test_every_collective_has_every_size_in_order_with_its_bandwidths(points: pd.DataFrame) -> None:
    two = points[(points["world_size"] == 2)]
    assert set(two["status"]) == {"ok"}
    assert list(dict.fromkeys(two["op"])) == list(COLLECTIVES)
    for op, rows in two.groupby("op"):
        assert list(rows["size_bytes"]) == [2**10, 2**14, 2**18, 2**22], op
        algbw = rows["size_bytes"] / rows["time_s"] / 1e9
        assert (rows["algbw_gbps"] - algbw).abs().max() < 1e-12
        busbw = algbw * bus_factor(str(op), 2)
        assert (rows["busbw_gbps"] - busbw).abs().max() < 1e-12


def test_a_rank_alone_has_matrix_products_in_every_dtype_and_memory(points: pd.DataFrame) -> None:
    one = points[(points["world_size"] == 1)]
    products = one[(one["kind"] == "matmul") & (one["status"] == "ok")]
    assert {"float32", "bfloat16"} <= set(products["dtype"])
    assert set(products["threads"]) == {1, 3}  # of 3 cores, by doubling the ranks
    edges = products["shape"].str.split(" x ").map(lambda x: int(x[0]) * int(x[1]) * int(x[2]))
    assert (products["flops_per_s"] - 2 * edges / products["time_s"]).abs().max() < 1
    assert set(one.loc[one["kind"] == "memory", "op"]) == {"copy", "triad"}


def test_a_world_whose_rank_was_killed_is_a_row_and_the_others_went_on(
    points: pd.DataFrame,
) -> None:
    three = points[points["world_size"] == 3]
    (row,) = three[three["kind"] == ""].to_dict("records")
    assert (row["status"], row["cause"]) == ("crashed", "rank 2: killed by SIGKILL")
    assert len(three[three["status"] == "ok"]) == DIES_AT
    assert points["world_size"].iloc[0] == 3  # it ran first


def test_tables_and_plot_lie_beside_the_records_and_ceilings_in_the_cache(run: Any) -> None:
    path, status, kept = run
    assert status == 0
    assert "world 3: crashed: rank 2: killed by SIGKILL" in (path / "table.md").read_text()
    page = (path / probing.PLOT).read_text()
    assert "all_reduce" in page
    assert 'src="http' not in page
    assert {"cpu/1", "cpu/2"} <= kept["ceilings"].keys()
    two = kept["ceilings"]["cpu/2"]
    assert len(two["points"]) == len(COLLECTIVES) * QUICK_SIZES
    assert two["run_dir"] == str(path)
    assert two["measured_unix_s"] > 0
