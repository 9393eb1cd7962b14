"""What strategies share: the optimizer, block-wise compilation, and reading states back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from andromeda_scale.suite.optimizers import OPTIMIZERS, OPTIONS
from andromeda_scale.suite.precision import POLICIES

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.distributed import ProcessGroup

    from andromeda_scale.strategies.base import TrainState
    from andromeda_scale.suite.training import Train


_ROW = 1 << 12  # squares that a CPU adds up one by one


def wrapper_name(s: TrainState) -> str | None:
    """The class that wraps the model; None for the bare module."""
    return None if s.wrapped is s.module else type(s.wrapped).__name__


def optimizer(parameters: Iterable[nn.Parameter], train: Train) -> torch.optim.Optimizer:
    """The optimizer of every strategy: one parameter group, one kind of kernel on every device."""
    import torch

    spec, known = train.optimizer, OPTIMIZERS[train.optimizer.name]
    given = {name: getattr(spec, name) for name in OPTIONS if getattr(spec, name) is not None}
    made: torch.optim.Optimizer = getattr(torch.optim, known.torch_name)(
        parameters,
        lr=train.learning_rate,
        weight_decay=train.weight_decay,
        **{"fused" if spec.is_fused else "foreach": True},
        **given,
    )
    return made


def update_in_parts(
    made: torch.optim.Optimizer, first: list[nn.Parameter], *, halves: bool
) -> None:
    """Make groups of an optimizer's one: `first`, if any, then the others or two halves of them."""
    (group,) = made.param_groups
    ahead = {id(p) for p in first}
    others = [p for p in group["params"] if id(p) not in ahead]
    parts = [first] if first else []
    parts += _halves(others) if halves and len(others) > 1 else [others]
    made.param_groups = [{**group, "params": part} for part in parts]


