"""HSDP: FSDP2 inside groups of ranks (the nodes), replicas of the shards between them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from andromeda_scale.cost.layout import Collective, Traffic
from andromeda_scale.rank.failures import UnavailableHere
from andromeda_scale.strategies.fsdp2 import Fsdp2, Fsdp2Options
from andromeda_scale.suite import precision
from andromeda_scale.suite.precision import element_bytes
from andromeda_scale.suite.schema import Schema

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from andromeda_scale.rank.runtime import Runtime
    from andromeda_scale.suite.training import Train
    from andromeda_scale.suite.world import World


class HsdpOptions(Fsdp2Options):
    """`shard_size`: neighbouring ranks that hold the model once; null: a node, or half of one."""

    shard_size: PositiveInt | None = None


def shard_size(asked: int | None, world: World) -> int:
    """Ranks of a shard group: the ranks of a node; on one node the largest divisor up to half."""
    if asked is not None:
        return asked
    if world.nodes > 1:
        return world.ranks_per_node
    half = max(1, world.size // 2)
    return next(size for size in range(half, 0, -1) if world.size % size == 0)


def refuses_shard_size(asked: int | None, world: World) -> str | None:
    """Why the world cannot be cut into such groups."""
    if world.size % shard_size(asked, world) == 0:
        return None
    divisors = [str(d) for d in range(1, world.size + 1) if world.size % d == 0]
    shown = divisors if len(divisors) <= 8 else [*divisors[:4], "...", *divisors[-3:]]
    return (
        f"strategy.shard_size: {asked} does not divide {world.size} ranks; "
        f"use one of {', '.join(shown)}"
    )


def hybrid_mesh(asked: int | None, rt: Runtime) -> DeviceMesh:
    """The mesh (replicate, shard) of all ranks, neighbours in one shard group."""
    from torch.distributed.device_mesh import init_device_mesh

    shards = shard_size(asked, rt.world)
    return init_device_mesh(
        rt.device.type, (rt.world_size // shards, shards), mesh_dim_names=("replicate", "shard")
    )


class Hsdp(Fsdp2):
    """Fsdp2 on a mesh (replicate, shard), neighbouring ranks in one shard group.

    Gradients are reduce-scattered among the shards, then all-reduced among the replicas.
    """

    name: ClassVar[str] = "hsdp"
    Options: ClassVar[type[Schema]] = HsdpOptions

    @classmethod
    def num_shards(cls, options: Any, world: World) -> int:
        return shard_size(options.shard_size, world)

    @classmethod
    def refuses(cls, options: Any, train: Train, world: World, device: str) -> str | None:
        return refuses_shard_size(options.shard_size, world) or super().refuses(
            options, train, world, device
        )

    @classmethod
    def traffic(cls, options: Any, train: Train, world: World) -> Traffic:
        """Fsdp2's among the shards, and an all-reduce of P / shard_size among the replicas."""
        shards = cls.num_shards(options, world)
        inside = super().traffic(options, train, world)
        width = precision.reduction(options.reduce_dtype, train.precision)
        across = Collective(
            "all_reduce", 1 / shards, element_bytes(width), over=world.size // shards
        )
        return replace(inside, collectives=(*inside.collectives, across))

    def accelerator(self, rt: Runtime, num_parameters: int) -> dict[str, Any]:
        from accelerate.parallelism_config import ParallelismConfig

        shards = shard_size(self.options.shard_size, rt.world)
        if shards == 1:
            raise UnavailableHere("strategy.shard_size: 1: accelerate takes 2 shards or more")
        axes = ParallelismConfig(dp_replicate_size=rt.world_size // shards, dp_shard_size=shards)
        return {**super().accelerator(rt, num_parameters), "parallelism_config": axes}

    def mesh(self, rt: Runtime) -> DeviceMesh:
        return hybrid_mesh(self.options.shard_size, rt)
