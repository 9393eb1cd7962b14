"""How ranks are cut into groups, and which options a strategy refuses, by key and with a remedy."""

from __future__ import annotations

from typing import Any

import pytest

from andromeda_scale import registry
from andromeda_scale.strategies.hsdp import shard_size
from andromeda_scale.suite.training import Segment, Train
from andromeda_scale.suite.world import World


@pytest.mark.parametrize(
    ("nodes", "ranks", "expected"),
    [
        *((1, 1, 1), (1, 2, 1), (1, 3, 1), (1, 4, 2), (1, 7, 1), (1, 8, 4), (1, 9, 3), (1, 12, 6)),
        *((2, 8, 8), (3, 1, 1), (4, 6, 6)),
    ],
)
def test_a_shard_group_is_a_node_or_half_of_the_only_one(
    nodes: int, ranks: int, expected: int
) -> None:
    world = World(nodes=nodes, ranks_per_node=ranks)
    assert shard_size(None, world) == expected
    assert world.size % expected == 0


def reason(name: str, options: dict[str, Any], ranks: int = 4, **train: Any) -> str | None:
    kind = registry.load("strategy", name)
    found: str | None = kind.refuses(
        kind.Options.model_validate(options), Train(**train), World(ranks_per_node=ranks), "cpu"
    )
    return found


HYBRID = {"sharding": "hybrid_shard"}


@pytest.mark.parametrize(
    ("name", "options", "ranks", "said"),
    [
        ("hsdp", {"shard_size": 3}, 4, "strategy.shard_size: 3 does not divide 4 ranks; use one"),
        ("hsdp", {"shard_size": 8}, 4, "use one of 1, 2, 4"),
        ("fsdp1", HYBRID | {"shard_size": 3}, 4, "strategy.shard_size: 3 does not divide 4 ranks"),
        ("fsdp1", HYBRID, 2, "use 2 or more, or strategy ddp"),
        ("fsdp1", {"shard_size": 2}, 4, "strategy.shard_size: 2 has no meaning with sharding: f"),
        ("fsdp2", {"reshard_after_forward": 3}, 4, "strategy.reshard_after_forward: 3 does not"),
        ("hsdp", {"reshard_after_forward": 4, "shard_size": 2}, 4, "4 does not divide 2 shards"),
        ("ddp", {"compression": "bf16"}, 2, "strategy.compression: torch's bf16 hook needs NCCL"),
    ],
)
def test_what_cannot_be_is_refused_with_key_and_remedy(
    name: str, options: dict[str, Any], ranks: int, said: str
) -> None:
    assert said in str(reason(name, options, ranks))


@pytest.mark.parametrize(
    ("name", "options", "ranks"),
    [
        ("hsdp", {}, 1),
        ("hsdp", {"shard_size": 4}, 4),
        ("fsdp1", HYBRID, 1),
        ("fsdp1", HYBRID, 4),
        ("fsdp2", {"reshard_after_forward": 2}, 4),
        ("ddp", {"compression": "fp16"}, 2),
    ],
)
def test_what_can_be_is_not_refused(name: str, options: dict[str, Any], ranks: int) -> None:
    assert reason(name, options, ranks) is None


@pytest.mark.parametrize("name", ["fsdp2", "hsdp"])
def test_units_of_blocks_and_segments_that_are_recomputed_end_together(name: str) -> None:
    def refused(together: int | None, segment: int) -> str | None:
        return reason(
            name, {"blocks_per_unit": together}, activation_checkpointing=Segment(segment=segment)
        )

    said = str(refused(2, 3))
    assert said.startswith("strategy.blocks_per_unit: a unit of 2 blocks would end within")
    assert said.endswith("use a divisor or a multiple of 3")
    fits = [(1, 3), (3, 3), (6, 3), (2, 4), (None, 3)]
    assert [refused(*both) for both in fits] == [None] * len(fits)
    kind = registry.load("strategy", name)
    of_segments = Train(activation_checkpointing=Segment(segment=3))
    assert kind.together(kind.Options(), of_segments) == 1
    assert kind.together(kind.Options(), Train()) is None


def test_a_long_list_of_divisors_is_shortened() -> None:
    assert "1, 2, 3, 4, ..., 240, 360, 720" in str(reason("hsdp", {"shard_size": 7}, 720))


@pytest.mark.parametrize("value", [0, 1, -2, 1.5, "yes", None])
def test_reshard_after_forward_is_true_false_or_a_number_above_one(value: Any) -> None:
    options = registry.load("strategy", "fsdp2").Options
    with pytest.raises(ValueError, match="reshard_after_forward"):
        options.model_validate({"reshard_after_forward": value})


@pytest.mark.parametrize(
    ("options", "ranks", "precision", "early"),
    [
        ({}, 2, "bf16", True),
        ({}, 1, "bf16", False),
        ({"early_gather": False}, 2, "bf16", False),
        ({}, 2, "fp16", False),  # its scaler skips all of an update or nothing
    ],
)
def test_an_update_is_in_two_parts_where_there_is_something_to_gather_between(
    options: dict[str, Any], ranks: int, precision: str, early: bool
) -> None:
    kind = registry.load("strategy", "fsdp2")
    train = Train.model_validate({"precision": precision})
    world = World(ranks_per_node=ranks)
    assert kind.gathers_early(kind.Options.model_validate(options), train, world) == early
