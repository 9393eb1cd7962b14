"""DistributedDataParallel: replicas whose gradients are averaged in buckets during backward."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import PositiveFloat

from andromeda_scale.cost import working
from andromeda_scale.cost.layout import Collective, Part, StateLayout, Traffic
from andromeda_scale.cost.working import Device, Sizes, Working
from andromeda_scale.strategies import common
from andromeda_scale.strategies.base import TrainState, Unavailable
from andromeda_scale.strategies.single import Single
from andromeda_scale.suite.precision import element_bytes
from andromeda_scale.suite.schema import Schema

if TYPE_CHECKING:
    from torch import nn

    from andromeda_scale.rank.runtime import Runtime
    from andromeda_scale.suite.training import Train
    from andromeda_scale.suite.world import World


class DdpOptions(Schema):
    """torch's own defaults, except that gradients live in the buckets."""

    bucket_cap_mb: PositiveFloat = 25.0
    gradient_as_bucket_view: bool = True  # False: buckets beside the gradients, 4 bytes more
    static_graph: bool = False  # needs train.grad_accum 1
    # For a model with parameters that a forward may leave out; looks through the graph every step.
    find_unused_parameters: bool = False
    # What a bucket is cast to on its way, by torch's own hooks; gradients stay float32.
    compression: Literal["none", "bf16", "fp16"] = "none"


_REDUCED_IN = {"none": "float32", "bf16": "bfloat16", "fp16": "float16"}
# The hooks' names, as DDP's log gives them back.
_HOOKS = {"bf16_compress_hook": "bfloat16", "fp16_compress_hook": "float16"}


