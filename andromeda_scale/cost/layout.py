"""What a strategy says about its bytes: states per parameter, and traffic per step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

UNIT_PARAMETERS = 10**8


@dataclass(frozen=True)
class Part:
    """One kind of state: bytes per parameter, divided over `shards` ranks (1: replicated)."""

    bytes_per_parameter: float
    shards: int = 1
    on: Literal["device", "host"] = "device"  # host: offloaded; on a CPU both are one memory

    @property
    def per_rank(self) -> float:
        """Bytes per parameter of the whole model that one rank holds."""
        return self.bytes_per_parameter / self.shards


@dataclass(frozen=True)
class StateLayout:
    """Bytes a rank holds per parameter of the model, between backward and update (Adam).

    fp32 DDP: 4 + 4 + 0 + 8 = 16. `master` is a separate fp32 copy where the strategy keeps one.
    """

    parameters: Part
    gradients: Part
    master: Part
    optimizer_state: Part

    @property
    def bytes_per_parameter(self) -> float:
        """Sum of all parts per rank and parameter, on the device and on the host."""
        return self.bytes_on("device") + self.bytes_on("host")

    def bytes_on(self, place: Literal["device", "host"]) -> float:
        """Sum of the parts that lie there, per rank and parameter."""
        parts = (self.parameters, self.gradients, self.master, self.optimizer_state)
        return sum(part.per_rank for part in parts if part.on == place)


def blocks_per_unit(asked: int | None, num_blocks: int, block_parameters: int) -> int:
    """Blocks that are gathered and reduced together; None: by their size.

    Then so many that they hold 1e8 parameters, FSDP1's `min_num_params` of a unit, as the host's
    work is by the unit, but at most an eighth of the blocks, as the first waits for its gather and
    the last to be reduced.
    """
    if asked is not None:
        return max(1, min(asked, num_blocks))
    return max(1, min(math.ceil(UNIT_PARAMETERS / max(1, block_parameters)), num_blocks // 8))


@dataclass(frozen=True)
class Collective:
    """One kind of collective of a step: `op` moves `elements_per_parameter` x P elements."""

    op: Literal["all_reduce", "all_gather", "reduce_scatter", "reduce"]
    elements_per_parameter: float
    bytes_per_element: int
    per: Literal["step", "micro_batch"] = "step"
    over: int = 0  # ranks in the group; 0: all data-parallel ranks
    # Whose parameters P counts; inner_blocks: all blocks but those of the last unit, where
    # blocks_per_unit(together, ...) blocks are one.
    of: Literal["all", "blocks", "inner_blocks"] = "all"
    together: int | None = 1
    beyond: int = 0  # so many of them are not counted: they stay where they are


@dataclass(frozen=True)
class Traffic:
    """All collectives of one step of a strategy, scalars excluded."""

    collectives: tuple[Collective, ...] = ()
