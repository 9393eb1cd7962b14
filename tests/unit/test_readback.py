"""What torch.compile did is read back from its own counters."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch._dynamo.utils as dynamo

from andromeda_scale.rank.readback import MAX_REASON_LENGTH, MAX_REASONS, compile_facts


@pytest.fixture(autouse=True)
def _own_counters() -> Iterator[None]:
    torch._dynamo.reset()
    dynamo.counters.clear()
    yield
    torch._dynamo.reset()
    dynamo.counters.clear()


def test_nothing_compiled_has_no_facts() -> None:
    assert compile_facts() is None


def test_graph_breaks_are_counted_and_the_first_reasons_kept() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        x = x + 1
        torch._dynamo.graph_break()
        x = x * 2
        print(end="")
        return x - 1

    torch.compile(broken, backend="eager")(torch.ones(2))
    facts = compile_facts()
    assert facts is not None
    assert facts["graphs"] == 3
    assert facts["graph_breaks"] == 2
    reasons = facts["break_reasons"]
    assert 1 <= len(reasons) <= MAX_REASONS
    assert any("graph_break()" in reason for reason in reasons)
    assert all(len(reason) <= MAX_REASON_LENGTH and "\n" not in reason for reason in reasons)


@pytest.mark.parametrize(
    ("hits", "misses", "bypassed", "cold"),
    [
        (0, 2, 0, True),
        (2, 0, 0, False),
        (1, 1, 0, True),  # something was compiled afresh
        (2, 0, 1, True),  # a graph that no cache takes
        (0, 0, 0, True),  # a backend without a cache
    ],
)
def test_a_launch_is_warm_if_every_graph_was_in_the_cache(
    hits: int, misses: int, bypassed: int, cold: bool
) -> None:
    dynamo.counters["stats"]["unique_graphs"] = 1
    counted = {"hit": hits, "miss": misses, "bypass": bypassed}
    dynamo.counters["inductor"].update({f"fxgraph_cache_{k}": n for k, n in counted.items()})
    facts = compile_facts()
    assert facts is not None
    assert facts["cold"] is cold
    assert (facts["cache_hits"], facts["cache_misses"]) == (hits, misses + bypassed)
