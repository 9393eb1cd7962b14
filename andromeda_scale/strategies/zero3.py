"""DeepSpeed's ZeRO stage 3: parameters sharded too, and gathered where modules use them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from andromeda_scale.cost.layout import Collective, Part, Traffic, blocks_per_unit
from andromeda_scale.cost.working import Device, Sizes, Working
from andromeda_scale.strategies import common, zero_config, zero_memory
from andromeda_scale.strategies.base import TrainState
from andromeda_scale.strategies.zero import Zero
from andromeda_scale.strategies.zero_options import Zero3Options
from andromeda_scale.suite.precision import element_bytes
from andromeda_scale.suite.schema import Schema

if TYPE_CHECKING:
    from torch import Tensor, nn

    from andromeda_scale.models.factory import ModelFactory
    from andromeda_scale.rank.runtime import Runtime
    from andromeda_scale.suite.training import Train
    from andromeda_scale.suite.world import World


class Zero3(Zero):
    """Everything sharded; parameters gathered where modules use them."""

    name: ClassVar[str] = "zero3"
    Options: ClassVar[type[Schema]] = Zero3Options
    stage: ClassVar[int] = 3

    @classmethod
    def refuses_apart(cls, options: Any) -> str | None:
        if options.blocks_per_unit in (None, 0, 1):
            return None
        return (
            f"strategy.blocks_per_unit: {options.blocks_per_unit}: this model is of others and "
            "calls its blocks one by one; use 1 or 0"
        )

    @classmethod
    def _parameters(cls, options: Any, width: int, shards: int) -> Part:
        return Part(width, shards, "host" if options.offload_parameters else "device")

    @classmethod
    def traffic(cls, options: Zero3Options, train: Train, world: World) -> Traffic:
        """Per micro-batch a gather, a second of what was let go, and a reduce-scatter.

        Between its forward and its backward a parameter sees twice the parameters behind it. It is
        kept where that is less than max_reuse_distance, or is prefetched before it is let go.
        """
        if world.size == 1:
            return Traffic()
        width = element_bytes(zero_config.compute_dtype(train))
        summed = element_bytes(zero_config.reduce_dtype(options, train))
        ahead = min(options.prefetch_bucket_size, options.max_live_parameters)
        kept = max(options.max_reuse_distance, ahead) // 2
        return Traffic(
            (
                Collective("all_gather", 1.0, width, "micro_batch"),
                Collective("all_gather", 1.0, width, "micro_batch", beyond=kept),
                Collective("reduce_scatter", 1.0, summed, "micro_batch"),
            )
        )

    @classmethod
    def working(
        cls, options: Any, train: Train, world: World, sizes: Sizes, device: Device
    ) -> Working:
        return zero_memory.stage_3(options, train, world.size, device, sizes)

    def prepare(self, factory: ModelFactory, rt: Runtime) -> nn.Module:
        module = super().prepare(factory, rt)
        if self.options.blocks_per_unit != 0:
            self._make_units(module)
        return module

    def _make_units(self, module: nn.Module) -> None:
        """Leaf modules: blocks, or several as one where the model can be called so."""
        from deepspeed.utils import set_z3_leaf_module

        together, blocks = self._together(module), module.blocks
        if together > 1:
            module.call_in_units(together)  # type: ignore[operator]  # no Tensor
            # Else DeepSpeed would find each block here as well, and hook it. Nobody calls the
            # list, and units, registered after it, have the last word on whose blocks these are.
            set_z3_leaf_module(blocks, True)
            blocks = module.units
        for unit in blocks:  # type: ignore[union-attr]  # to mypy a Tensor or a Module
            set_z3_leaf_module(unit, True)

    def _together(self, module: nn.Module) -> int:
        if not hasattr(module, "call_in_units"):  # a model of others, which calls its blocks itself
            return 1
        blocks: Any = module.blocks
        in_block = sum(p.ds_numel for block in blocks[:1] for p in block.parameters())
        asked = zero_config.together(self.options, self.train)
        return blocks_per_unit(asked, len(blocks), in_block)

    def prepared(self, factory: ModelFactory, module: nn.Module) -> None:
        from deepspeed.utils import set_z3_leaf_module

        if getattr(module, "units", None) is not None:  # read back, it would count as a leaf
            set_z3_leaf_module(module.blocks, False)
        super().prepared(factory, module)

    def _materialise(self, factory: ModelFactory, module: nn.Module, rt: Runtime) -> None:
        from andromeda_scale.strategies import zero_weights

        zero_weights.materialise_partitioned(
            factory,
            module,
            rt.device,
            self.config(factory.num_parameters, rt),
            zero_config.compute_dtype(self.train),
        )

    def _scaled_norm(self, optimizer: Any) -> Any:
        from deepspeed.runtime.utils import combine_grad_norm_groups

        return combine_grad_norm_groups(optimizer._get_norm_groups())

    def _shards(self, s: TrainState) -> list[Tensor]:
        # What DeepSpeed adds to a parameter.
        return [p.ds_tensor for p in s.module.parameters()]  # type: ignore[attr-defined]

    def _whole(self, s: TrainState) -> list[Tensor]:
        return [p.data for p in s.module.parameters() if p.data.numel()]

    def _gathered(self, s: TrainState) -> dict[str, int]:
        # What DeepSpeed adds to a parameter.
        passing = [p.data for p in s.module.parameters() if not p.ds_persist and p.data.numel()]  # type: ignore[attr-defined]
        return {"gathered": common.buffer_bytes(passing, self._shards(s))}

    def _gradients(self, optimizer: Any) -> list[Tensor]:
        # One buffer for all of a step; an offloaded optimizer has float32 gradients besides.
        kept = [master.grad for master in self._masters(optimizer) if master.grad is not None]
        return [optimizer.grad_partitions_flat_buffer, *kept]

    def _masters(self, optimizer: Any) -> list[Tensor]:
        masters: list[Tensor] = optimizer.fp32_partitioned_groups_flat
        return masters

    def expects(self) -> dict[str, Any]:
        expected = super().expects()
        if self.options.offload_parameters:
            expected["offload"]["parameters"] = "cpu"
        return expected
