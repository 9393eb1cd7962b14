"""FSDP1 (`FullyShardedDataParallel`): every block one flat parameter, sharded over the ranks."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import PositiveInt

from andromeda_scale.cost import working
from andromeda_scale.cost.layout import Collective, Part, StateLayout, Traffic
from andromeda_scale.cost.working import Device, Sizes, Working
from andromeda_scale.rank.failures import UnavailableHere
from andromeda_scale.strategies import common
from andromeda_scale.strategies.base import TrainState
from andromeda_scale.strategies.hsdp import hybrid_mesh, refuses_shard_size, shard_size
from andromeda_scale.strategies.native import Native
from andromeda_scale.suite import precision
from andromeda_scale.suite.precision import POLICIES, element_bytes
from andromeda_scale.suite.schema import Schema

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor, nn
    from torch.distributed.device_mesh import DeviceMesh

    from andromeda_scale.models.factory import ModelFactory
    from andromeda_scale.rank.runtime import Runtime
    from andromeda_scale.suite.training import Train
    from andromeda_scale.suite.world import World


class Fsdp1Options(Schema):
    """torch's names.

    full_shard frees a block after forward and gathers it again for backward, shard_grad_op keeps
    it; hybrid_shard is full_shard within groups of `shard_size` ranks (null: a node, or half of
    one), whose replicas average their gradients.
    """

    sharding: Literal["full_shard", "shard_grad_op", "hybrid_shard"] = "full_shard"
    shard_size: PositiveInt | None = None
    # What gradients cross the network in, the compute dtype or float32; null: the policy's.
    reduce_dtype: Literal["float32", "bfloat16", "float16"] | None = None


class Fsdp1(Native):
    """Every block is one flat parameter, the rest the root's. Float32 shards, cast when gathered.

    A unit's flat parameter is padded: each parameter to 16 bytes, the whole to a multiple of the
    ranks; `layout` leaves that out. Under gradient accumulation gradients stay whole and unreduced
    until the last micro-batch, summed in the compute dtype: that many bytes per parameter more
    than `layout` says.
    """

    name: ClassVar[str] = "fsdp1"
    Options: ClassVar[type[Schema]] = Fsdp1Options
    accelerate_on: ClassVar[frozenset[str]] = frozenset({"cuda"})
    prepared_on: ClassVar[str | None] = "cpu"  # FSDP takes unit after unit to the device

    @classmethod
    def refuses(cls, options: Fsdp1Options, train: Train, world: World, device: str) -> str | None:
        if reason := super().refuses(options, train, world, device):
            return reason
        if reason := precision.refused_reduction(options.reduce_dtype, train.precision):
            return reason
        if options.sharding != "hybrid_shard":
            if options.shard_size is None:
                return None
            return (
                f"strategy.shard_size: {options.shard_size} has no meaning with sharding: "
                f"{options.sharding}; remove it, or use sharding: hybrid_shard"
            )
        if reason := refuses_shard_size(options.shard_size, world):
            return reason
        if world.size > 1 and shard_size(options.shard_size, world) == 1:
            # torch then switches to NO_SHARD and never averages over the replicas.
            return (
                "strategy.shard_size: 1 leaves hybrid_shard nothing to shard, and torch would "
                "train every rank alone; use 2 or more, or strategy ddp"
            )
        return None

    @classmethod
    def _shards(cls, options: Fsdp1Options, world: World) -> int:
        hybrid = options.sharding == "hybrid_shard"
        return shard_size(options.shard_size, world) if hybrid else world.size

    @classmethod
    def layout(cls, options: Fsdp1Options, train: Train, world: World) -> StateLayout:
        """16 / N bytes per parameter with Adam, before padding."""
        shards = cls._shards(options, world)
        return StateLayout(
            parameters=Part(4, shards),
            gradients=Part(4, shards),
            master=Part(0),
            optimizer_state=Part(train.optimizer.state_bytes, shards),
        )

    @classmethod
    def traffic(cls, options: Fsdp1Options, train: Train, world: World) -> Traffic:
        """As FSDP2's, before padding; shard_grad_op gathers once a step and not once more.

        Between micro-batches it keeps its parameters whole too.
        """
        shards, policy = cls._shards(options, world), POLICIES[train.precision]
        if world.size == 1:
            return Traffic()
        gather = element_bytes(policy.compute)
        reduce = element_bytes(precision.reduction(options.reduce_dtype, train.precision))
        scatter = Collective("reduce_scatter", 1.0, reduce, over=shards)
        if options.sharding == "shard_grad_op":
            return Traffic((Collective("all_gather", 1.0, gather, over=shards), scatter))
        across = Collective("all_reduce", 1 / shards, reduce, over=world.size // shards)
        return Traffic(
            (
                Collective("all_gather", 1.0, gather, "micro_batch", over=shards),
                Collective("all_gather", 1.0, gather, "micro_batch", over=shards, of="blocks"),
                scatter,
                *((across,) if options.sharding == "hybrid_shard" else ()),
            )
        )

    @classmethod
    def working(
        cls, options: Fsdp1Options, train: Train, world: World, sizes: Sizes, device: Device
    ) -> Working:
        return working.sharded_units(
            sizes,
            train,
            shards=cls._shards(options, world),
            kept=options.sharding == "shard_grad_op",
            flat=True,
            reduced=precision.reduction(options.reduce_dtype, train.precision),
            device=device,
        )

    def build(self, factory: ModelFactory, rt: Runtime) -> TrainState:
        """Unit by unit: materialise, flatten, shard; no rank holds more than one unit whole."""
        from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
        from torch.distributed.fsdp.wrap import CustomPolicy

        module = factory.build()
        blocks = set(module.blocks)  # type: ignore[arg-type]  # to mypy a Tensor or a Module
        common.compile_model(module, self.train)
        wrapped = FullyShardedDataParallel(
            module,
            device_mesh=self._mesh(rt),
            sharding_strategy=ShardingStrategy[self.options.sharding.upper()],
            auto_wrap_policy=CustomPolicy(lambda child: child in blocks),
            mixed_precision=self._mixed_precision(),
            param_init_fn=_filler(factory, module, rt.device),
            device_id=rt.device,
            use_orig_params=True,
        )
        factory.fill_buffers(module, rt.device)
        return self.state(wrapped, module, rt.device, sharded_over=wrapped.process_group)

    def accelerator(self, rt: Runtime, num_parameters: int) -> dict[str, Any]:
        """The plugin of torch's defaults; accelerate puts its autocast around the wrapped model."""
        from accelerate.utils import FullyShardedDataParallelPlugin
        from torch.distributed.fsdp import BackwardPrefetch, ShardingStrategy

        if self.options.sharding == "hybrid_shard":
            raise UnavailableHere(
                "strategy.sharding: hybrid_shard: accelerate's plugin cannot name the groups; "
                "use strategy hsdp"
            )
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=1,
            sharding_strategy=ShardingStrategy[self.options.sharding.upper()],
            backward_prefetch=BackwardPrefetch.BACKWARD_PRE,
            mixed_precision_policy=self._mixed_precision(),
            auto_wrap_policy="transformer_based_wrap",
            use_orig_params=True,
            sync_module_states=False,
            activation_checkpointing=False,  # the blocks checkpoint themselves
            cpu_ram_efficient_loading=False,  # every rank has the seed's weights
        )
        return {"fsdp_plugin": plugin}

    def _mesh(self, rt: Runtime) -> DeviceMesh:
        from torch.distributed.device_mesh import init_device_mesh

        if self.options.sharding == "hybrid_shard":
            return hybrid_mesh(self.options.shard_size, rt)
        return init_device_mesh(rt.device.type, (rt.world_size,), mesh_dim_names=("shard",))

    def _mixed_precision(self) -> Any:
        import torch
        from torch.distributed.fsdp import MixedPrecision

        asked = POLICIES[self.train.precision]
        if not asked.mixed:
            return None
        return MixedPrecision(
            param_dtype=getattr(torch, asked.compute), reduce_dtype=getattr(torch, self._reduced())
        )

    def accumulating(self, s: TrainState, *, last_micro_batch: bool) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = nullcontext()
        return context if last_micro_batch else s.wrapped.no_sync()

    def clip(self, s: TrainState, max_norm: float) -> None:
        s.wrapped.clip_grad_norm_(max_norm)

    def states(self, s: TrainState) -> dict[str, list[Tensor]]:
        flats = [handle.flat_param for _, _, handle in _units(s.wrapped)]
        # Not the parameters themselves: after a forward alone they are views of gathered ones.
        shards = [getattr(flat, "_local_shard", flat) for flat in flats]
        return {**super().states(s), "parameters": shards}

    def communication_buffers(self, s: TrainState) -> dict[str, int]:
        """Units gathered now, in the dtype of their collective and in that of their use."""
        flats = [handle.flat_param for _, _, handle in _units(s.wrapped)]
        names = ("_full_param_padded", "_full_prec_full_param_padded", "_mp_shard")
        found = [getattr(flat, name, None) for flat in flats for name in names]
        shards = [getattr(flat, "_local_shard", flat) for flat in flats]
        return {"gathered": common.buffer_bytes([t for t in found if t is not None], shards)}

    def expects(self) -> dict[str, Any]:
        dtypes = common.expected_dtypes(self.train.precision) | {"reduction": self._reduced()}
        return {"wrapper": "FullyShardedDataParallel", "dtypes": dtypes}

    def _reduced(self) -> str:
        return precision.reduction(self.options.reduce_dtype, self.train.precision)

    def reduction(self, s: TrainState) -> str | None:
        kinds = {str(handle._reduce_dtype) for _, _, handle in _units(s.wrapped)}
        return "+".join(sorted(kinds)).replace("torch.", "")

    def facts(self, s: TrainState) -> dict[str, Any]:
        units = _units(s.wrapped)
        shards = s.wrapped.process_group.size()
        between = getattr(s.wrapped, "_inter_node_pg", None)
        replicas = between.size() if between is not None else 1
        return {
            "world_size": shards * replicas,
            "mesh": {"replicate": replicas, "shard": shards},
            "units": [
                {
                    "name": name,
                    "sharding": unit.sharding_strategy.name.lower(),
                    "num_parameters": sum(
                        numel
                        for numel, padding in zip(
                            handle.flat_param._numels_with_padding,
                            handle.flat_param._is_padding_mask,
                            strict=True,
                        )
                        if not padding
                    ),
                    "padded_to": shards * _numel(handle.flat_param),
                }
                for name, unit, handle in units
            ],
        }


