"""DeepSpeed's ZeRO: optimizer state (1), gradients (2) and parameters (3) sharded over ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import NonNegativeInt, PositiveInt

from andromeda_scale.cost.layout import Collective, Part, StateLayout, Traffic
from andromeda_scale.precision import POLICIES, element_bytes
from andromeda_scale.schema import Schema
from andromeda_scale.strategies import common
from andromeda_scale.strategies.base import Strategy, TrainState

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from andromeda_scale.models.factory import ModelFactory
    from andromeda_scale.runtime import Runtime
    from andromeda_scale.training import Train
    from andromeda_scale.world import World


class ZeroOptions(Schema):
    """DeepSpeed's names and defaults; sizes count elements. `reduce_dtype` null: the policy's."""

    reduce_bucket_size: PositiveInt = 500_000_000  # never more than the model's parameters
    overlap_comm: bool | None = None  # null: DeepSpeed's choice, true for stage 3 alone
    reduce_dtype: Literal["float32", "bfloat16"] | None = None


class Zero12Options(ZeroOptions):
    """Stages 1 and 2. Without the multi-rank bucket gradients are reduced to their owners: 2P."""

    use_multi_rank_bucket_allreduce: bool = True


class Zero3Options(ZeroOptions):
    """Stage 3. Below max_live and max_reuse parameters stay gathered until backward: 2P."""

    prefetch_bucket_size: NonNegativeInt = 50_000_000
    max_live_parameters: NonNegativeInt = 1_000_000_000
    max_reuse_distance: NonNegativeInt = 1_000_000_000
    param_persistence_threshold: NonNegativeInt = 100_000  # smaller parameters stay whole


class _Zero(Strategy):
    """What the stages share."""

    name: ClassVar[str]
    Options: ClassVar[type[Schema]] = Zero12Options
    requires: ClassVar[tuple[str, ...]] = ("deepspeed",)
    stage: ClassVar[int]

    @classmethod
    def layout(cls, options: Any, train: Train, world: World) -> StateLayout:
        """fp32: 4 + 16/N bytes per parameter, stage 3 20/N; bf16: 2 + 14/N, stage 3 16/N.

        DeepSpeed keeps a float32 master beside float32 parameters too.
        """
        width = element_bytes(POLICIES[train.precision].compute)
        return StateLayout(
            parameters=Part(width, world.size if cls.stage == 3 else 1),
            gradients=Part(width, world.size),
            master=Part(4, world.size),
            optimizer_state=Part(train.optimizer.state_bytes, world.size),
        )

    @classmethod
    def traffic(cls, options: Any, train: Train, world: World) -> Traffic:
        """Stages 1 and 2: gradients all-reduced (or reduced, P) and parameters gathered, P."""
        if world.size == 1:
            return Traffic()
        policy = POLICIES[train.precision]
        reduce_bytes = element_bytes(options.reduce_dtype or policy.reduction)
        gather_bytes = element_bytes(policy.compute)
        # Stage 1 keeps whole gradients until the last micro-batch, stage 2 never does.
        per: Literal["step", "micro_batch"] = "step" if cls.stage == 1 else "micro_batch"
        reduction: Literal["all_reduce", "reduce_scatter"] = (
            "all_reduce" if options.use_multi_rank_bucket_allreduce else "reduce_scatter"
        )
        return Traffic(
            (
                Collective(reduction, 1.0, reduce_bytes, per),
                Collective("all_gather", 1.0, gather_bytes),
            ),
            buffer_bytes=_bucket_bytes(
                options, gather_bytes, buffers=2 if options.overlap_comm else 1
            ),
        )

    def build(self, factory: ModelFactory, rt: Runtime) -> TrainState:
        """Weights first, then DeepSpeed's engine around them, on the existing process group."""
        import deepspeed

        from andromeda_scale.strategies import zero_weights

        _check_accelerator(rt.device)
        if rt.device.type == "cpu":
            # Which operators can be compiled is asked for one that only inference uses, and that
            # would then be compiled: seconds in every rank, for nothing.
            deepspeed.ops.__compatible_ops__ = {}
        deepspeed.init_distributed(dist_backend=rt.backend, auto_mpi_discovery=False, verbose=False)
        module = factory.build()
        config = self.config(sum(p.numel() for p in module.parameters()), rt.world_size)
        self._materialise(factory, module, rt, config)
        if self.train.compile:
            common.compile_blocks(module)
        engine, _, _, _ = deepspeed.initialize(
            model=module,
            optimizer=common.optimizer(module.parameters(), self.train),
            config=config,
            dist_init_required=False,
        )
        if POLICIES[self.train.precision].mixed:
            zero_weights.restore_masters(factory, engine.module)
        return TrainState(engine, engine.module, engine.optimizer)

    def _materialise(
        self, factory: ModelFactory, module: nn.Module, rt: Runtime, config: dict[str, Any]
    ) -> None:
        factory.materialise(module, rt.device)

    def config(self, num_parameters: int, world_size: int) -> dict[str, Any]:
        """DeepSpeed's configuration."""
        train = self.train
        reduce_dtype = self.options.reduce_dtype or POLICIES[train.precision].reduction
        names = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
        return {
            "train_micro_batch_size_per_gpu": train.micro_batch_size,
            "gradient_accumulation_steps": train.grad_accum,
            "gradient_clipping": train.grad_clip or 0.0,
            "communication_data_type": names[reduce_dtype],
            "bf16": {"enabled": train.precision == "bf16"},
            "zero_allow_untested_optimizer": True,
            "zero_optimization": self._zero_config(num_parameters),
            "steps_per_print": None,
            "wall_clock_breakdown": False,
        }

    def _zero_config(self, num_parameters: int) -> dict[str, Any]:
        given = self.options.model_dump(exclude={"reduce_dtype"})
        given["reduce_bucket_size"] = min(self.options.reduce_bucket_size, num_parameters)
        if self.stage < 3:
            return {"stage": self.stage, **given}
        sizes = {"reduce_bucket_size", "overlap_comm"}
        return {
            "stage": 3,
            **{key if key in sizes else f"stage3_{key}": x for key, x in given.items()},
        }

    def forward(
        self, s: TrainState, tokens: Tensor, labels: Tensor, *, last_micro_batch: bool = True
    ) -> tuple[Tensor, int]:
        s.wrapped.set_gradient_accumulation_boundary(last_micro_batch)
        loss_sum, num_tokens = s.wrapped(tokens, labels)
        return loss_sum, num_tokens

    def backward(self, s: TrainState, loss: Tensor, *, last_micro_batch: bool) -> None:
        s.wrapped.backward(loss, scale_wrt_gas=False)

    def gradient_norm(self, s: TrainState) -> Tensor:
        import torch.distributed as dist

        square = common.local_norm(self.states(s)["gradients"]).square()
        dist.all_reduce(square)
        return square.sqrt()

    def update(self, s: TrainState) -> None:
        s.wrapped.step()

    def discard(self, s: TrainState) -> None:
        s.optimizer.zero_grad()
        if self.stage < 3:  # kept by the optimizer until its step, which will not come
            s.optimizer.averaged_gradients = {}
            s.optimizer.all_grad_tensors = {}

    def states(self, s: TrainState) -> dict[str, list[Tensor]]:
        optimizer = s.optimizer
        found = [g for group in optimizer.averaged_gradients.values() for g in group or ()]
        return {
            "parameters": self._parameters(s),
            "gradients": found + common.gradients(s.module.parameters()),
            "master": list(self._masters(optimizer)),
            "optimizer_state": list(common.optimizer_tensors(optimizer.optimizer.state)),
        }

    def _parameters(self, s: TrainState) -> list[Tensor]:
        return list(s.module.parameters())

    def _masters(self, optimizer: Any) -> list[Tensor]:
        masters: list[Tensor] = optimizer.single_partition_of_fp32_groups
        return masters

    def expects(self) -> dict[str, Any]:
        dtypes = common.expected_dtypes(self.train.precision)
        if self.options.reduce_dtype:
            dtypes["reduction"] = self.options.reduce_dtype
        return {"wrapper": "DeepSpeedEngine", "stage": self.stage, "dtypes": dtypes}

    def describe(self, s: TrainState) -> dict[str, Any]:
        from deepspeed import DeepSpeedEngine

        if not isinstance(s.wrapped, DeepSpeedEngine):  # which is then `invalid`
            return {"wrapper": common.wrapper_name(s)}
        engine, optimizer = s.wrapped, s.optimizer
        return {
            "wrapper": common.wrapper_name(s),
            "world_size": engine.world_size,
            "optimizer": type(optimizer).__name__,
            "stage": int(engine.zero_optimization_stage()),
            **common.read_states(
                self.states(s),
                str(optimizer.communication_data_type).removeprefix("torch."),
            ),
            "buckets": {
                "reduce_bucket_size": int(optimizer.reduce_bucket_size),
                "overlap_comm": bool(engine.zero_overlap_comm()),
            },
        }


