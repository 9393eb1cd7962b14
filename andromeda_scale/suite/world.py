"""A world: how many ranks, on how many nodes. No torch."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, PositiveInt

from andromeda_scale.suite.schema import MAX_RANKS, Schema, shown


class World(Schema):
    """How many ranks, and on how many nodes. `8` is 8 ranks on one node, `2x8` 8 on each of 2."""

    nodes: PositiveInt = 1
    ranks_per_node: PositiveInt = 1

    @property
    def size(self) -> int:
        return self.nodes * self.ranks_per_node

    def __str__(self) -> str:
        return written(self.nodes, self.ranks_per_node)


def written(nodes: int, ranks_per_node: int) -> str:
    """A world as suites and tables write it: `8`, or `2x8` on two nodes."""
    return f"{nodes}x{ranks_per_node}" if nodes > 1 else str(ranks_per_node)


def _world(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise ValueError(f"{value} is not a positive number of ranks; use 1 or more")
        return _bounded(value, 1, value)
    if isinstance(value, str):
        nodes, _, ranks = value.partition("x") if "x" in value else ("1", "", value)
        if not (nodes.isdecimal() and ranks.isdecimal() and nodes.strip("0") and ranks.strip("0")):
            raise _no_world(value)
        if max(len(nodes), len(ranks)) > len(str(MAX_RANKS)):
            return _bounded(value, MAX_RANKS, MAX_RANKS)
        return _bounded(value, int(nodes), int(ranks))
    if not isinstance(value, dict | World):
        raise _no_world(value)
    return value


def _no_world(value: Any) -> ValueError:
    return ValueError(
        f"{shown(value)} is not a world; use a number of ranks, 2x8 for 2 nodes of 8 ranks, or a "
        "list of worlds"
    )


def _bounded(value: Any, nodes: int, ranks: int) -> World:
    """The world, if it is one of this planet; `value` is what was written."""
    if nodes * ranks > MAX_RANKS:
        written = str(value) if len(str(value)) <= 60 else f"{str(value)[:57]}..."
        raise ValueError(
            f"{written} is more than {MAX_RANKS} ranks; use a world of {MAX_RANKS} or fewer"
        )
    return World(nodes=nodes, ranks_per_node=ranks)


WorldSpec = Annotated[World, BeforeValidator(_world)]
