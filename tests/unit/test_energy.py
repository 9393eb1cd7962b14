"""Counters of energy: RAPL's files, wrap-around, interpolation, windows, and what results say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from merging import ENVIRONMENT
from run_files import make_case, rank_lines, write_plan, write_repeat

from andromeda_scale.analysis.energy import energy_between
from andromeda_scale.analysis.results import Results
from andromeda_scale.collectors.energy import Energy, RaplCounter, cpu_packages, open_meters
from andromeda_scale.errors import CollectorUnavailable
from andromeda_scale.merge import merge_run
from andromeda_scale.rank.warmup import window_steps
from andromeda_scale.report.device_tables import energy_table
from andromeda_scale.report.scaling import scaling_table

RANGE_UJ = 262_143_328_850  # max_energy_range_uj of an Intel Xeon's package


def zone(root: Path, folder: str, name: str, energy_uj: int) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    (path / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    return path


def test_packages_are_counted_and_neither_their_parts_nor_the_platform(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5)
    zone(tmp_path, "intel-rapl:0:0", "core", 5)
    zone(tmp_path, "intel-rapl:1", "package-1", 5)
    zone(tmp_path, "intel-rapl:2", "psys", 5)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 5)  # the first package once more
    (tmp_path / "intel-rapl").mkdir()
    found, missing = cpu_packages(tmp_path)
    assert [(meter.key, meter.name) for meter in found] == [
        ("intel-rapl:0", "package-0"),
        ("intel-rapl:1", "package-1"),
    ]
    assert missing == ""


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    assert cpu_packages(tmp_path / "none") == ([], f"no RAPL package in {tmp_path / 'none'}")
    (zone(tmp_path, "intel-rapl:0", "package-0", 5) / "energy_uj").unlink()
    assert cpu_packages(tmp_path)[1].endswith("energy_uj: No such file or directory")
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("none\n")
    assert cpu_packages(tmp_path)[1].endswith("no numbers")


def test_one_package_of_two_is_not_the_energy_of_the_node(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5)
    (zone(tmp_path, "intel-rapl:1", "package-1", 5) / "energy_uj").unlink()
    found, missing = cpu_packages(tmp_path)
    assert found == []
    assert missing.endswith("intel-rapl:1/energy_uj: No such file or directory")


def test_a_counter_that_starts_again_goes_on(tmp_path: Path) -> None:
    path = zone(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 2_000_000)
    counter = RaplCounter(path)
    for energy_uj, expected_j in ((RANGE_UJ - 500_000, 1.5), (1_000_000, 3.0), (4_000_000, 6.0)):
        (path / "energy_uj").write_text(f"{energy_uj}\n")
        assert counter.read() == pytest.approx(expected_j)
    (path / "energy_uj").unlink()
    assert counter.read() is None


def test_the_sampler_keeps_joules_since_its_first_sample(tmp_path: Path) -> None:
    path = zone(tmp_path, "intel-rapl:0", "package-0", 7_000_000)
    sampler = Energy(period_s=3600, powercap=tmp_path)
    sampler.start()
    (path / "energy_uj").write_text("9500000\n")
    found = dict(sampler.stop())
    json.dumps(found)
    samples = found["packages"]["intel-rapl:0"]
    assert samples["energy_j"] == [0, 2.5]
    assert samples["t_s"] == sorted(samples["t_s"])


def test_without_any_counter_the_sampler_is_unavailable(tmp_path: Path) -> None:
    if open_meters(tmp_path / "none")[0]:
        pytest.skip("this machine's GPUs count their energy")
    with pytest.raises(CollectorUnavailable, match="no RAPL package"):
        Energy(powercap=tmp_path / "none").start()


def test_energy_between_two_moments_is_interpolated_at_both() -> None:
    times, joules = np.array([0.0, 1.0, 3.0, 4.0]), np.array([0.0, 100.0, 500.0, 500.0])
    assert energy_between(times, joules, 0.0, 4.0) == 500
    # 100 W to 1 s, 200 W to 3 s, then nothing: half of the first second, 1 + 2 * 0.5 s of the rest
    assert energy_between(times, joules, 0.5, 1.0) == pytest.approx(50)
    assert energy_between(times, joules, 0.5, 2.0) == pytest.approx(250)
    assert energy_between(times, joules, 2.5, 3.5) == pytest.approx(100)


@pytest.mark.parametrize(
    ("times", "joules", "window"),
    [
        ([0, 1], [0, 5], (-0.1, 0.5)),  # before the first sample: another clock
        ([0, 1], [0, 5], (0.5, 1.1)),
        ([0], [0], (0, 0)),
        ([0, 1], [5, 0], (0.2, 0.5)),  # a counter that falls
        ([1, 0], [0, 5], (0.2, 0.5)),
        ([0, 1, 2], [0, 5], (0.2, 0.5)),
        ([0, 1, 2], [7, 7, 7], (0.2, 1.5)),  # one that stands still
        ([0, 1], [0, 5], (0.5, 0.2)),
        ([0, 1], [0, 5], (math.nan, 0.2)),
    ],
)
def test_samples_that_do_not_enclose_the_window_give_no_energy(
    times: list[float], joules: list[float], window: tuple[float, float]
) -> None:
    assert energy_between(np.array(times), np.array(joules), *window) is None


@pytest.mark.parametrize(
    ("asked", "step_s", "limit_s", "expected"),
    [
        (50, 0.05, 300, 240),  # 1.2 * 10 s / 50 ms
        (50, 1.0, 300, 100),
        (500, 0.05, 300, 500),
        (50, 5.0, 300, 60),  # no further than the limit
        (50, 20.0, 300, 50),  # nor fewer than asked
        (50, None, 300, 100),
    ],
)
def test_a_window_is_extended_to_100_steps_and_10_seconds(
    asked: int, step_s: float | None, limit_s: float, expected: int
) -> None:
    assert window_steps(asked, 100, 10.0, step_s=step_s, limit_s=limit_s) == expected


def test_without_such_a_collector_the_window_is_as_asked() -> None:
    assert window_steps(50, 0, 0.0, step_s=0.05, limit_s=300) == 50


def launch(directory: Path, energy: Any, *, uuids: bool, steps: int = 4) -> Results:
    """Two ranks that measured `steps` of 0.1 s, from 100.0 and 100.1 s of their node's clock."""
    case = make_case("ddp", 2, collect=("energy",))
    write_plan(directory, [case], repeats=1)
    lines = [
        line for rank in range(2) for line in rank_lines(rank, [0.1] * steps, tokens=32 * steps)
    ]
    for line in lines:
        if line["kind"] == "start":
            line["host"] = ENVIRONMENT["hostname"]
            line["device_uuid"] = f"GPU-{line['rank']}" if uuids else None
        if line.get("phase") == "measure":
            line["values"]["step_time"]["start_s"] = 100.0 + 0.1 * line["rank"]
    values = {"environment": ENVIRONMENT} | ({} if energy is None else {"energy": energy})
    write_repeat(directory, case, 0, [{"kind": "node", "rank": None, "values": values}, *lines])
    return merge_run(directory)


