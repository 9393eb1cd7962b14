"""What a live DeepSpeed engine does: its buckets, scale, settings and where its states lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from andromeda_scale.strategies import common

if TYPE_CHECKING:
    from torch import Tensor


def loss_scale(engine: Any) -> dict[str, Any] | None:
    """Scale and number of skipped steps; None where nothing is scaled."""
    if not engine.fp16_enabled():
        return None
    scale = float(engine.optimizer.loss_scale)
    return {"scale": scale, "skipped_steps": int(engine.skipped_steps)}


def offload(states: Mapping[str, list[Tensor]]) -> dict[str, Any]:
    """The kind of device of each kind of state, and whether the masters' pages are pinned."""
    pinned = [tensor.is_pinned() for tensor in states["master"] if tensor.device.type == "cpu"]
    return {**common.devices(states), "pinned": bool(pinned) and all(pinned)}


def buckets(engine: Any) -> dict[str, Any]:
    """How gradients are grouped on their way over the network; sizes in elements."""
    optimizer = engine.optimizer
    return {
        "reduce_bucket_size": int(optimizer.reduce_bucket_size),
        "overlap_comm": bool(engine.zero_overlap_comm()),
        "contiguous_gradients": bool(optimizer.contiguous_gradients),
    }


def reduce_buckets(optimizer: Any) -> list[Tensor]:
    """The flat buffers that gradients are copied into: made for each backward, stage 3 once."""
    found: list[Tensor] = []
    for bucket in optimizer.ipg_buckets.values():
        held = bucket.buffer if isinstance(bucket.buffer, list) else [bucket.buffer]
        found += [buffer for buffer in held if buffer is not None]
    return found


def settings(engine: Any) -> dict[str, Any]:
    """Settings of the optimizer that change what is sent or kept."""
    from deepspeed.utils import get_z3_leaf_modules

    optimizer = engine.optimizer
    found = {
        "optimizer": type(optimizer).__name__,
        "grad_accum_dtype": str(optimizer.gradient_accumulation_dtype).removeprefix("torch."),
        "reduce_scatter": bool(optimizer.reduce_scatter),
    }
    offloaded = getattr(optimizer, "parameter_offload", None)
    if offloaded is None:
        return found | {
            "use_multi_rank_bucket_allreduce": bool(optimizer.use_multi_rank_bucket_allreduce),
            "round_robin_gradients": bool(optimizer.round_robin_gradients),
            "check_grad_overflow": bool(optimizer.check_grad_overflow),
            "allgather_bucket_size": int(optimizer.allgather_bucket_size),
        }
    return found | {
        "prefetch_bucket_size": int(offloaded._prefetch_bucket_sz),
        "max_reuse_distance": int(offloaded._max_reuse_distance_in_numel),
        "max_live_parameters": int(offloaded._max_available_parameters_in_numel),
        "param_persistence_threshold": int(offloaded.param_numel_persistence_threshold),
        "sub_group_size": int(optimizer.sub_group_size),
        "leaf_modules": len(get_z3_leaf_modules(engine.module)),
    }
