"""A stored run gives exactly the stored table, and the numbers worked out here.

Its records are hand-made: ddp at 1 and 2 ranks, fsdp2 with one launch killed, zero1 diverged,
zero2 skipped, zero3 out of memory. After a wanted change of the table, write `expected.md` anew
from `scaling_table(merge_run(RUN)).to_markdown()` and read the difference.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy.stats import t as student_t

from andromeda_scale.merge import merge_run
from andromeda_scale.report.scaling import scaling_table

HERE = Path(__file__).parent
RUN = HERE / "run"


@pytest.fixture(scope="module")
def cases() -> pd.DataFrame:
    return merge_run(RUN).cases.set_index(["strategy", "world_size"])


def test_the_stored_run_gives_exactly_the_stored_table() -> None:
    table = scaling_table(merge_run(RUN))
    assert table.to_markdown() == (HERE / "expected.md").read_text()


def test_throughput_is_the_geometric_mean_of_the_launches(cases: pd.DataFrame) -> None:
    # 128 tokens a rank in windows of 0.101, 0.1, 0.1/1.01 s; two ranks: 1.02/9, 1/9, 1/(9*1.02) s
    assert cases.loc[("ddp", 1), "tokens_per_s"] == pytest.approx(1280)
    assert cases.loc[("ddp", 2), "tokens_per_s"] == pytest.approx(2304)
    assert cases.loc[("ddp", 2), "tokens_per_s_per_gpu"] == pytest.approx(1152)
    assert cases.loc[("ddp", 2), "step_time_s"] == pytest.approx(1 / 36)  # four steps a window


def test_efficiency_is_90_percent_with_the_interval_of_unequal_errors(cases: pd.DataFrame) -> None:
    row = cases.loc[("ddp", 2)]
    assert row["speedup"] == pytest.approx(2304 / 1280)
    assert row["efficiency"] == pytest.approx(0.9)
    # logs of launches are -d, 0, d: variance d^2, squared standard error d^2 / 3
    a, b = math.log(1.02) ** 2 / 3, math.log(1.01) ** 2 / 3
    df = (a + b) ** 2 / (a**2 / 3 + b**2 / 3) - 1
    half = float(student_t.ppf(0.975, df)) * math.sqrt(a + b)
    assert row["efficiency_low"] == pytest.approx(0.9 * math.exp(-half), rel=1e-6)
    assert row["efficiency_high"] == pytest.approx(0.9 * math.exp(half), rel=1e-6)


def test_communication_and_balance_are_of_the_profiled_steps(cases: pd.DataFrame) -> None:
    row = cases.loc[("ddp", 2)]
    assert row["comm_exposed_s"] == pytest.approx(0.04)  # 0.01 waiting + 0.03 transfer
    assert row["comm_exposed_share"] == pytest.approx(0.04 / 0.2)
    assert row["imbalance"] == pytest.approx(0.14 / 0.12 - 1)  # compute of 0.10 and 0.14 s
    assert row["nobody_blamed"] == "no charges recorded"  # its format was older


def test_peak_memory_is_the_fullest_ranks(cases: pd.DataFrame) -> None:
    row = cases.loc[("ddp", 2)]
    assert (row["peak_memory_bytes"], row["peak_memory_rank"]) == (410 * 2**20, 1)


def test_parity_is_the_largest_difference_of_the_launches_that_count(cases: pd.DataFrame) -> None:
    # differences of 1e-7, 3e-7, 2e-7; the second launch of fsdp2 was killed
    assert cases.loc[("ddp", 2), "parity"] == "ok"
    assert cases.loc[("ddp", 2), "parity_loss_difference"] == 3e-7
    assert cases.loc[("fsdp2", 2), "parity_loss_difference"] == 2e-7


@pytest.mark.parametrize(
    ("strategy", "status", "statuses"),
    [
        ("fsdp2", "ok", "ok x2, crashed x1"),
        ("zero1", "diverged", "diverged x3"),
        ("zero2", "skipped", "skipped x3"),
        ("zero3", "oom", "oom x3"),
    ],
)
def test_failures_are_rows_without_numbers(
    cases: pd.DataFrame, strategy: str, status: str, statuses: str
) -> None:
    row: Any = cases.loc[(strategy, 2)]
    assert (row["status"], row["statuses"]) == (status, statuses)
    assert math.isnan(row["tokens_per_s"]) == (status != "ok")
    assert math.isnan(row["peak_memory_bytes"]) == (status != "ok")
