"""A run that collects energy: its window is extended, and without a counter the rest goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from group import LLAMA

import andromeda_scale
from andromeda_scale.collectors.energy import open_meters
from andromeda_scale.metrics.devices import ENERGY_SECONDS, ENERGY_STEPS
from andromeda_scale.report.device_tables import energy_table

pytestmark = pytest.mark.thorough  # some twenty seconds and more

ASKED = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> andromeda_scale.Run:
    suite = {
        "question": "What does a token cost?",
        "model": LLAMA,
        "world": [1],
        "strategy": "single",
        "train": {"seq_len": 16, "micro_batch_size": 2},
        "measure": {"repeats": 1, "steps": ASKED, "profile_steps": 0},
        "collect": ["energy", "system"],
        "parity": "off",
        "device": "cpu",
    }
    return andromeda_scale.run(suite, run_dir=tmp_path_factory.mktemp("energy") / "run", quiet=True)


@pytest.fixture(scope="module")
def lines(run: andromeda_scale.Run) -> list[dict[str, Any]]:
    (file,) = Path(run.path).glob("cases/*/0/node-0.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def measured(lines: list[dict[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = next(x for x in lines if x.get("phase") == "measure")["values"]
    return values


def test_the_window_is_extended_and_says_so(
    run: andromeda_scale.Run, lines: list[dict[str, Any]]
) -> None:
    found = measured(lines)
    assert found["window"]["asked"] == ASKED
    assert found["window"]["steps"] == len(found["step_time"]["step_ns"]) >= ENERGY_STEPS
    # So many steps as warm-up's made of the seconds; a machine that speeds up has shorter ones.
    warmup: dict[str, Any] = next(x for x in lines if x.get("phase") == "warmup")["values"]
    longest_ns = max(warmup["step_time"]["step_ns"])
    assert found["window"]["steps"] * longest_ns > ENERGY_SECONDS * 1e9
    assert list(run.table("cases")["num_steps"]) == [found["window"]["steps"]]


def test_without_a_counter_there_is_a_reason_and_everything_else(
    run: andromeda_scale.Run, lines: list[dict[str, Any]]
) -> None:
    meters, why = open_meters()
    (case,) = run.table("cases").to_dict("records")
    assert case["status"] == "ok"
    assert case["tokens_per_s"] > 0
    node = next(line for line in lines if line["kind"] == "node")["values"]
    if not any(meter.kind == "packages" for meter in meters):
        assert why in case["energy_unavailable"]
        assert node["energy"].get("unavailable", why) == why
        assert any(
            note.startswith("energy unavailable") for note in energy_table(run.results).notes
        )
    else:
        assert case["energy_j"] > 0
        assert node["energy"]["idle"]["packages"]


def test_the_agents_clock_is_the_ranks(lines: list[dict[str, Any]]) -> None:
    system = next(line for line in lines if line["kind"] == "node")["values"]["system"]
    phases = [line for line in lines if line["kind"] == "phase"]
    last_s = system["start_s"] + system["t_s"][-1]
    assert system["start_s"] <= phases[0]["start_s"] < phases[-1]["end_s"] <= last_s
    window = measured(lines)["step_time"]
    in_phase = next(line for line in phases if line["phase"] == "measure")
    end_s = window["start_s"] + window["window_ns"] / 1e9
    assert in_phase["start_s"] <= window["start_s"] < end_s <= in_phase["end_s"]
