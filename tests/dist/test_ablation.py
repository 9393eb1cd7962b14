"""Steps without communication: nothing moves, and exposed seconds are seen without a profiler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import several
from group import Group, Line, end, phase_values, read_lines, tiny_case

pytestmark = pytest.mark.thorough  # some twenty seconds and more

MODEL = {
    "family": "llama",
    "vocab_size": 2048,
    "d_model": 256,
    "d_ff": 512,
    "num_layers": 2,
    "num_heads": 4,
}
SILENT = ("ddp", "fsdp2", "zero2")
REFUSED = {"zero3": "stage 3 fetches parameters", "fsdp1": "cannot compute without communication"}
MORE = ("hsdp", "zero1", "fsdp1")  # one more combination of what is tried above
NOISE = 0.05  # of the step: a wider interval decides nothing
SLACK = 0.02


def thorough(names: Sequence[str]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.thorough) for name in names]


ALL_SILENT = [*SILENT, *thorough(("hsdp", "zero1"))]
ALL_REFUSED = ["zero3", *thorough(("fsdp1",))]


@pytest.fixture(scope="module")
def runs(group: Group) -> Callable[[str], list[list[Line]]]:
    """Name of a strategy -> the lines of each of two ranks; launched when first asked for."""
    found: dict[str, list[list[Line]]] = {}

    def lines(name: str) -> list[list[Line]]:
        if name not in found:
            names = MORE if name in MORE else (*SILENT, "zero3")
            specs = [group.specs(case_of(one), 2) for one in names]
            arguments = [([of_case[rank] for of_case in specs],) for rank in range(2)]
            group.run(several.cases, arguments, timeout_s=300.0)
            for one, of_case in zip(names, specs, strict=True):
                found[one] = [read_lines(Path(spec.record_path)) for spec in of_case]
        return found[name]

    return lines


def case_of(strategy: str) -> Any:
    return tiny_case(
        strategy,
        model=MODEL,
        train={"seq_len": 64},
        collect=("communication", "ablation"),
        measure={"steps": 1, "profile_steps": 10},
    )


def ablation(lines: list[Line]) -> dict[str, Any]:
    assert end(lines)["status"] == "ok", end(lines)
    found: dict[str, Any] = phase_values(lines, "inspect")["ablation"]
    return found


@pytest.mark.parametrize("name", ALL_SILENT)
def test_nothing_is_sent_without_communication(
    name: str, runs: Callable[[str], list[list[Line]]]
) -> None:
    for lines in runs(name):
        found = ablation(lines)
        wire = sum(
            row["wire_bytes_per_step"]
            for row in phase_values(lines, "profile")["communication"]["collectives"]
        )
        assert min(found["full_bytes"]) > wire
        assert max(found["without_bytes"]) < 0.001 * wire
        assert len(found["full_s"]) == len(found["without_s"]) == found["order"].count("A")


@pytest.mark.parametrize("name", ALL_REFUSED)
def test_what_cannot_be_silenced_says_why(
    name: str, runs: Callable[[str], list[list[Line]]]
) -> None:
    for lines in runs(name):
        assert REFUSED[name] in ablation(lines)["unavailable"]


@pytest.mark.parametrize("name", ALL_SILENT)
def test_exposed_is_at_most_the_ablation(
    name: str, runs: Callable[[str], list[list[Line]]]
) -> None:
    """exposed <= ablation + 2 % of the step, where the machine is quiet enough to say."""
    full, without = (
        np.max([ablation(lines)[key] for lines in runs(name)], axis=0)
        for key in ("full_s", "without_s")
    )
    profiles = [phase_values(lines, "profile")["communication"] for lines in runs(name)]
    exposed_s = np.mean([profile["comm_exposed_s"] for profile in profiles])
    step_s = np.mean(np.max([profile["step_s"] for profile in profiles], axis=0))
    error_s = 2 * np.std(full - without, ddof=1) / np.sqrt(len(full))
    if error_s > NOISE * step_s or step_s > (1 + NOISE) * full.mean():
        pytest.skip(f"too noisy: +-{error_s:.3f} s of {step_s:.3f} s, unprofiled {full.mean():.3f}")
    assert exposed_s <= (full - without).mean() + error_s + SLACK * step_s


def test_one_rank_has_nothing_to_leave_out(run_case: Callable[..., list[list[Line]]]) -> None:
    (lines,) = run_case(tiny_case("ddp", collect=("ablation",)), 1)
    assert "one rank" in ablation(lines)["unavailable"]
