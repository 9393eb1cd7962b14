"""Laws of scaling through known curves, and published tables as facts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from andromeda_scale.analysis.laws import LAWS, MIN_SIZES, Fit, fits, odd_rows
from andromeda_scale.analysis.scaling import Launches, add_scaling, karp_flatt
from andromeda_scale.analysis.stats import Interval, Sample

SIZES = (1, 2, 4, 8, 16, 32)

# github.com/mosaicml/llm-foundry, scripts/train/benchmarking/README.md, A100 40 GB, FULL_SHARD:
# model, GPUs, micro batch, tokens/s per GPU, MFU %
PUBLISHED = [
    ("125m", 8, 26, 136334, 42.75),
    ("125m", 16, 26, 130535, 40.93),
    ("125m", 32, 26, 127122, 39.86),
    ("125m", 64, 26, 125234, 39.27),
    ("125m", 128, 26, 123936, 38.86),
    ("1b", 32, 10, 15555, 45.39),
    ("1b", 64, 10, 19001, 55.44),
    ("1b", 128, 10, 18647, 54.41),
    ("13b", 8, 4, 1668, 43.94),
    ("13b", 16, 10, 1993, 52.5),
]


def _row(model: str, world: int, micro_batch: int, per_gpu: float, **more: Any) -> dict[str, Any]:
    return {
        "case_id": f"{model}-{world}",
        "regime": "weak",
        "strategy": "fsdp",
        "driver": "native",
        "model": model,
        "micro_batch_size": micro_batch,
        "world_size": world,
        "nodes": 1,
        "tokens_per_s": per_gpu * world,
        "tokens_per_s_per_gpu": per_gpu,
        **more,
    }


def _series(speedups: Sequence[float], regime: str) -> list[dict[str, Any]]:
    return [
        {"world_size": n, "regime": regime, "tokens_per_s": 100.0 * s}
        for n, s in zip(SIZES, speedups, strict=False)
    ]


def _fitted(name: str, speedups: Sequence[float], regime: str) -> Fit:
    (fit,) = [one for one in fits(_series(speedups, regime)) if one.law == name]
    return fit


@pytest.mark.parametrize(
    ("name", "regime", "values"),
    [("Amdahl", "strong", [0.08]), ("Gustafson", "weak", [0.1]), ("USL", "weak", [1, 0.04, 2e-3])],
)
def test_a_law_finds_the_parameters_of_its_own_curve(
    name: str, regime: str, values: list[float]
) -> None:
    curve = LAWS[name].curve
    fit = _fitted(name, curve(np.array(SIZES, dtype=float), *values).tolist(), regime)
    found = [one.centre for one in fit.parameters.values()]
    assert found == pytest.approx(values, rel=1e-3)
    assert max(map(abs, fit.residuals)) < 1e-4
    assert fit.speedup(64).centre == pytest.approx(curve(np.array([64.0]), *values)[0], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "regime", "values"),
    [("Amdahl", "strong", [0.08]), ("Gustafson", "weak", [0.1]), ("USL", "weak", [1, 0.04, 1e-3])],
)
def test_what_a_law_says_of_a_larger_world_holds_the_truth_as_often_as_it_claims(
    name: str, regime: str, values: list[float]
) -> None:
    rng, curve = np.random.default_rng(0), LAWS[name].curve
    truth = curve(np.array([128.0]), *values)[0]
    exact = curve(np.array(SIZES, dtype=float), *values)
    held = 0
    for _ in range(100):
        measured = exact * np.exp(0.01 * rng.standard_normal(len(SIZES)))
        _, low, high = _fitted(name, measured.tolist(), regime).speedup(128)
        held += low <= truth <= high
    assert held >= 88


def test_each_law_is_of_its_regime() -> None:
    speedups = [1, 1.9, 3.5, 6, 9, 12]
    assert [one.law for one in fits(_series(speedups, "strong"))] == ["Amdahl", "USL"]
    assert [one.law for one in fits(_series(speedups, "weak"))] == ["Gustafson", "USL"]


def test_no_law_under_five_sizes_and_none_beyond_four_times_the_largest() -> None:
    assert fits(_series([1, 1.9, 3.6, 7], "weak")) == []
    (fit, _) = fits(_series([1, 1.9, 3.7, 7.3, 14.5], "weak"))
    assert len(fit.worlds) == MIN_SIZES
    assert fit.speaks_to == 64
    assert fit.speedup(64).centre > 50
    with pytest.raises(ValueError, match="1 to 64 ranks"):
        fit.speedup(65)


def test_the_peak_of_the_usl_is_where_it_turns_and_is_silent_out_of_reach() -> None:
    p = np.array(SIZES, dtype=float)
    near = _fitted("USL", LAWS["USL"].curve(p, 1, 0.04, 2e-3).tolist(), "weak")
    peak = near.peak()
    assert peak is not None
    assert peak.centre == pytest.approx(math.sqrt(0.96 / 2e-3), rel=1e-2)
    far = _fitted("USL", LAWS["USL"].curve(p, 1, 0.04, 1e-5).tolist(), "weak")
    assert far.peak() is None


def test_noise_shows_in_the_residuals_and_in_the_parameters_intervals() -> None:
    p = np.array(SIZES, dtype=float)
    noise = np.exp([0, 0.03, -0.03, 0.03, -0.03, 0.03])
    fit = _fitted("Amdahl", (LAWS["Amdahl"].curve(p, 0.08) * noise).tolist(), "strong")
    serial = fit.parameters["serial"]
    assert serial.low < 0.08 < serial.high
    assert serial.high - serial.low > 0.005
    assert 0.02 < max(map(abs, fit.residuals)) < 0.06


def test_karp_flatt_is_the_serial_share_of_amdahls_law() -> None:
    speedup = 1 / (0.1 + 0.9 / 8)
    found = karp_flatt(Interval(speedup, speedup * 0.95, speedup * 1.05), 8)
    assert found.centre == pytest.approx(0.1)
    assert found.low < 0.1 < found.high


def _scaled(model: str) -> pd.DataFrame:
    return _scaled_rows([_row(*row[:4]) for row in PUBLISHED if row[0] == model])


def _scaled_rows(rows: list[dict[str, Any]]) -> pd.DataFrame:
    launches = {}
    for row in rows:
        rate = Sample({0: row["tokens_per_s"]})
        launches[row["case_id"]] = Launches(rate, rate)
    return add_scaling(pd.DataFrame(rows), launches)


def test_efficiencies_of_a_published_table_are_the_ratios_of_its_printed_mfu() -> None:
    printed = [mfu for model, *_, mfu in PUBLISHED if model == "125m"]
    found = _scaled("125m")["efficiency"]
    assert found.tolist() == pytest.approx([mfu / printed[0] for mfu in printed], abs=3e-4)
    assert found.iloc[-1] == pytest.approx(0.909, abs=5e-4)


def test_published_rows_of_unlike_micro_batches_are_not_119_5_percent() -> None:
    found = _scaled("13b")
    assert 1993 / 1668 == pytest.approx(1.195, abs=5e-4)  # what a careless table would print
    assert found["efficiency"].tolist() == [1.0, 1.0]
    assert found["not_compared"].tolist() == ["", "world 8: micro_batch_size 10 against 4"]


def test_the_odd_row_of_a_published_table_is_flagged() -> None:
    rows = [_row(*row[:4]) for row in PUBLISHED if row[0] == "1b"]
    ((odd, other, rise),) = odd_rows(rows)
    assert (odd["world_size"], other["world_size"]) == (32, 64)
    assert rise == pytest.approx(19001 / 15555 - 1)
    assert odd_rows([_row(*row[:4]) for row in PUBLISHED if row[0] == "125m"]) == []


def test_a_rise_that_the_intervals_explain_is_not_odd() -> None:
    noisy = {"tokens_per_s_per_gpu_low": 80.0, "tokens_per_s_per_gpu_high": 120.0}
    rows = [_row("m", 1, 4, 95.0, **noisy), _row("m", 2, 4, 105.0, **noisy)]
    assert odd_rows(rows) == []
    assert len(odd_rows([_row("m", 1, 4, 95.0), _row("m", 2, 4, 105.0)])) == 1


@pytest.mark.parametrize(
    ("name", "regime", "value"), [("Amdahl", "strong", 0.05), ("Gustafson", "weak", 0.1)]
)
def test_intervals_of_laws_know_that_all_speedups_share_the_bases_noise(
    name: str, regime: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(LAWS, "USL")  # whose 200 fits nobody asks for here
    rng = np.random.default_rng(0)
    true = LAWS[name].curve(np.array(SIZES, dtype=float), value)
    found = [
        _fitted(name, (true * np.exp(0.01 * rng.standard_normal(len(SIZES)))).tolist(), regime)
        for _ in range(200)
    ]
    intervals = [fit.parameters["serial"] for fit in found]
    assert sum(one.low <= value <= one.high for one in intervals) >= 180  # 120 to 150 without


def test_throughput_that_falls_from_the_first_size_on_has_no_peak() -> None:
    for speedups in ([1, 0.9, 0.8, 0.7, 0.6], [1, 0.5, 0.25, 0.12, 0.06]):
        assert _fitted("USL", speedups, "weak").peak() is None  # not "near 0.36 ranks"


def test_as_many_ranks_on_other_nodes_are_not_more_ranks() -> None:
    rows = [_row("m", 4, 4, 95.0), _row("m", 4, 4, 120.0, nodes=2), _row("m", 8, 4, 119.0, nodes=2)]
    assert odd_rows(rows) == []


def test_a_refusal_names_the_nearest_of_the_smaller_worlds() -> None:
    found = _scaled_rows([_row("m", n, batch, 10.0) for n, batch in ((8, 4), (16, 10), (32, 14))])
    assert found["not_compared"].tolist()[-1] == "world 16: micro_batch_size 14 against 10"
