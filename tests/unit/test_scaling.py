"""Speed-up and efficiency: by hand, with intervals, and refused across unlike rows."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from andromeda_scale.analysis.scaling import (
    Launches,
    Refused,
    Scaling,
    add_scaling,
    compare,
    differing,
)
from andromeda_scale.analysis.stats import Sample

WEAK = {
    "case_id": "a",
    "regime": "weak",
    "strategy": "ddp",
    "options": "",
    "driver": "native",
    "model": "m",
    "seq_len": 128,
    "micro_batch_size": 4,
    "grad_accum": 1,
    "global_batch_size": 4,
    "precision": "bf16",
    "threads_per_rank": 1,
    "device_name": "d",
    "software": "torch 2",
    "world_size": 1,
    "nodes": 1,
    "tokens_per_s": 100.0,
    "tokens_per_s_per_gpu": 100.0,
}


def _row(case_id: str, world: int, tokens_per_s: float, **changed: Any) -> dict[str, Any]:
    numbers = {"tokens_per_s": tokens_per_s, "tokens_per_s_per_gpu": tokens_per_s / world}
    return {**WEAK, "case_id": case_id, "world_size": world, **numbers, **changed}


def _launches(*tokens_per_s: float, step_tokens: float = 1000.0) -> Launches:
    rates = dict(enumerate(tokens_per_s))
    return Launches(Sample(rates), Sample({key: rate / step_tokens for key, rate in rates.items()}))


def _table(*rows: dict[str, Any]) -> pd.DataFrame:
    launches = {
        row["case_id"]: _launches(*[row["tokens_per_s"]] * 3)
        for row in rows
        if row["tokens_per_s"] == row["tokens_per_s"]
    }
    return add_scaling(pd.DataFrame(list(rows)), launches).set_index("case_id")


def test_weak_efficiency_is_per_rank_throughput_over_the_bases() -> None:
    found = compare(_row("b", 4, 0), WEAK, _launches(360.0), _launches(100.0))
    assert isinstance(found, Scaling)
    assert found.speedup.centre == pytest.approx(3.6)
    assert found.efficiency.centre == pytest.approx(0.9)
    assert math.isnan(found.efficiency.low)  # one launch


def test_strong_efficiency_is_time_over_ranks() -> None:
    row = {"regime": "strong", "global_batch_size": 64, "world_size": 8}
    base = {**row, "world_size": 2}
    # E = n0 t(n0) / (n t(n)) = 2 * 4.0 / (8 * 1.25) = 0.8
    mine = Launches(Sample({0: 800.0}), Sample({0: 1 / 1.25}))
    found = compare(row, base, mine, Launches(Sample({0: 250.0}), Sample({0: 1 / 4.0})))
    assert isinstance(found, Scaling)
    assert found.efficiency.centre == pytest.approx(0.8)
    assert found.speedup.centre == pytest.approx(3.2)


def test_efficiency_has_the_speedups_interval_over_the_ratio_of_ranks() -> None:
    found = compare(
        _row("b", 2, 0), WEAK, _launches(190.0, 200.0, 210.0), _launches(99.0, 100.0, 102.0)
    )
    assert isinstance(found, Scaling)
    assert found.efficiency.low < found.efficiency.centre < found.efficiency.high
    assert found.efficiency == pytest.approx([value / 2 for value in found.speedup])


def test_micro_batch_4_at_8_gpus_and_10_at_16_is_refused_not_119_percent() -> None:
    # 8 GPUs, micro batch 4: 1000 tokens/s per GPU; 16 GPUs, micro batch 10: 1195.
    base = {"world_size": 8, "micro_batch_size": 4, "strategy": "fsdp2"}
    row = {"world_size": 16, "micro_batch_size": 10, "strategy": "fsdp2"}
    found = compare(row, base, _launches(16 * 1195.0), _launches(8 * 1000.0))
    assert isinstance(found, Refused)
    assert found.differing == {"micro_batch_size": (10, 4)}
    assert str(found) == "micro_batch_size 10 against 4"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("regime", "strong"),
        ("strategy", "zero1"),
        ("options", "x=1"),
        ("model", "n"),
        ("seq_len", 256),
        ("micro_batch_size", 8),
        ("grad_accum", 2),
        ("precision", "fp32"),
        ("threads_per_rank", 2),
        ("parity_kind", "off"),
        ("device_name", "e"),
        ("software", "torch 3"),
    ],
)
def test_every_key_that_changes_the_work_refuses_an_efficiency(key: str, value: Any) -> None:
    assert list(differing({**WEAK, "world_size": 2, key: value}, WEAK)) == [key]


def test_strong_scaling_holds_the_global_batch_and_lets_the_micro_batch_shrink() -> None:
    base = {**WEAK, "regime": "strong"}
    assert differing({**base, "micro_batch_size": 2}, base) == {}
    assert list(differing({**base, "global_batch_size": 8}, base)) == ["global_batch_size"]


def test_a_key_that_one_table_lacks_differs_and_one_that_both_lack_is_not_judged() -> None:
    assert list(differing({"seq_len": 1}, {})) == ["seq_len"]
    assert differing({"device_name": math.nan}, {"device_name": None}) == {}


def test_the_base_is_the_smallest_measured_world_of_the_same_configuration() -> None:
    found = _table(
        _row("failed", 1, math.nan),
        _row("four", 4, 360.0),
        _row("two", 2, 200.0),
        _row("other", 1, 50.0, strategy="zero3"),
    )
    assert list(found["base_case_id"]) == ["", "two", "two", "other"]
    assert found.loc["four", "efficiency"] == pytest.approx(0.9)
    assert found.loc["four", "base_tokens_per_s_per_gpu"] == 100.0
    assert found.loc["two", "efficiency"] == 1.0
    assert math.isnan(found.loc["two", "efficiency_low"])
    assert math.isnan(found.loc["failed", "efficiency"])


def test_the_common_base_is_the_best_per_gpu_throughput_at_the_smallest_world() -> None:
    found = _table(
        _row("ddp1", 1, 100.0),
        _row("zero1", 1, 50.0, strategy="zero3"),
        _row("zero2", 2, 95.0, strategy="zero3"),
    )
    assert set(found["common_base_case_id"]) == {"ddp1"}
    assert found.loc["zero2", "efficiency"] == pytest.approx(0.95)  # looks efficient
    assert found.loc["zero2", "efficiency_common"] == pytest.approx(0.475)  # is slow


def test_rows_of_unlike_settings_are_bases_of_their_own_and_say_why() -> None:
    found = _table(_row("a", 8, 8000.0), _row("b", 16, 16 * 1195.0, micro_batch_size=10))
    assert found.loc["b", "efficiency"] == 1.0
    assert found.loc["b", "not_compared"] == "world 8: micro_batch_size 10 against 4"
    assert found.loc["a", "not_compared"] == ""


def test_nothing_measured_gives_empty_columns() -> None:
    found = _table(_row("a", 1, math.nan))
    assert found["efficiency"].isna().all()
    assert list(found["base_case_id"]) == [""]
