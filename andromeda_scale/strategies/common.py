"""What strategies share: the optimizer, block-wise compilation, and reading states back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from andromeda_scale.precision import POLICIES

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from andromeda_scale.strategies.base import TrainState
    from andromeda_scale.training import Train


def wrapper_name(s: TrainState) -> str | None:
    """The class that wraps the model; None for the bare module."""
    return None if s.wrapped is s.module else type(s.wrapped).__name__


def adamw(parameters: Iterable[nn.Parameter], train: Train) -> torch.optim.AdamW:
    """The optimizer of every strategy: one parameter group, the fused kernel on every device."""
    import torch

    return torch.optim.AdamW(
        parameters, lr=train.learning_rate, weight_decay=train.weight_decay, fused=True
    )


def compile_blocks(module: nn.Module) -> None:
    """Compile each block's forward; hooks that a strategy puts on the block stay outside."""
    import torch

    for block in module.blocks:  # type: ignore[union-attr]
        block.forward = torch.compile(block.forward)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The compute dtype of a policy for strategies that keep float32 parameters."""
    import torch

    compute = getattr(torch, POLICIES[precision].compute)
    # Each parameter is used once per micro-batch: a cache of casts would only hold memory.
    return torch.autocast(
        device.type, dtype=compute, enabled=precision != "fp32", cache_enabled=False
    )


def local_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of all elements of tensors, in float32: a scalar."""
    import torch

    return torch.nn.utils.get_total_norm([tensor.float() for tensor in tensors])


def clip_plain(parameters: Iterable[nn.Parameter], max_norm: float | None) -> None:
    """Clip gradients that are whole on this rank; without a norm, leave them."""
    import torch

    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)


def optimizer_tensors(state: Mapping[Any, Mapping[str, Any]]) -> Iterator[Tensor]:
    """Local tensors of a torch optimizer's state, its scalar step counters left out."""
    import torch

    for values in state.values():
        for value in values.values():
            if isinstance(value, torch.Tensor) and value.dim() > 0:
                yield local(value)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Local gradients that exist now."""
    return [local(p.grad) for p in parameters if p.grad is not None]


def dtype_name(tensors: Iterable[Tensor]) -> str | None:
    """The dtype of tensors, joined with '+' if they differ; None if there are none."""
    names = sorted({str(t.dtype).removeprefix("torch.") for t in tensors})
    return "+".join(names) or None


def state_bytes(states: Mapping[str, Iterable[Tensor]]) -> dict[str, int]:
    """Bytes of each kind of state, every storage counted once, for the first kind it is in."""
    seen: set[int] = set()
    sizes = {}
    for kind, tensors in states.items():
        sizes[kind] = 0
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.nbytes() and storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                sizes[kind] += storage.nbytes()
    return sizes


def read_states(states: Mapping[str, list[Tensor]], reduction: str | None) -> dict[str, Any]:
    """`dtypes` and `bytes` of describe(), from the states that exist now."""
    return {
        "dtypes": {
            "parameters": dtype_name(states["parameters"]),
            "master": dtype_name(states["master"] or states["parameters"]),
            "gradients": dtype_name(states["gradients"]),
            "optimizer_state": dtype_name(states["optimizer_state"]),
            "reduction": reduction,
        },
        "bytes": state_bytes(states),
    }


def expected_dtypes(precision: str) -> dict[str, str]:
    """The dtypes that the precision policy fixes for every strategy."""
    policy = POLICIES[precision]
    return {
        "master": policy.master,
        "compute": policy.compute,
        "reduction": policy.reduction,
        "optimizer_state": policy.optimizer_state,
    }
