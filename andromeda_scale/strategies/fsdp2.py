"""FSDP2 (`fully_shard`): parameters, gradients, optimizer state sharded as DTensors, by block."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, StrictBool

from andromeda_scale.cost import working
from andromeda_scale.cost.layout import Collective, Part, StateLayout, Traffic, blocks_per_unit
from andromeda_scale.cost.working import Device, Sizes, Working
from andromeda_scale.rank.failures import UnavailableHere
from andromeda_scale.strategies import common
from andromeda_scale.strategies.base import TrainState, Unavailable
from andromeda_scale.strategies.fsdp2_units import (
    groups_of,
    kept_shards,
    norms_when_reduced,
    parameter_groups,
    prefetch,
    reduction_of,
    shards_of,
    under_way,
)
from andromeda_scale.strategies.native import Native
from andromeda_scale.suite import precision
from andromeda_scale.suite.precision import POLICIES, element_bytes
from andromeda_scale.suite.schema import MAX_RANKS, Schema
from andromeda_scale.suite.training import Segment

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed.device_mesh import DeviceMesh

    from andromeda_scale.models.factory import ModelFactory
    from andromeda_scale.rank.runtime import Runtime
    from andromeda_scale.suite.training import Train
    from andromeda_scale.suite.world import World


class Fsdp2Options(Schema):
    """`reshard_after_forward` false keeps the blocks gathered until backward: memory for traffic.

    A number keeps each block in that many shards, gathered again among so many neighbours alone.
    What is outside the blocks stays gathered in every case.
    """

    # Blocks that are gathered and reduced together; null: by their size (cost.layout). Small ones
    # compute for less time than the host needs for a unit.
    blocks_per_unit: Annotated[int, Field(ge=1, le=10**4)] | None = None
    reshard_after_forward: StrictBool | Annotated[int, Field(ge=2, le=MAX_RANKS)] = True
    # Whether the last unit of blocks is freed too, whose backward comes first and would gather it.
    reshard_last: StrictBool = False
    # Units that are gathered ahead of the one that computes, in forward and in backward; 0: torch's
    # own choice, which is made on the host as it arrives.
    prefetch: Annotated[int, Field(ge=0, le=64)] = 1
    # What forward begins with is updated first, and gathered while the rest is updated.
    early_gather: StrictBool = True
    # The norm to clip by is taken of each unit's gradient when it has been reduced, in backward.
    early_norm: StrictBool = True
    # What gradients cross the network in, the compute dtype or float32; null: the policy's.
    reduce_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    cpu_offload: bool = False  # shards, their gradients and the optimizer live on the host


class Fsdp2(Native):
    """Blocks, one or several, are units; so are embedding, and final norm with head, where untied.

    Float32 shards, cast when gathered.

    Under gradient accumulation gradients stay whole and unreduced until the last micro-batch:
    4 bytes per parameter more than `layout` says.
    """

    name: ClassVar[str] = "fsdp2"
    Options: ClassVar[type[Schema]] = Fsdp2Options
    accelerate_on: ClassVar[frozenset[str]] = frozenset({"cuda"})
    prepared_on: ClassVar[str | None] = "cpu"  # fully_shard takes unit after unit to the device

    @classmethod
    def num_shards(cls, options: Any, world: World) -> int:
        """How many ranks together hold the model once."""
        return world.size

    @classmethod
    def refuses(cls, options: Any, train: Train, world: World, device: str) -> str | None:
        if reason := super().refuses(options, train, world, device):
            return reason
        if reason := precision.refused_reduction(options.reduce_dtype, train.precision):
            return reason
        kept, shards = options.reshard_after_forward, cls.num_shards(options, world)
        if not isinstance(kept, bool) and shards % kept:
            return (
                f"strategy.reshard_after_forward: {kept} does not divide {shards} shards; "
                "use true, false or a divisor"
            )
        if options.reshard_last and kept is False:
            return "strategy.reshard_last: reshard_after_forward: false frees no unit; remove one"
        together, recomputed = options.blocks_per_unit, train.activation_checkpointing
        if together and isinstance(recomputed, Segment):
            size = recomputed.segment
            if together % size and size % together:
                return (
                    f"strategy.blocks_per_unit: a unit of {together} blocks would end within one "
                    f"of train.activation_checkpointing's segments of {size}; use a divisor or a "
                    f"multiple of {size}"
                )
        return None

    @classmethod
    def together(cls, options: Any, train: Train) -> int | None:
        """blocks_per_unit; by default 1 where segments of blocks are recomputed.

        A segment that runs again through a part of a unit leaves that unit's forward open, and
        torch 2.11 then takes the next forward for a part of it: its first gathers would not wait
        for the update of the weights they gather.
        """
        asked: int | None = options.blocks_per_unit
        return asked or (1 if isinstance(train.activation_checkpointing, Segment) else None)

    @classmethod
    def gathers_early(cls, options: Any, train: Train, world: World) -> bool:
        """Whether an update is in two parts. Under fp16 its scaler skips all of it or nothing."""
        shards = cls.num_shards(options, world)
        return options.early_gather and shards > 1 and train.precision != "fp16"

    @classmethod
    def layout(cls, options: Any, train: Train, world: World) -> StateLayout:
        """16 / N bytes per parameter with Adam, before padding to ceil(dim0 / N) rows."""
        shards = cls.num_shards(options, world)
        on: Literal["device", "host"] = "host" if options.cpu_offload else "device"
        return StateLayout(
            parameters=Part(4, shards, on),
            gradients=Part(4, shards, on),
            master=Part(0),
            optimizer_state=Part(train.optimizer.state_bytes, shards, on),
        )

    @classmethod
    def traffic(cls, options: Any, train: Train, world: World) -> Traffic:
        """Sum over units of (2 + reshard_u) P_u: only units but the last are gathered again."""
        gather, shards = (
            element_bytes(POLICIES[train.precision].compute),
            cls.num_shards(options, world),
        )
        reduced = element_bytes(precision.reduction(options.reduce_dtype, train.precision))
        if shards == 1:
            return Traffic()
        kept = options.reshard_after_forward
        near = shards if isinstance(kept, bool) else kept
        again = Collective(
            "all_gather", 1.0, gather, "micro_batch", over=near,
            of="blocks" if options.reshard_last else "inner_blocks",
            together=cls.together(options, train),
        )  # fmt: skip
        return Traffic(
            (
                Collective("all_gather", 1.0, gather, "micro_batch", over=shards),
                *((again,) if kept else ()),
                Collective("reduce_scatter", 1.0, reduced, over=shards),
            )
        )

    @classmethod
    def working(
        cls, options: Any, train: Train, world: World, sizes: Sizes, device: Device
    ) -> Working:
        return working.sharded_units(
            sizes,
            train,
            shards=cls.num_shards(options, world),
            kept=options.reshard_after_forward is False,
            ahead=options.prefetch,
            early=cls.gathers_early(options, train, world),
            together=cls.together(options, train),
            reduced=precision.reduction(options.reduce_dtype, train.precision),
            flat=False,
            device=device,
            offloaded=options.cpu_offload,
        )

    def build(self, factory: ModelFactory, rt: Runtime) -> TrainState:
        """Shard on meta, then fill each rank's shards."""
        from torch.distributed.fsdp import fully_shard

        module, mesh = factory.build(), self.mesh(rt)
        keywords = {"mesh": mesh, **self._policies(rt.device)}
        common.compile_model(module, self.train)
        # To mypy an attribute of a module is a Tensor or a Module, and no list.
        blocks, ends = list(module.blocks), getattr(module, "ends", [])  # type: ignore[arg-type]
        in_block = sum(p.numel() for block in blocks[:1] for p in block.parameters())
        asked = self.together(self.options, self.train)
        together = blocks_per_unit(asked, len(blocks), in_block)
        if self.options.blocks_per_unit and not blocks:
            raise UnavailableHere("strategy.blocks_per_unit: the model has no blocks; remove it")
        units = [blocks[first : first + together] for first in range(0, len(blocks), together)]
        for unit in units:
            kept = unit is units[-1] and not self.options.reshard_last
            freed = not kept and self.options.reshard_after_forward
            fully_shard(unit if len(unit) > 1 else unit[0], reshard_after_forward=freed, **keywords)
        for end in ends:  # so that the head's gradient is on its way while blocks run backward
            fully_shard(end, reshard_after_forward=False, **keywords)
        fully_shard(module, reshard_after_forward=False, **keywords)
        first, last = ([end[0]] for end in ends) if ends else ([], [])
        prefetch([*first, *(unit[0] for unit in units), *last], self.options.prefetch)
        host = "cpu" if self.options.cpu_offload else None
        factory.materialise(module, rt.device, parameters_on=host)
        begins = [*(first or [module]), *(unit[0] for unit in units[:1])]
        theirs = shards_of(group for unit in begins for group in groups_of(unit))
        if not (
            self.gathers_early(self.options, self.train, rt.world)
            and len(theirs) < len(list(module.parameters()))
        ):
            begins, theirs = [], []
        shards = mesh.get_group("shard")
        s = self.state(module, module, rt.device, sharded_over=shards, first=theirs)
        s.extra["begins"] = begins
        clips = self.train.mode == "train_step" and self.train.grad_clip is not None
        if clips and self.options.early_norm and self.train.precision != "fp16":
            s.extra["to_watch"] = [unit[0] for unit in (*units, *ends, [module])]
        return s

    def backward(self, s: TrainState, loss: Tensor, *, last_micro_batch: bool) -> None:
        if watched := s.extra.pop("to_watch", None):  # forward has made FSDP2's streams
            s.extra["unit_norms"] = norms_when_reduced(watched, s.extra["device"])
        super().backward(s, loss, last_micro_batch=last_micro_batch)

    def step(self, s: TrainState) -> None:
        if not (begins := s.extra["begins"]):
            return super().step(s)
        first, *rest = s.optimizer.param_groups
        common.step_groups(s.optimizer, [first], None)
        for unit in begins:
            unit.unshard(async_op=True)
        common.step_groups(s.optimizer, rest, s.extra["beside"])
        for group in (group for unit in begins for group in groups_of(unit)):
            # A step's gathers end with it: torch 2.13's profiler, stopped while a thread of gloo's
            # is at work, may take the process with it.
            group._all_gather_result.all_gather_work.wait()

    def norm(self, s: TrainState) -> Tensor:
        if (norms := s.extra.get("unit_norms")) is None:
            return super().norm(s)
        return common.total_norm([norms], s.extra["device"], s.extra["sharded_over"])

    def discard(self, s: TrainState) -> None:
        super().discard(s)
        if "unit_norms" in s.extra:
            s.extra["unit_norms"].zero_()

    def early(self, s: TrainState) -> dict[str, bool]:
        watched = ("to_watch", "unit_norms")  # until the first backward, and since
        return {
            "early_gather": bool(s.extra.get("begins")),
            "early_norm": any(name in s.extra for name in watched),
        }

    @classmethod
    def as_accelerated(cls, options: Any) -> Any:
        """Its plugin makes every block a unit, and it updates and clips by itself."""
        given = {"blocks_per_unit": options.blocks_per_unit or 1}
        return options.model_copy(update=given | {"early_gather": False, "early_norm": False})

    def accelerator(self, rt: Runtime, num_parameters: int) -> dict[str, Any]:
        """The plugin of the same policies; accelerate itself keeps the root gathered."""
        from accelerate.utils import FullyShardedDataParallelPlugin

        kept, policies = self.options.reshard_after_forward, self._policies(rt.device)
        if not isinstance(kept, bool):
            raise UnavailableHere(
                f"strategy.reshard_after_forward: {kept}: accelerate's plugin takes true or false"
            )
        if self.options.reshard_last:
            raise UnavailableHere(
                "strategy.reshard_last: accelerate's plugin treats every block alike; use driver: "
                "native, or remove it"
            )
        if (self.options.blocks_per_unit or 1) > 1:
            raise UnavailableHere(
                f"strategy.blocks_per_unit: {self.options.blocks_per_unit}: accelerate's plugin "
                "makes every block a unit; use driver: native, or blocks_per_unit: 1"
            )
        clips = self.train.grad_clip is not None and self.train.mode == "train_step"
        if self.options.cpu_offload and clips and rt.world_size > 1:
            # It sums the norm over shards where they lie, on the host, and NCCL serves no host.
            raise UnavailableHere(
                "strategy.cpu_offload: accelerate cannot clip gradients on the host over NCCL; "
                "use driver: native, or train.grad_clip: null"
            )
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            reshard_after_forward=kept,
            cpu_offload=policies.get("offload_policy", False),
            mixed_precision_policy=policies.get("mp_policy"),
            auto_wrap_policy="transformer_based_wrap",
            activation_checkpointing=False,  # the blocks checkpoint themselves
            cpu_ram_efficient_loading=False,  # every rank has the seed's weights
        )
        return {"fsdp_plugin": plugin}

    def mesh(self, rt: Runtime) -> DeviceMesh:
        """The ranks, by what they share."""
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(rt.device.type, (rt.world_size,), mesh_dim_names=("shard",))

    def _policies(self, device: torch.device) -> dict[str, Any]:
        import torch
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

        policies: dict[str, Any] = {}
        asked = POLICIES[self.train.precision]
        if asked.mixed:
            policies["mp_policy"] = MixedPrecisionPolicy(
                param_dtype=getattr(torch, asked.compute),
                reduce_dtype=getattr(
                    torch, precision.reduction(self.options.reduce_dtype, self.train.precision)
                ),
            )
        if self.options.cpu_offload:
            policies["offload_policy"] = CPUOffloadPolicy(pin_memory=device.type != "cpu")
        return policies

    def accumulating(self, s: TrainState, *, last_micro_batch: bool) -> AbstractContextManager[Any]:
        s.wrapped.set_requires_gradient_sync(last_micro_batch)
        return nullcontext()

    def parameters(self, s: TrainState) -> list[Any]:
        # Not module.parameters(): after a forward alone the root's are the gathered ones.
        return shards_of(group for _, group in parameter_groups(s.module))

    def communication_buffers(self, s: TrainState) -> dict[str, int]:
        """Units gathered now, and what gathers and reduce-scatters under way hold."""
        groups = [group for _, group in parameter_groups(s.module)]
        parameters = [p for group in groups for p in group.fsdp_params]
        shards = [p._sharded_param_data for p in parameters]
        units = [t for p in parameters for t in p.all_gather_outputs]
        return {
            "gathered": common.buffer_bytes(units, shards),
            "under_way": common.buffer_bytes(under_way(groups), [*shards, *units]),
        }

    def without_communication(self, s: TrainState) -> AbstractContextManager[None] | Unavailable:
        from andromeda_scale.strategies import silent

        names = ("shard_process_group", "replicate_process_group")
        groups = [group for _, group in parameter_groups(s.module)]
        meshes = {
            id(mesh): mesh
            for group in groups
            for mesh in (group.mesh_info, group.post_forward_mesh_info)
        }
        places = [(m, name) for m in meshes.values() for name in names if hasattr(m, name)]
        return silent.silenced([*places, (s.extra, "sharded_over")])

    def expects(self) -> dict[str, Any]:
        dtypes = common.expected_dtypes(self.train.precision)
        dtypes["reduction"] = precision.reduction(self.options.reduce_dtype, self.train.precision)
        offload = {"parameters": "cpu"} if self.options.cpu_offload else {}
        return {"wrapper": "FSDPModule", "dtypes": dtypes, "offload": offload}

    def wrapper(self, s: TrainState) -> str | None:
        from torch.distributed.fsdp import FSDPModule

        return "FSDPModule" if isinstance(s.wrapped, FSDPModule) else common.wrapper_name(s)

    def reduction(self, s: TrainState) -> str | None:
        return reduction_of([group for _, group in parameter_groups(s.module)])

    def facts(self, s: TrainState) -> dict[str, Any]:
        groups = parameter_groups(s.module)
        meshes = [p.sharded_param.device_mesh for _, g in groups for p in g.fsdp_params]
        assert all(mesh == meshes[0] for mesh in meshes), "units differ in their meshes"
        # A mesh that another made, such as accelerate, may have no names: FSDP2 takes the last
        # dimension to shard.
        names = meshes[0].mesh_dim_names or ("replicate", "shard")[-meshes[0].ndim :]
        return {
            "world_size": meshes[0].size(),
            "mesh": dict(zip(names, meshes[0].shape, strict=True)),
            "offload": common.devices(self.states(s)),
            "units": [
                {
                    "name": name,
                    "num_parameters": sum(p._orig_size.numel() for p in group.fsdp_params),
                    "reshard_after_forward": kept_shards(group),
                }
                for name, group in groups
            ],
        }