def _halves(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Two parts of about as many elements."""
    parts: list[list[nn.Parameter]] = [[], []]
    sizes = [0, 0]
    for parameter in sorted(parameters, key=lambda p: -p.numel()):
        smaller = sizes.index(min(sizes))
        parts[smaller].append(parameter)
        sizes[smaller] += parameter.numel()
    return parts


def step_groups(
    made: torch.optim.Optimizer, groups: list[dict[str, Any]], beside: torch.cuda.Stream | None
) -> None:
    """A step of these groups of an optimizer; all but the first on a stream beside, if there is."""
    import torch

    every, here = made.param_groups, groups
    if beside is not None:
        here = groups[:1]
        beside.wait_stream(torch.cuda.current_stream())
        made.param_groups = groups[1:]
        with torch.cuda.stream(beside):
            made.step()
    made.param_groups = here
    made.step()
    made.param_groups = every
    if beside is not None:
        torch.cuda.current_stream().wait_stream(beside)


def optimizer_facts(made: torch.optim.Optimizer) -> dict[str, Any]:
    """Class, kernel and settings of a live optimizer's first group, its learning rate left out."""
    group = made.param_groups[0]
    kernel = next((name for name in ("fused", "foreach") if group.get(name)), "default")
    settings = {name: group[name] for name in (*OPTIONS, "weight_decay") if name in group}
    return {"class": type(made).__name__, "kernel": kernel, **settings}


def compile_model(module: nn.Module, train: Train) -> None:
    """Compile as asked: each block's forward, so that hooks on the block stay outside, or all.

    Inductor's helpers are children of this rank: g++ under threads on a CPU; for Triton a process
    with a pool of workers, started at the first compilation and not in the forkserver, of which
    a fork inherits nothing. They belong to the rank's process group, and the forkserver ends them
    with it. Each rank would start min(32, cores): it gets its share of the cores.
    """
    how = train.compiling
    if how is None:
        return
    import os

    import torch
    from torch._dynamo import config as dynamo_config
    from torch._inductor import config as inductor_config

    if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:
        # The variable itself is read when the forkserver imports torch: too early for a rank's.
        inductor_config.compile_threads = torch.get_num_threads()
    # DDP would cut a block's graph at its buckets, which are larger, and refuses higher-order
    # operators: FlexAttention, checkpoints.
    dynamo_config.optimize_ddp = False
    mode: dict[str, Any] = {} if how.mode == "default" else {"mode": how.mode}
    parts = [module] if how.whole else list(module.blocks)  # type: ignore[arg-type]  # to mypy a Tensor or a Module
    # Blocks share a graph unless something that their code reads differs from block to block:
    # past the limit the other blocks would run eagerly.
    dynamo_config.recompile_limit = max(dynamo_config.recompile_limit, 2 * len(parts))
    for part in parts:
        part.forward = torch.compile(part.forward, **mode)


def autocast(device: torch.device, precision: str, *, enabled: bool = True) -> torch.autocast:
    """The compute dtype of a policy for strategies that keep float32 parameters."""
    import torch

    policy = POLICIES[precision]
    # Each parameter is used once per micro-batch: a cache of casts would only hold memory.
    return torch.autocast(
        device.type,
        dtype=getattr(torch, policy.compute),
        enabled=enabled and policy.mixed,
        cache_enabled=False,
    )


def local_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of all elements of tensors, in float32: a scalar."""
    import torch

    return torch.nn.utils.get_total_norm([part for tensor in tensors for part in _summands(tensor)])


def _summands(tensor: Tensor) -> Iterator[Tensor]:
    """Float32 tensors of the same norm, none of them long on a CPU.

    On a CPU torch adds squares up one by one, and loses what is small beside their sum: the norm of
    1e7 elements was 4e-4 too small, of 1e8 elements 1 %.
    """
    import torch

    if tensor.device.type != "cpu" or tensor.numel() <= _ROW:
        yield tensor.float()
        return
    flat = tensor.flatten()
    whole = flat.numel() // _ROW * _ROW
    yield torch.linalg.vector_norm(flat[:whole].view(-1, _ROW), dim=1, dtype=torch.float32)
    yield flat[whole:].float()


def total_norm(tensors: list[Tensor], device: torch.device, group: ProcessGroup | None) -> Tensor:
    """Euclidean norm over the shards that the ranks of a group hold; None: these are all.

    One scalar on the device crosses the network. Shards may lie on the host, or not exist.
    """
    import torch.distributed as dist

    norm = local_norm(tensors).to(device)
    if group is None:
        return norm
    square = norm.square()
    dist.all_reduce(square, group=group)
    return square.sqrt()


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


def local_parameters(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    """What an optimizer updates: of a DTensor the part that this rank holds, on the same memory.

    Clipping and updates go element by element, and DTensor's dispatch of lists costs the host
    more than the kernels cost a GPU.
    """
    import torch
    from torch.distributed.tensor import DTensor

    with torch.no_grad():
        return [
            torch.nn.Parameter(p.to_local()) if isinstance(p, DTensor) else p for p in parameters
        ]


def hand_over(parameters: list[nn.Parameter], updated: list[nn.Parameter]) -> None:
    """Give what the optimizer updates the gradients of the parameters it is a part of."""
    import torch

    with torch.no_grad():
        for parameter, part in zip(parameters, updated, strict=True):
            if part is parameter:
                continue
            held = local(parameter)
            if part.data_ptr() != held.data_ptr():  # FSDP2 has padded or pinned it since
                part.data = held
            part.grad = None if parameter.grad is None else local(parameter.grad)


def gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Local gradients that exist now: every step asks, so DTensor is looked up once."""
    from torch.distributed.tensor import DTensor

    found = [p.grad for p in parameters if p.grad is not None]
    return [grad.to_local() if isinstance(grad, DTensor) else grad for grad in found]


def dtype_name(tensors: Iterable[Tensor]) -> str | None:
    """The dtype of tensors, joined with '+' if they differ; None if there are none."""
    names = sorted({str(t.dtype).removeprefix("torch.") for t in tensors})
    return "+".join(names) or None


def devices(states: Mapping[str, Iterable[Tensor]]) -> dict[str, str | None]:
    """The kind of device that holds each kind of state; None where there is none of it."""
    found = {kind: sorted({t.device.type for t in tensors}) for kind, tensors in states.items()}
    return {kind: "+".join(types) or None for kind, types in found.items()}


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


def bytes_by_device(states: Mapping[str, Iterable[Tensor]]) -> dict[str, int]:
    """The same bytes by the kind of device that holds them."""
    kinds: dict[str, list[Tensor]] = {}
    for tensor in (tensor for tensors in states.values() for tensor in tensors):
        kinds.setdefault(tensor.device.type, []).append(tensor)
    return state_bytes(kinds)


def buffer_bytes(buffers: Iterable[Tensor], besides: Iterable[Tensor] = ()) -> int:
    """Bytes of buffers that exist now, every storage once, without those that hold `besides`."""
    return state_bytes({"besides": besides, "buffers": buffers})["buffers"]


def read_states(states: Mapping[str, list[Tensor]], reduction: str | None) -> dict[str, Any]:
    """`dtypes`, `bytes` and `bytes_on` of describe(), from the states that exist now."""
    return {
        "dtypes": {
            "parameters": dtype_name(states["parameters"]),
            "master": dtype_name(states["master"] or states["parameters"]),
            "gradients": dtype_name(states["gradients"]),
            "optimizer_state": dtype_name(states["optimizer_state"]),
            "reduction": reduction,
        },
        "bytes": state_bytes(states),
        "bytes_on": bytes_by_device(states),
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
