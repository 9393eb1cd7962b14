"""Driver `accelerate`: the same strategies, wrapped by accelerate's own plugins and prepare()."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from andromeda_scale.rank.failures import UnavailableHere
from andromeda_scale.strategies import common
from andromeda_scale.strategies.base import Strategy, TrainState, Unavailable
from andromeda_scale.suite.precision import GROWTH_INTERVAL, INITIAL_LOSS_SCALE

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed import ProcessGroup

    from andromeda_scale.cost.layout import StateLayout, Traffic
    from andromeda_scale.cost.working import Device, Sizes, Working
    from andromeda_scale.models.factory import ModelFactory
    from andromeda_scale.rank.runtime import Runtime
    from andromeda_scale.suite.training import Train
    from andromeda_scale.suite.world import World

# accelerate's names of the precisions; TF32 is torch's own switch.
_MIXED = {"fp32": "no", "tf32": "no", "bf16": "bf16", "fp16": "fp16"}


class Accelerated(Strategy):
    """A strategy under accelerate: what it says of bytes and traffic holds, who wraps it changes.

    accelerate's DeepSpeed steps at the end of its last backward; here that call alone waits for
    `update`, so that gradients can be read in between. Nothing else happens in between.
    """

    def __init__(self, inner: Strategy) -> None:
        super().__init__(inner.options, inner.train)
        self.inner = inner
        self.name = inner.name  # type: ignore[misc]  # a class's name elsewhere
        self._world_size = 1
        for package in self.requires_for(type(inner)):
            if importlib.util.find_spec(package) is None:
                raise UnavailableHere(
                    f"{inner.name} by accelerate needs {package}; pip install {package}"
                )

    @classmethod
    def requires_for(cls, strategy: type[Strategy]) -> tuple[str, ...]:
        """Packages beyond the strategy's own: accelerate's DeepSpeed plugin asks transformers."""
        return ("accelerate", "transformers") if _by_deepspeed(strategy) else ("accelerate",)

    @classmethod
    def preload_for(cls, strategy: type[Strategy]) -> tuple[str, ...]:
        """Modules that are imported before ranks of this strategy are forked."""
        plugin = ("transformers", "transformers.integrations.deepspeed")
        return ("accelerate", *plugin) if _by_deepspeed(strategy) else ("accelerate",)

    @classmethod
    def options_for(cls, strategy: type[Strategy], options: Any) -> Any:
        """The strategy's options as accelerate takes them."""
        return strategy.as_accelerated(options)

    @classmethod
    def refuses(
        cls, strategy: type[Strategy], train: Train, world: World, device: str
    ) -> str | None:
        """Why accelerate cannot wrap this class in this world; None if it can."""
        name = strategy.name
        if device not in strategy.accelerate_on:
            if not strategy.accelerate_on:
                return f"driver: accelerate has no plugin for {name}; use driver: native"
            return (
                f"driver: accelerate on a CPU ignores {name}'s plugin and trains plain DDP; "
                "use driver: native, or a GPU"
            )
        if train.precision == "fp16" and device == "cpu" and not _by_deepspeed(strategy):
            return "train.precision: accelerate on a CPU ignores fp16 and trains in fp32; use bf16"
        if name == "ddp" and world.size == 1 and device == "cuda":
            return "driver: accelerate leaves the model of one GPU bare; use strategy single"
        return None

    # A strategy answers by its class; of this one only an instance knows which it wraps.
    def layout(self, options: Any, train: Train, world: World) -> StateLayout:  # type: ignore[override]
        return self.inner.layout(options, train, world)

    def traffic(self, options: Any, train: Train, world: World) -> Traffic:  # type: ignore[override]
        return self.inner.traffic(self.inner.as_accelerated(options), train, world)

    def working(  # type: ignore[override]
        self, options: Any, train: Train, world: World, sizes: Sizes, device: Device
    ) -> Working:
        given = self.inner.as_accelerated(options)
        return self.inner.working(given, train, world, sizes, device)

    def hidden_bytes(self, s: TrainState) -> int:
        return self.inner.hidden_bytes(s)

    def communication_buffers(self, s: TrainState) -> dict[str, int]:
        return self.inner.communication_buffers(s)

    def build(self, factory: ModelFactory, rt: Runtime) -> TrainState:
        """As accelerate's users do: Accelerator of a plugin, then prepare(model, optimizer)."""
        from accelerate import Accelerator

        self._world_size = rt.world_size
        # accelerate chooses threads of its own where nobody has said how many.
        os.environ.setdefault("OMP_NUM_THREADS", str(rt.threads))
        if not self.inner.distributed:
            os.environ.pop("LOCAL_RANK", None)  # a launched process would get DDP around it
        module = self.inner.prepare(factory, rt)
        arguments = self.inner.accelerator(rt, factory.num_parameters)
        handlers = [*arguments.pop("kwargs_handlers", []), *_handlers(self.train.precision)]
        self._wrap_blocks(arguments.get("fsdp_plugin"), module)
        accelerator = Accelerator(
            **{"cpu": rt.device.type == "cpu", **arguments},
            mixed_precision=_MIXED[self.train.precision],
            gradient_accumulation_steps=self.train.grad_accum,
            kwargs_handlers=handlers,
        )
        wrapped, optimizer = self._prepare(accelerator, module)
        extra = {
            "device": rt.device,
            "scaler": _Scale(accelerator, optimizer, rt.device),
            "sharded_over": _sharded_over(wrapped, module),
            "accelerator": accelerator,
            "prepared": optimizer,
            "parameters": list(module.parameters()),
        }
        self.inner.prepared(factory, module)
        return TrainState(wrapped, module, optimizer.optimizer, extra)

    def _prepare(self, accelerator: Any, module: Any) -> tuple[Any, Any]:
        """prepare(), in the order each kind of wrapper needs."""
        if accelerator.is_fsdp2 or self._steps_in_backward(accelerator):
            made = common.optimizer(module.parameters(), self.train)
            wrapped, optimizer = accelerator.prepare(module, made)
            return wrapped, optimizer
        wrapped = accelerator.prepare(module)  # FSDP1 makes new parameters of a module's
        made = common.optimizer(module.parameters(), self.train)
        return wrapped, accelerator.prepare(made)

    def _wrap_blocks(self, plugin: Any, module: Any) -> None:
        """FSDP's units are the blocks, by the name of their class, which is what a plugin takes."""
        if plugin is not None:
            names = sorted({type(block).__name__ for block in module.blocks})
            plugin.transformer_cls_names_to_wrap = names

    def _steps_in_backward(self, accelerator: Any) -> bool:
        return bool(accelerator.distributed_type.value == "DEEPSPEED")

    def _accumulating(self, s: TrainState, last: bool) -> AbstractContextManager[Any]:
        accelerator = s.extra["accelerator"]
        accelerator.sync_gradients = last
        context: AbstractContextManager[Any] = nullcontext()
        return context if last else accelerator.no_sync(s.wrapped)

    def forward(
        self, s: TrainState, tokens: Tensor, labels: Tensor, *, last_micro_batch: bool = True
    ) -> tuple[Tensor, int]:
        with self._accumulating(s, last_micro_batch):
            loss_sum, num_tokens = s.wrapped(tokens, labels)
        return loss_sum, num_tokens

    def backward(self, s: TrainState, loss: Tensor, *, last_micro_batch: bool) -> None:
        accelerator = s.extra["accelerator"]
        waits = _step_waits(s.wrapped) if self._steps_in_backward(accelerator) else nullcontext()
        with self._accumulating(s, last_micro_batch), waits:
            # accelerate divides by the number of micro-batches; here they are parts of one sum.
            accelerator.backward(loss * self.train.grad_accum)

    def gradient_norm(self, s: TrainState) -> Tensor:
        return self.inner.gradient_norm(s)

    def update(self, s: TrainState) -> None:
        accelerator, optimizer = s.extra["accelerator"], s.extra["prepared"]
        if self._steps_in_backward(accelerator):
            s.wrapped.step()
            return
        if self.train.grad_clip is not None:
            accelerator.clip_grad_norm_(s.wrapped.parameters(), self.train.grad_clip)
        optimizer.step()
        s.extra["scaler"].count()
        optimizer.zero_grad()

    def discard(self, s: TrainState) -> None:
        self.inner.discard(s)

    def states(self, s: TrainState) -> dict[str, list[Tensor]]:
        return self.inner.states(s)

    def without_communication(self, s: TrainState) -> AbstractContextManager[None] | Unavailable:
        return self.inner.without_communication(s)

    def expects(self) -> dict[str, Any]:
        driver = {
            "name": "accelerate",
            "mixed_precision": _MIXED[self.train.precision],
            "num_processes": self._world_size,
        }
        return {**self.inner.expects(), "driver": driver}

    def describe(self, s: TrainState) -> dict[str, Any]:
        import accelerate

        live = s.extra["accelerator"]
        driver = {
            "name": accelerate.__name__,
            "version": accelerate.__version__,
            "distributed_type": live.distributed_type.value,
            "mixed_precision": str(live.mixed_precision),
            "num_processes": int(live.num_processes),
        }
        return {**self.inner.describe(s), "driver": driver}