class Ddp(Single):
    """Single's module, optimizer and precision on every rank, wrapped."""

    name: ClassVar[str] = "ddp"
    Options: ClassVar[type[Schema]] = DdpOptions
    distributed: ClassVar[bool] = True

    @classmethod
    def refuses(cls, options: DdpOptions, train: Train, world: World, device: str) -> str | None:
        if reason := super().refuses(options, train, world, device):
            return reason
        if options.static_graph and train.grad_accum > 1 and train.mode != "forward":
            return (
                f"train.grad_accum: {train.grad_accum} with static_graph: torch's reducer fails "
                "when a first backward does not reduce; use train.grad_accum 1"
            )
        if options.compression == "bf16" and device == "cpu":
            return "strategy.compression: torch's bf16 hook needs NCCL; use fp16, or none on a CPU"
        return None

    @classmethod
    def layout(cls, options: DdpOptions, train: Train, world: World) -> StateLayout:
        """16 bytes per parameter on every rank; the gradients' 4 are the buckets or beside."""
        return StateLayout(
            parameters=Part(4),
            gradients=Part(4 if options.gradient_as_bucket_view else 8),
            master=Part(0),
            optimizer_state=Part(train.optimizer.state_bytes),
        )

    @classmethod
    def traffic(cls, options: DdpOptions, train: Train, world: World) -> Traffic:
        """One all-reduce of the gradients, P elements, a step: 2P on the wire."""
        if world.size == 1:
            return Traffic()
        width = element_bytes(_REDUCED_IN[options.compression])
        return Traffic((Collective("all_reduce", 1.0, width),))

    @classmethod
    def working(
        cls, options: DdpOptions, train: Train, world: World, sizes: Sizes, device: Device
    ) -> Working:
        compressed = 0
        if options.compression != "none" and world.size > 1:
            compressed = element_bytes(_REDUCED_IN[options.compression])
        return working.bucketed_gradients(
            sizes, train, views=options.gradient_as_bucket_view, compressed=compressed
        )

    def wrap(self, module: nn.Module, rt: Runtime) -> Any:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
        from torch.nn.parallel import DistributedDataParallel

        sync_buffers: dict[str, Any] = {_buffer_keyword(DistributedDataParallel): False}
        wrapped = DistributedDataParallel(
            module,
            device_ids=[rt.device.index] if rt.device.type == "cuda" else None,
            # Weights and tables are the same on every rank by construction.
            init_sync=False,
            **sync_buffers,
            # Its default is more than this number: the first bucket is then 1 MiB.
            bucket_cap_mb=None if self.options.bucket_cap_mb == 25 else self.options.bucket_cap_mb,
            gradient_as_bucket_view=self.options.gradient_as_bucket_view,
            static_graph=self.options.static_graph,
            find_unused_parameters=self.options.find_unused_parameters,
        )
        if self.options.compression != "none":
            hook = getattr(default_hooks, f"{self.options.compression}_compress_hook")
            wrapped.register_comm_hook(wrapped.process_group, hook)
        return wrapped

    def accelerator(self, rt: Runtime, num_parameters: int) -> dict[str, Any]:
        from accelerate import DDPCommunicationHookType, DistributedDataParallelKwargs

        hook = DDPCommunicationHookType(
            "no" if self.options.compression == "none" else self.options.compression
        )
        keywords = DistributedDataParallelKwargs(
            broadcast_buffers=False,
            bucket_cap_mb=self.options.bucket_cap_mb,
            gradient_as_bucket_view=self.options.gradient_as_bucket_view,
            static_graph=self.options.static_graph,
            find_unused_parameters=self.options.find_unused_parameters,
            comm_hook=hook,
        )
        return {"kwargs_handlers": [keywords]}

    def accumulating(self, s: TrainState, *, last_micro_batch: bool) -> AbstractContextManager[Any]:
        # DDP decides in forward whether this micro-batch's backward reduces.
        context: AbstractContextManager[Any] = nullcontext()
        return context if last_micro_batch else s.wrapped.no_sync()

    def expects(self) -> dict[str, Any]:
        dtypes = common.expected_dtypes(self.train.precision)
        dtypes["reduction"] = _REDUCED_IN[self.options.compression]
        return {"wrapper": "DistributedDataParallel", "dtypes": dtypes}

    def without_communication(self, s: TrainState) -> AbstractContextManager[None] | Unavailable:
        context: AbstractContextManager[None] = s.wrapped.no_sync()
        return context

    def hidden_bytes(self, s: TrainState) -> int:
        # The reducer's own: Python sees a bucket through gradients that are, or were, views of it.
        buckets = self.facts(s)["buckets"]
        seen = buckets["gradient_as_bucket_view"] and self.train.mode != "forward"
        return 0 if seen else sum(buckets["bytes"])

    def communication_buffers(self, s: TrainState) -> dict[str, int]:
        """The reducer's buckets, where the gradients are no views of them."""
        return {"buckets": self.hidden_bytes(s)}

    def reduction(self, s: TrainState) -> str | None:
        hook = s.wrapped._get_ddp_logging_data().get("comm_hook")
        # Without a communication hook a bucket is reduced in its gradients' dtype.
        return _HOOKS.get(hook, hook) if hook else common.dtype_name(s.module.parameters())

    def facts(self, s: TrainState) -> dict[str, Any]:
        log = s.wrapped._get_ddp_logging_data()
        sizes = log.get("rebuilt_bucket_sizes") or log.get("bucket_sizes") or ""
        return {
            "world_size": s.wrapped.process_group.size(),
            "buckets": {
                "bytes": [int(x) for x in sizes.replace(",", " ").split()],
                "cap_bytes": int(log["bucket_cap_bytes"]),
                "gradient_as_bucket_view": bool(log["gradient_as_bucket_view"]),
                "static_graph": bool(log.get("static_graph", False)),
                "find_unused_parameters": bool(log["find_unused_parameters"]),
                "backend": log["backend_name"],
            },
        }


def _buffer_keyword(ddp: type) -> str:
    """The name of the switch for sending buffers in every forward; torch 2.13 renamed it."""
    names = inspect.signature(ddp).parameters
    return "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
