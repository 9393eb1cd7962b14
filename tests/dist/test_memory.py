"""Memory of real ranks: states to the byte, and peaks that belong to their phase."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, prod
from pathlib import Path

import planted
import pytest
from group import Group, Line, end, of_kind, phase_values, read_lines, tiny_case

from andromeda_scale.config import Case
from andromeda_scale.models.factory import ModelFactory

RunCase = Callable[..., list[list[Line]]]
States = dict[str, int]

# Sizes that two ranks cannot halve: rows of 257 and 21, and a norm astride the middle.
UNEVEN = {
    "family": "llama",
    "vocab_size": 257,
    "d_model": 12,
    "d_ff": 21,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
}


def shapes(case: Case) -> list[tuple[int, ...]]:
    module = ModelFactory(case.model, case.train, case.seed).build()
    return [tuple(parameter.shape) for parameter in module.parameters()]


def replicated(sizes: list[tuple[int, ...]], rank: int, num_ranks: int, width: int) -> States:
    """fp32 whatever the compute: 4 + 4 + 8 bytes per parameter, 16 in all."""
    count = sum(map(prod, sizes))
    return states(4 * count, 4 * count, 0, 8 * count)


def fsdp2(sizes: list[tuple[int, ...]], rank: int, num_ranks: int, width: int) -> States:
    """16 / N: ceil(dim0 / N) rows a rank, of which the optimizer sees only those that exist."""
    padded = existing = 0
    for rows, *rest in sizes:
        share = ceil(rows / num_ranks)
        padded += share * prod(rest)
        existing += min(max(rows - rank * share, 0), share) * prod(rest)
    return states(4 * padded, 4 * padded, 0, 8 * existing)


def zero12(sizes: list[tuple[int, ...]], rank: int, num_ranks: int, width: int) -> States:
    """width + (width + 12) / N: one flat tensor, padded to 2N elements, cut into N partitions.

    A parameter astride a cut keeps its whole gradient on both sides.
    """
    flat = 2 * num_ranks * ceil(sum(map(prod, sizes)) / (2 * num_ranks))
    share = flat // num_ranks
    start, first, last = 0, rank * share, (rank + 1) * share
    gradients = 0
    for count in map(prod, sizes):
        gradients += count if start < last and start + count > first else 0
        start += count
    return states(width * flat, width * gradients, 4 * share, 8 * share)


def zero3(sizes: list[tuple[int, ...]], rank: int, num_ranks: int, width: int) -> States:
    """(2 width + 12) / N, each parameter cut alone; those under the threshold also stay whole."""
    counts = list(map(prod, sizes))
    share = sum(ceil(count / num_ranks) for count in counts)
    whole = sum(counts) if num_ranks > 1 else 0  # one rank's partition is the parameter
    return states(width * (share + whole), width * share, 4 * share, 8 * share)


def states(parameters: int, gradients: int, master: int, optimizer_state: int) -> States:
    return {
        "parameters": parameters,
        "gradients": gradients,
        "master": master,
        "optimizer_state": optimizer_state,
    }


FORMS = {"ddp": replicated, "fsdp2": fsdp2, "zero1": zero12, "zero2": zero12, "zero3": zero3}
BF16 = [("ddp", 2), ("fsdp2", 2), ("zero1", 2), ("zero3", 2)]


@pytest.mark.parametrize(
    ("strategy", "num_ranks", "precision"),
    [
        *((strategy, num_ranks, "fp32") for strategy in FORMS for num_ranks in (1, 2)),
        *((strategy, num_ranks, "bf16") for strategy, num_ranks in BF16),
    ],
)
def test_state_bytes_are_those_of_the_closed_form(
    strategy: str, num_ranks: int, precision: str, run_case: RunCase
) -> None:
    case = tiny_case(strategy, model=UNEVEN, train={"precision": precision})
    width = {"fp32": 4, "bf16": 2}[precision]
    for rank, lines in enumerate(run_case(case, num_ranks)):
        assert end(lines)["status"] == "ok", end(lines)
        found = of_kind(lines, "describe")[-1]["values"]["bytes"]
        assert found == FORMS[strategy](shapes(case), rank, num_ranks, width)


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
    case = tiny_case("ddp", collect=("memory",), train={"seq_len": 64})
    for lines in run_case(case, 2):
        assert end(lines)["status"] == "ok", end(lines)
        found = phase_values(lines, "inspect")["memory"]["peak_allocated_bytes"]
        described = of_kind(lines, "describe")[-1]["values"]
        states = sum(described["bytes"].values())
        logits = 3 * 4 * 2 * 64 * 256  # three tensors of fp32 scores
        assert states + logits < found < 3 * (states + logits)
        # That step is not the one which is read back: its profiler still sees the operators.
        assert described["attention"]["ops"]