class _Scale:
    """The loss scale that accelerate keeps, as a strategy asks for it; 1 without one."""

    def __init__(self, accelerator: Any, optimizer: Any, device: torch.device) -> None:
        import torch

        self._scaler, self._optimizer = accelerator.scaler, optimizer
        self._one = torch.ones((), device=device)
        self._skipped = 0

    def current(self) -> Tensor:
        scaled: Tensor = self._one if self._scaler is None else self._scaler.scale(self._one)
        return scaled

    def count(self) -> None:
        """Note whether the step just taken was skipped."""
        self._skipped += bool(self._optimizer.step_was_skipped)

    def describe(self) -> dict[str, Any] | None:
        if self._scaler is None:
            return None
        return {"scale": float(self._scaler.get_scale()), "skipped_steps": self._skipped}


@contextmanager
def _step_waits(engine: Any) -> Iterator[None]:
    """Inside, DeepSpeed's engine does not step."""
    engine.step = lambda: None
    try:
        yield
    finally:
        del engine.step


def _handlers(precision: str) -> list[Any]:
    """Torch's defaults where accelerate has others, and this suite's where it has chosen."""
    from accelerate.utils import AutocastKwargs, GradScalerKwargs

    handlers: list[Any] = [AutocastKwargs(cache_enabled=False)]  # as common.autocast
    if precision == "fp16":
        handlers.append(
            GradScalerKwargs(init_scale=INITIAL_LOSS_SCALE, growth_interval=GROWTH_INTERVAL)
        )
    return handlers


def _sharded_over(wrapped: Any, module: Any) -> ProcessGroup | None:
    """The ranks whose shards make the gradient; None where every rank holds all of it."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    first = next(module.parameters())
    if isinstance(first, DTensor):
        mesh = first.device_mesh
        return mesh.get_group(mesh.ndim - 1)
    if isinstance(wrapped, FullyShardedDataParallel):
        return wrapped.process_group
    return None


def _by_deepspeed(strategy: type[Strategy]) -> bool:
    return "deepspeed" in strategy.requires