def _numel(flat: Any) -> int:
    """Elements of a flat parameter on this rank, with padding."""
    return int(getattr(flat, "_local_shard", flat).numel())


def _units(wrapped: Any) -> list[tuple[str, Any, Any]]:
    """(name of the unit's module, its wrapper, the handle of its flat parameter)."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    found = []
    for name, child in wrapped.named_modules():
        if isinstance(child, FullyShardedDataParallel) and child._handle is not None:
            found.append(
                (name.replace("_fsdp_wrapped_module.", "") or "root", child, child._handle)
            )
    return found


def _filler(
    factory: ModelFactory, module: nn.Module, device: torch.device
) -> Callable[[nn.Module], None]:
    """What gives one module of a unit, itself without its children, the seed's weights."""
    from torch import nn

    names = {parameter: name for name, parameter in module.named_parameters()}
    made: dict[nn.Parameter, nn.Parameter] = {}  # a parameter with two owners stays one

    def fill(child: nn.Module) -> None:
        parameters = dict(child.named_parameters(recurse=False))
        child.to_empty(device=device, recurse=False)  # position tables compute themselves again
        for key, meta in parameters.items():
            if meta not in made:
                full = factory.full_parameter(names[meta], meta.shape, device)
                made[meta] = nn.Parameter(full)
            child.register_parameter(key, made[meta])

    return fill