def constant(watts: float, until_s: float = 120.0) -> dict[str, Any]:
    return {"t_s": [99.0, until_s], "energy_j": [0.0, watts * (until_s - 99.0)]}


GPUS = {
    "gpus": {"GPU-0": constant(300), "GPU-1": constant(500), "GPU-2": constant(9999)},
    "packages": {"intel-rapl:0": constant(9999)},
    "idle": {"gpus": {"GPU-0": 60.0, "GPU-1": 70.0, "GPU-2": 80.0}},
}


def test_a_job_takes_what_its_ranks_gpus_take_in_their_windows(tmp_path: Path) -> None:
    results = launch(tmp_path, GPUS, uuids=True, steps=120)
    (case,) = results.cases.to_dict("records")
    assert case["energy_j"] == pytest.approx((300 + 500) * 12.0)
    assert case["joules_per_token"] == pytest.approx(800 * 12.0 / (2 * 32 * 120))
    assert (case["power_w"], case["power_per_device_w"]) == (pytest.approx(800), pytest.approx(400))
    assert case["idle_power_w"] == 130
    assert (case["energy_short"], case["energy_unavailable"]) == ("", "")
    (cells,) = energy_table(results).cells()
    assert scaling_table(results).columns[-1].header == "J/token"
    assert cells[-6:-1] == ["1.250", "9,600", "800.0", "400.0", "130.0"]


def test_a_job_on_cpus_takes_what_its_nodes_packages_take(tmp_path: Path) -> None:
    energy = {"packages": {"intel-rapl:0": constant(100), "intel-rapl:1": constant(50)}}
    (case,) = launch(tmp_path, energy, uuids=False).cases.to_dict("records")
    assert case["energy_j"] == pytest.approx(150 * 0.5)  # from the first rank's edge to the last's
    assert math.isnan(case["idle_power_w"])


def test_a_window_too_short_is_flagged(tmp_path: Path) -> None:
    results = launch(tmp_path, GPUS, uuids=True)
    assert list(results.cases["energy_short"]) == ["4 steps, 0.4 s"]
    assert any("too short to rely on: ddp at world 2: 4 steps" in n for n in _notes(results))


@pytest.mark.parametrize(
    ("energy", "why"),
    [
        ({"unavailable": "no GPU; no RAPL"}, "no GPU; no RAPL"),
        ({"error": "OSError: gone"}, "OSError: gone"),
        (None, "no node counts the energy of rank 0's GPU"),
        (7, "no node counts the energy of rank 0's GPU"),
        ({"gpus": {"GPU-0": constant(300)}}, "no node counts the energy of rank 1's GPU"),
        (GPUS | {"gpus": {"GPU-0": constant(1, until_s=100.3)}}, "do not enclose the window"),
        (GPUS | {"gpus": {"GPU-0": {"t_s": "x", "energy_j": [1]}}}, "do not enclose the window"),
        (GPUS | {"gpus": {"GPU-0": []}}, "do not enclose the window"),
        (GPUS | {"gpus": {"GPU-0": constant(0)}}, "stood still"),
    ],
)
def test_without_energy_the_rest_goes_on_and_the_footnote_says_why(
    tmp_path: Path, energy: Any, why: str
) -> None:
    results = launch(tmp_path, energy, uuids=True)
    (case,) = results.cases.to_dict("records")
    assert case["status"] == "ok"
    assert why in case["energy_unavailable"]
    assert math.isnan(case["energy_j"])
    assert any(n.startswith("energy unavailable: ddp at world 2") for n in _notes(results))


def _notes(results: Results) -> list[str]:
    assert set(energy_table(results).notes) & set(scaling_table(results).notes)
    return scaling_table(results).notes
