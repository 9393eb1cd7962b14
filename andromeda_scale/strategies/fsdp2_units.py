"""FSDP2's units: what they hold, gather and reduce now, read from torch's live objects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from andromeda_scale.strategies import common

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def prefetch(units: list[Any], ahead: int) -> None:
    """Gather each unit while the one `ahead` of it still computes; units in order of forward."""
    if not ahead:
        return
    for index, unit in enumerate(units):
        unit.set_modules_to_forward_prefetch(units[index + 1 : index + 1 + ahead])
        unit.set_modules_to_backward_prefetch(units[max(0, index - ahead) : index][::-1])


def kept_shards(group: Any) -> bool | int:
    """What is left of a unit after forward: false all of it, true a shard, a number of shards."""
    kept, mesh = group.post_forward_mesh_info, group.mesh_info
    if kept is None:
        return False
    same = kept.shard_mesh_size == mesh.shard_mesh_size
    return True if same else int(kept.shard_mesh_size)


def under_way(groups: list[Any]) -> list[Tensor]:
    """The flat buffers of collectives that FSDP2 still holds."""
    contexts = {id(group.comm_ctx): group.comm_ctx for group in groups}.values()
    states = [context.all_gather_state for context in contexts]
    gathers = [state.all_gather_result for state in states if state is not None]
    gathers += [group._all_gather_result for group in groups if group._all_gather_result]
    scatters: list[Any] = []
    for context in contexts:  # torch before 2.13 keeps one of them, and no plural
        one = getattr(context, "reduce_scatter_state", None)
        scatters += getattr(context, "reduce_scatter_states", [one] if one else [])
    found = [gather.all_gather_output for gather in gathers]
    return found + [scatter.reduce_scatter_input for scatter in scatters]


def reduction_of(groups: list[Any]) -> str | None:
    """The dtype of the reduce-scatters; FSDP2 fixes it in the first forward."""
    names = set()
    for group in groups:
        # None means as the gradients are: in the dtype of the gathered weights, or else as made.
        dtype = getattr(group, "_reduce_dtype", None)
        dtype = dtype or getattr(group.fsdp_params[0], "param_dtype", None)
        dtype = dtype or getattr(group, "_orig_dtype", None)
        if dtype is None:
            return None
        names.add(str(dtype).removeprefix("torch."))
    return "+".join(sorted(names))


def norms_when_reduced(units: list[Any], device: torch.device) -> Tensor:
    """One norm of each unit, (units,) in float32: written when backward has reduced its gradient.

    A unit's gradient is one flat buffer then. Taken on the stream of its last reduction: on
    another, the buffer might be given to the next unit while it is read.
    """
    import torch

    norms = torch.zeros(len(units), device=device)
    for unit, norm in zip(units, norms, strict=True):

        def take(reduced: Tensor, norm: Tensor = norm) -> None:
            if reduced.is_cuda:
                torch.linalg.vector_norm(reduced, dtype=torch.float32, out=norm)
            else:
                norm.copy_(common.local_norm([reduced]))

        # HSDP's last reduction has a stream of its own.
        scatters = [g.comm_ctx.reduce_scatter_stream for g in groups_of(unit) if not g._is_hsdp]
        unit.set_all_reduce_hook(take, stream=scatters[0] if scatters else None)
    return norms


def groups_of(unit: Any) -> list[Any]:
    """The parameter groups of one unit, without those of units within it."""
    state = unit._get_fsdp_state()
    # torch before 2.13 has one group per unit, and no plural.
    groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
    return [group for group in groups if group is not None]


def shards_of(groups: Iterable[Any]) -> list[Any]:
    """The parameters of groups as the optimizer has them, also while they are gathered."""
    return [p.sharded_param for group in groups for p in group.fsdp_params]


def parameter_groups(module: nn.Module) -> list[tuple[str, Any]]:
    """(name of the unit's module, its parameter group) of every FSDP unit."""
    from torch.distributed.fsdp import FSDPModule

    found: list[tuple[str, Any]] = []
    seen: set[int] = set()  # a unit of several modules is met in each
    for name, child in module.named_modules():
        for group in groups_of(child) if isinstance(child, FSDPModule) else ():
            if id(group) not in seen:
                seen.add(id(group))
                found.append((name or "root", group))
    return found