class Zero1(_Zero):
    """Optimizer state sharded; gradients reduced at the last micro-batch."""

    name: ClassVar[str] = "zero1"
    stage: ClassVar[int] = 1


class Zero2(_Zero):
    """Optimizer state and gradients sharded; gradients reduced at every micro-batch."""

    name: ClassVar[str] = "zero2"
    stage: ClassVar[int] = 2


class Zero3(_Zero):
    """Everything sharded; parameters gathered where modules use them."""

    name: ClassVar[str] = "zero3"
    Options: ClassVar[type[Schema]] = Zero3Options
    stage: ClassVar[int] = 3

    @classmethod
    def traffic(cls, options: Zero3Options, train: Train, world: World) -> Traffic:
        """Per micro-batch a gather (two beyond max_live or max_reuse) and a reduce-scatter."""
        if world.size == 1:
            return Traffic()
        policy = POLICIES[train.precision]
        gather_bytes = element_bytes(policy.compute)
        return Traffic(
            (
                Collective("all_gather", 1.0, gather_bytes, "micro_batch"),
                Collective(
                    "reduce_scatter",
                    1.0,
                    element_bytes(options.reduce_dtype or policy.reduction),
                    "micro_batch",
                ),
            ),
            buffer_bytes=_bucket_bytes(options, gather_bytes, 1),
        )

    def _materialise(
        self, factory: ModelFactory, module: nn.Module, rt: Runtime, config: dict[str, Any]
    ) -> None:
        from andromeda_scale.strategies import zero_weights

        dtype = POLICIES[self.train.precision].compute
        zero_weights.materialise_partitioned(factory, module, rt.device, config, dtype)

    def _parameters(self, s: TrainState) -> list[Tensor]:
        whole = [p.data for p in s.module.parameters() if p.data.numel()]
        shards = [p.ds_tensor for p in s.module.parameters()]  # type: ignore[attr-defined]
        return shards + whole

    def _masters(self, optimizer: Any) -> list[Tensor]:
        masters: list[Tensor] = optimizer.fp32_partitioned_groups_flat
        return masters


def _bucket_bytes(options: ZeroOptions, element: int, buffers: int) -> int:
    """Bytes of the reduce buckets, if the model fills them."""
    return buffers * options.reduce_bucket_size * element


def _check_accelerator(device: torch.device) -> None:
    """DeepSpeed chooses its accelerator once, at import."""
    from deepspeed.accelerator import get_accelerator

    chosen = get_accelerator().device_name()
    if chosen != device.type:
        raise RuntimeError(
            f"DeepSpeed was imported for {chosen}, but this rank runs on {device.type}; "
            f"set DS_ACCELERATOR={device.type} before it is imported"
        )
