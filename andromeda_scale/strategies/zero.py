"""DeepSpeed's ZeRO: optimizer state (stage 1) and gradients (2) sharded over ranks; 3 beside."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from andromeda_scale.cost.layout import Collective, Part, StateLayout, Traffic
from andromeda_scale.cost.working import Device, Sizes, Working
from andromeda_scale.strategies import common, zero_config, zero_memory, zero_readback
from andromeda_scale.strategies.base import Strategy, TrainState, Unavailable
from andromeda_scale.strategies.zero_options import Zero12Options
from andromeda_scale.suite.precision import POLICIES, element_bytes
from andromeda_scale.suite.schema import Schema

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from andromeda_scale.models.factory import ModelFactory
    from andromeda_scale.rank.runtime import Runtime
    from andromeda_scale.suite.training import Train
    from andromeda_scale.suite.world import World

_FP32 = 4


class Zero(Strategy):
    """What the stages share."""

    name: ClassVar[str]
    Options: ClassVar[type[Schema]] = Zero12Options
    requires: ClassVar[tuple[str, ...]] = ("deepspeed",)
    preload: ClassVar[tuple[str, ...]] = (
        "deepspeed",
        "deepspeed.runtime.zero.stage3",  # this and the next every rank with an engine imports
        "deepspeed.runtime.zero.muon.muon_optimizer",  # seconds: it compiles at import
    )
    stage: ClassVar[int]
    accelerate_on: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda"})

    @classmethod
    def refuses(cls, options: Any, train: Train, world: World, device: str) -> str | None:
        return super().refuses(options, train, world, device) or zero_config.refusal(
            options, cls.stage, train, world
        )

    @classmethod
    def layout(cls, options: Any, train: Train, world: World) -> StateLayout:
        """fp32: 4 + 16/N bytes per parameter, stage 3 20/N; bf16: 2 + 14/N, stage 3 16/N.

        DeepSpeed keeps a float32 master beside float32 parameters too. An offloaded optimizer has
        its float32 gradients on the host, and beside them those of the micro-batches before.
        """
        width = element_bytes(zero_config.compute_dtype(train))
        kept = element_bytes(zero_config.grad_accum_dtype(options, train))
        shards = world.size
        gradients = Part(kept, shards)
        place: Literal["device", "host"] = "host" if options.offload_optimizer else "device"
        if options.offload_optimizer:
            summed = cls.stage == 3 or (cls.stage == 2 and train.grad_accum > 1)
            gradients = Part(_FP32 + (kept if summed else 0), shards, "host")
        return StateLayout(
            parameters=cls._parameters(options, width, shards),
            gradients=gradients,
            master=Part(_FP32, shards, place),
            optimizer_state=Part(train.optimizer.state_bytes, shards, place),
        )

    @classmethod
    def _parameters(cls, options: Any, width: int, shards: int) -> Part:
        return Part(width)

    @classmethod
    def traffic(cls, options: Any, train: Train, world: World) -> Traffic:
        """Stages 1 and 2: gradients all-reduced (or reduced to their owners, P), parameters
        gathered, P."""
        if world.size == 1:
            return Traffic()
        # Stage 1 keeps whole gradients until the last micro-batch, stage 2 never does.
        per: Literal["step", "micro_batch"] = "step" if cls.stage == 1 else "micro_batch"
        whole = options.use_multi_rank_bucket_allreduce or not options.reduce_scatter
        operation: Literal["all_reduce", "reduce"] = "all_reduce" if whole else "reduce"
        width = element_bytes(zero_config.compute_dtype(train))
        summed = element_bytes(zero_config.reduce_dtype(options, train))
        return Traffic(
            (Collective(operation, 1.0, summed, per), Collective("all_gather", 1.0, width))
        )

    @classmethod
    def working(
        cls, options: Any, train: Train, world: World, sizes: Sizes, device: Device
    ) -> Working:
        return zero_memory.stage_1_or_2(cls.stage, options, train, world.size, sizes)

    def build(self, factory: ModelFactory, rt: Runtime) -> TrainState:
        """Weights first, then DeepSpeed's engine around them, on the existing process group."""
        import deepspeed

        module = self.prepare(factory, rt)
        engine, _, _, _ = deepspeed.initialize(
            model=module,
            optimizer=common.optimizer(module.parameters(), self.train),
            config=self.config(factory.num_parameters, rt),
            dist_init_required=False,
        )
        self.prepared(factory, module)
        return TrainState(engine, module, engine.optimizer)

    def prepare(self, factory: ModelFactory, rt: Runtime) -> nn.Module:
        """The seed's weights as DeepSpeed takes them, compiled."""
        import deepspeed
        from deepspeed.utils import nvtx

        _check_accelerator(rt.device)
        # Ranges for Nsight around every hook of stage 3, thousands a step: a sixth of its host's
        # time, and nobody here reads them.
        nvtx.enable_nvtx = False
        if rt.device.type == "cpu":
            # Which operators can be compiled is asked for one that only inference uses, and that
            # would then be compiled: seconds in every rank, for nothing.
            deepspeed.ops.__compatible_ops__ = {}
        deepspeed.init_distributed(dist_backend=rt.backend, auto_mpi_discovery=False, verbose=False)
        module = factory.build()
        self._materialise(factory, module, rt)
        common.compile_model(module, self.train)
        return module

    def prepared(self, factory: ModelFactory, module: nn.Module) -> None:
        """DeepSpeed makes its masters from rounded parameters."""
        from andromeda_scale.strategies import zero_weights

        if POLICIES[self.train.precision].mixed:
            zero_weights.restore_masters(factory, module)

    def _materialise(self, factory: ModelFactory, module: nn.Module, rt: Runtime) -> None:
        factory.materialise(module, rt.device)

    def config(self, num_parameters: int, rt: Runtime) -> dict[str, Any]:
        """DeepSpeed's configuration."""
        return zero_config.engine_config(
            self.options, self.stage, self.train, num_parameters, rt.device.type
        )

    def accelerator(self, rt: Runtime, num_parameters: int) -> dict[str, Any]:
        """The plugin of the same configuration; cpu=True would make it plain DDP, silently."""
        from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs

        return {
            "cpu": False,
            "deepspeed_plugin": DeepSpeedPlugin(hf_ds_config=self.config(num_parameters, rt)),
            "kwargs_handlers": [InitProcessGroupKwargs(backend=rt.backend)],
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
        """DeepSpeed's own, taken as its step takes it: no padding, no piece counted twice."""
        norm: Tensor = self._scaled_norm(s.optimizer) / s.optimizer.loss_scale
        return norm

    def _scaled_norm(self, optimizer: Any) -> Any:
        return optimizer.scaled_global_norm()

    def update(self, s: TrainState) -> None:
        s.wrapped.step()

    def discard(self, s: TrainState) -> None:
        s.optimizer.zero_grad()
        if self.stage < 3:  # kept by the optimizer until its step, which will not come
            s.optimizer.averaged_gradients = {}
            s.optimizer.all_grad_tensors = {}
            if s.optimizer.cpu_offload:
                s.optimizer.reset_cpu_buffers()
                s.optimizer.micro_step_id = -1  # the next micro-batch is a step's first

    def states(self, s: TrainState) -> dict[str, list[Tensor]]:
        optimizer = s.optimizer
        return {
            "parameters": self._shards(s) + self._whole(s),
            "gradients": self._gradients(optimizer) + common.gradients(s.module.parameters()),
            "master": self._masters(optimizer),
            "optimizer_state": list(common.optimizer_tensors(optimizer.optimizer.state)),
        }

    def _shards(self, s: TrainState) -> list[Tensor]:
        """Parameters as they lie when nobody computes with them."""
        return list(s.module.parameters())

    def _whole(self, s: TrainState) -> list[Tensor]:
        """What is gathered of them now."""
        return []

    def _gradients(self, optimizer: Any) -> list[Tensor]:
        if not optimizer.cpu_offload:
            return [g for group in optimizer.averaged_gradients.values() for g in group or ()]
        kept = [master.grad for master in self._masters(optimizer) if master.grad is not None]
        return kept + list(optimizer.accumulated_grads_in_cpu.values())

    def _masters(self, optimizer: Any) -> list[Tensor]:
        masters: list[Tensor] = optimizer.single_partition_of_fp32_groups
        return masters

    def communication_buffers(self, s: TrainState) -> dict[str, int]:
        """The buckets in which gradients are reduced, and what is gathered for a while."""
        return {
            "reduce_buckets": common.buffer_bytes(zero_readback.reduce_buckets(s.optimizer)),
            **self._gathered(s),
        }

    def _gathered(self, s: TrainState) -> dict[str, int]:
        return {}

    def without_communication(self, s: TrainState) -> AbstractContextManager[None] | Unavailable:
        if self.stage == 3:
            return Unavailable("stage 3 fetches parameters by groups of its own making")
        from andromeda_scale.strategies import silent

        names = ("dp_process_group", "real_dp_process_group")
        return silent.silenced([(s.optimizer, name) for name in names])

    def expects(self) -> dict[str, Any]:
        options = self.options
        offload: dict[str, str] = {}
        if options.offload_optimizer:
            offload |= {"master": "cpu", "optimizer_state": "cpu"}
        dtypes = common.expected_dtypes(self.train.precision)
        dtypes["reduction"] = zero_config.reduce_dtype(options, self.train)
        return {
            "wrapper": "DeepSpeedEngine",
            "stage": self.stage,
            "dtypes": dtypes,
            "offload": offload,
            "engine": {"grad_accum_dtype": zero_config.grad_accum_dtype(options, self.train)},
        }

    def describe(self, s: TrainState) -> dict[str, Any]:
        from deepspeed import DeepSpeedEngine

        if not isinstance(s.wrapped, DeepSpeedEngine):  # which is then `invalid`
            return {"wrapper": common.wrapper_name(s)}
        engine, optimizer, states = s.wrapped, s.optimizer, self.states(s)
        reduction = str(optimizer.communication_data_type).removeprefix("torch.")
        return {
            "wrapper": common.wrapper_name(s),
            "world_size": engine.world_size,
            "stage": int(engine.zero_optimization_stage()),
            **common.read_states(states, reduction),
            "optimizer": common.optimizer_facts(optimizer.optimizer),
            "loss_scale": zero_readback.loss_scale(engine),
            "gradient_clipping": float(optimizer.clip_grad) or "none",
            "offload": zero_readback.offload({**states, "parameters": self._shards(s)}),
            "buckets": zero_readback.buckets(engine),
            "engine": zero_readback.settings(engine),
        }


class Zero1(Zero):
    """Optimizer state sharded; gradients reduced at the last micro-batch."""

    name: ClassVar[str] = "zero1"
    stage: ClassVar[int] = 1


class Zero2(Zero):
    """Optimizer state and gradients sharded; gradients reduced at every micro-batch."""

    name: ClassVar[str] = "zero2"
    stage: ClassVar[int] = 2


def _check_accelerator(device: torch.device) -> None:
    """DeepSpeed chooses its accelerator once, at import."""
    from deepspeed.accelerator import get_accelerator

    chosen = get_accelerator().device_name()
    if chosen != device.type:
        raise RuntimeError(
            f"DeepSpeed was imported for {chosen}, but this rank runs on {device.type}; "
            f"set DS_ACCELERATOR={device.type} before it is imported"
        )
