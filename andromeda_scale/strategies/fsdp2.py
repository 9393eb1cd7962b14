"""FSDP2 (`fully_shard`): parameters, gradients, optimizer state sharded as DTensors, by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from andromeda_scale.cost.layout import Collective, Part, StateLayout, Traffic
from andromeda_scale.precision import POLICIES, element_bytes
from andromeda_scale.schema import Schema
from andromeda_scale.strategies import common
from andromeda_scale.strategies.base import Strategy, TrainState

if TYPE_CHECKING:
    from torch import Tensor, nn

    from andromeda_scale.models.factory import ModelFactory
    from andromeda_scale.runtime import Runtime
    from andromeda_scale.training import Train
    from andromeda_scale.world import World


class Fsdp2Options(Schema):
    """`reshard_after_forward` false keeps the blocks gathered until backward: memory for traffic.

    The root unit (embedding, final norm, head) stays gathered in both cases, as torch does it.
    """

    reshard_after_forward: bool = True


class Fsdp2(Strategy):
    """Every block is a unit, the rest is the root unit. Float32 shards; bf16 by its own policy.

    Under gradient accumulation gradients stay whole and unreduced until the last micro-batch:
    4 bytes per parameter more than `layout` says.
    """

    name: ClassVar[str] = "fsdp2"
    Options: ClassVar[type[Schema]] = Fsdp2Options

    @classmethod
    def layout(cls, options: Fsdp2Options, train: Train, world: World) -> StateLayout:
        """16 / N bytes per parameter, before padding to ceil(dim0 / N) rows."""
        return StateLayout(
            parameters=Part(4, world.size),
            gradients=Part(4, world.size),
            master=Part(0),
            optimizer_state=Part(train.optimizer.state_bytes, world.size),
        )

    @classmethod
    def traffic(cls, options: Fsdp2Options, train: Train, world: World) -> Traffic:
        """Sum over units of (2 + reshard_u) P_u: the root is gathered once a micro-batch."""
        if world.size == 1:
            return Traffic()
        policy = POLICIES[train.precision]
        gather = element_bytes(policy.compute)
        again = Collective("all_gather", 1.0, gather, "micro_batch", of="blocks")
        return Traffic(
            (
                Collective("all_gather", 1.0, gather, "micro_batch"),
                *((again,) if options.reshard_after_forward else ()),
                Collective("reduce_scatter", 1.0, element_bytes(policy.reduction)),
            )
        )

    def build(self, factory: ModelFactory, rt: Runtime) -> TrainState:
        """Shard on meta, then fill each rank's shards."""
        import torch
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        module = factory.build()
        mesh = init_device_mesh(rt.device.type, (rt.world_size,))
        policy = MixedPrecisionPolicy()
        if POLICIES[self.train.precision].mixed:
            asked = POLICIES[self.train.precision]
            policy = MixedPrecisionPolicy(
                param_dtype=getattr(torch, asked.compute),
                reduce_dtype=getattr(torch, asked.reduction),
            )
        if self.train.compile:
            common.compile_blocks(module)
        for block in module.blocks:  # type: ignore[union-attr]
            fully_shard(
                block,
                mesh=mesh,
                mp_policy=policy,
                reshard_after_forward=self.options.reshard_after_forward,
            )
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        factory.materialise(module, rt.device)
        optimizer = common.adamw(module.parameters(), self.train)
        return TrainState(module, module, optimizer)

    def forward(
        self, s: TrainState, tokens: Tensor, labels: Tensor, *, last_micro_batch: bool = True
    ) -> tuple[Tensor, int]:
        loss_sum, num_tokens = s.wrapped(tokens, labels)
        return loss_sum, num_tokens

    def backward(self, s: TrainState, loss: Tensor, *, last_micro_batch: bool) -> None:
        s.wrapped.set_requires_gradient_sync(last_micro_batch)
        loss.backward()  # type: ignore[no-untyped-call]

    def gradient_norm(self, s: TrainState) -> Tensor:
        """Of all shards: one scalar all-reduce."""
        import torch
        from torch.distributed.tensor import DTensor

        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in s.module.parameters() if p.grad is not None]
        )
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def update(self, s: TrainState) -> None:
        import torch

        if self.train.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(
                s.module.parameters(), self.train.grad_clip, self.gradient_norm(s)
            )
        s.optimizer.step()
        s.optimizer.zero_grad(set_to_none=True)

    def discard(self, s: TrainState) -> None:
        s.optimizer.zero_grad(set_to_none=True)

    def states(self, s: TrainState) -> dict[str, list[Tensor]]:
        # Not module.parameters(): after a forward alone the root's are the gathered ones.
        shards = [
            p.sharded_param for _, group in _parameter_groups(s.module) for p in group.fsdp_params
        ]
        return {
            "parameters": [common.local(p) for p in shards],
            "gradients": common.gradients(shards),
            "master": [],
            "optimizer_state": list(common.optimizer_tensors(s.optimizer.state)),
        }

    def expects(self) -> dict[str, Any]:
        return {
            "wrapper": "FSDPModule",
            "dtypes": common.expected_dtypes(self.train.precision),
        }

    def describe(self, s: TrainState) -> dict[str, Any]:
        from torch.distributed.fsdp import FSDPModule

        groups = _parameter_groups(s.module)
        worlds = {p.sharded_param.device_mesh.size() for _, g in groups for p in g.fsdp_params}
        return {
            "wrapper": "FSDPModule" if isinstance(s.wrapped, FSDPModule) else None,
            "world_size": worlds.pop() if len(worlds) == 1 else 1,
            **common.read_states(self.states(s), _reduction([group for _, group in groups])),
            "units": [
                {
                    "name": name,
                    "num_parameters": sum(p._orig_size.numel() for p in group.fsdp_params),
                    "reshard_after_forward": group.post_forward_mesh_info is not None,
                }
                for name, group in groups
            ],
        }


def _reduction(groups: list[Any]) -> str | None:
    """The dtype of the reduce-scatters; FSDP2 fixes it in the first forward."""
    names = set()
    for group in groups:
        dtype = getattr(group, "_reduce_dtype", None) or getattr(group, "_orig_dtype", None)
        if dtype is None:
            return None
        names.add(str(dtype).removeprefix("torch."))
    return "+".join(sorted(names))


def _parameter_groups(module: nn.Module) -> list[tuple[str, Any]]:
    """(name of the unit's module, its parameter group) of every FSDP unit."""
    from torch.distributed.fsdp import FSDPModule

    found: list[tuple[str, Any]] = []
    for name, child in module.named_modules():
        if isinstance(child, FSDPModule):
            state = child._get_fsdp_state()
            # torch before 2.13 has one group per unit, and no plural.
            groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
            found.extend((name or "root", group) for group in groups if group is not None)
    return found
