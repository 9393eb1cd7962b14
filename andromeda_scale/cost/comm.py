"""Bytes a rank sends per step, by collective, from what a strategy says of its traffic. No torch.

A ring sends, per rank and S bytes in all, 2S (n-1)/n for an all-reduce and S (n-1)/n for an
all-gather, a reduce-scatter or a reduce (mean over ranks), with n the group's size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from andromeda_scale.cost.layout import Traffic, blocks_per_unit


@dataclass(frozen=True)
class CommunicationBytes:
    """Bytes per rank and step of each kind of collective, scalars excluded."""

    payload: Mapping[str, float]  # S: the whole tensors reduced or gathered
    wire: Mapping[str, float]  # what a ring sends from each rank

    @property
    def total_wire(self) -> float:
        return sum(self.wire.values())


def bus_factor(op: str, group_size: int) -> float:
    """Bytes a rank moves per byte of the collective's size (nccl-tests, PERFORMANCE.md)."""
    share = (group_size - 1) / group_size
    return {
        "all_reduce": 2 * share,
        "all_gather": share,
        "reduce_scatter": share,
        "all_to_all": share,
    }.get(op, 1.0)


def wire_factor(op: str, group_size: int, backend: str = "nccl") -> float:
    """Bytes a rank sends per byte of the collective's size, mean over the group.

    gloo reduces to one rank by a reduce-scatter and a gather, and reduce-scatters by all-reduce.
    """
    share = (group_size - 1) / group_size
    of_gloo = {"reduce_scatter": 2 * share, "reduce": share + share / group_size}
    found = {
        "all_reduce": 2 * share,
        **dict.fromkeys(("all_gather", "reduce_scatter", "all_to_all", "reduce"), share),
        **dict.fromkeys(("broadcast", "gather", "scatter"), share),
        **(of_gloo if backend == "gloo" else {}),
    }
    return found.get(op, 1.0)


def bytes_per_step(
    traffic: Traffic,
    num_parameters: int,
    world_size: int,
    grad_accum: int,
    *,
    num_block_parameters: int | None = None,
    num_blocks: int = 1,
    backend: str = "nccl",
) -> CommunicationBytes:
    """Sum the collectives of one step.

    `num_block_parameters`: parameters in blocks, for collectives of blocks alone; None: all are.
    `num_blocks`: for those of all blocks but the last unit's.
    """
    payload: dict[str, float] = {}
    wire: dict[str, float] = {}
    blocks = num_parameters if num_block_parameters is None else num_block_parameters
    for part in traffic.collectives:
        together = blocks_per_unit(part.together, num_blocks, blocks // num_blocks)
        inner = blocks - (num_blocks % together or together) * (blocks // num_blocks)
        counted = {"all": num_parameters, "blocks": blocks, "inner_blocks": inner}[part.of]
        times = grad_accum if part.per == "micro_batch" else 1
        counted = max(0, counted - part.beyond)
        size = times * part.elements_per_parameter * counted * part.bytes_per_element
        ranks = part.over or world_size
        factor = wire_factor(part.op, ranks, backend)
        payload[part.op] = payload.get(part.op, 0.0) + size
        wire[part.op] = wire.get(part.op, 0.0) + factor * size
    return CommunicationBytes(payload, wire)
