"""Memory of real ranks: peaks that belong to their phase, and to the parts of a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import planted
import pytest
from group import Group, Line, end, of_kind, phase_values, read_lines, tiny_case

RunCase = Callable[..., list[list[Line]]]


@pytest.fixture(scope="module")
def planted_in_warmup(group: Group) -> list[Line]:
    """The lines of a rank that touched PLANTED_BYTES in its first step."""
    (spec,) = group.specs(tiny_case("ddp", collect=("memory",)), 1)
    group.run(planted.first_step, [(spec, planted.memory)])
    return read_lines(Path(spec.record_path))


def test_a_peak_belongs_to_the_phase_that_reached_it(planted_in_warmup: list[Line]) -> None:
    warmup, measure = (
        phase_values(planted_in_warmup, phase)["memory"] for phase in ("warmup", "measure")
    )
    if measure["host"]["peak_since"] != "phase":
        pytest.skip("this kernel cannot reset a process's peak (/proc/self/clear_refs)")
    above = warmup["peak_memory_bytes"] - measure["peak_memory_bytes"]
    assert above > 0.8 * planted.PLANTED_BYTES


def test_memory_given_back_is_in_the_peak_alone(planted_in_warmup: list[Line]) -> None:
    host = phase_values(planted_in_warmup, "warmup")["memory"]["host"]
    assert host["peak_rss_bytes"] - host["rss_bytes"] > 0.8 * planted.PLANTED_BYTES
    assert 0 < host["uss_bytes"] <= host["rss_bytes"]


def test_a_cpu_rank_has_no_device_memory(planted_in_warmup: list[Line]) -> None:
    found = phase_values(planted_in_warmup, "measure")["memory"]
    assert found["device"] is None
    assert found["peak_memory_bytes"] == found["host"]["peak_rss_bytes"]


def test_a_cpu_rank_counts_what_a_step_of_its_own_allocates(run_case: RunCase) -> None:
    case = tiny_case("ddp", collect=("memory", "snapshot"), train={"seq_len": 64})
    for lines in run_case(case, 2):
        assert end(lines)["status"] == "ok", end(lines)
        memory = phase_values(lines, "inspect")["memory"]
        found, parts = memory["peak_allocated_bytes"], memory["parts"]
        described = of_kind(lines, "describe")[-1]["values"]
        states = sum(described["bytes"].values())
        logits = 3 * 4 * 2 * 64 * 256  # three tensors of fp32 scores
        assert states + logits < found < 3 * (states + logits)
        assert parts["start"] < parts["update"] <= parts["forward"] <= parts["backward"] == found
        assert phase_values(lines, "inspect")["snapshot"] == {
            "unavailable": "torch's allocator on a CPU keeps no history"
        }
        # That step is not the one which is read back: its profiler still sees the operators.
        assert described["attention"]["ops"]
