"""What a case would use on this machine, and why it cannot. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from andromeda_scale.cost import memory
from andromeda_scale.cost.comm import bytes_per_step
from andromeda_scale.cost.memory import MemoryEstimate
from andromeda_scale.cost.working import Sizes
from andromeda_scale.hardware.machine import Machine
from andromeda_scale.metrics.formats import binary
from andromeda_scale.registry import load, model_config
from andromeda_scale.suite import faults
from andromeda_scale.suite.config import Case, StrategySpec
from andromeda_scale.suite.schema import Device

GIB = 1 << 30
# Of a GPU a rank holds more than torch allocates: CUDA's context, kernels, NCCL's and cuBLAS's
# buffers. 1.2 to 1.8 GiB on H200s (`outside_allocator_bytes` in docs/results).
_OUTSIDE = 7 * GIB // 4
# On a CPU a rank's process counts too, of which closed forms know nothing: its libraries, mostly.
PROCESS: Mapping[Device, int] = {"cpu": 300 * 2**20, "cuda": 0}


@dataclass(frozen=True)
class Placed:
    """A case, the kind of device it would use here, and why it does not run (None: it does)."""

    case: Case
    device: Device
    skip: str | None
    memory_bytes: int | None  # None: the model has no closed form


def fit(case: Case, machine: Machine, impossible: str | None = None) -> Placed:
    """Place a case here; `impossible` says why it could run nowhere."""
    device, skip = _device(case, machine)
    estimate = estimate_memory(case, device)
    skip = impossible or skip or _nodes_skip(case, machine) or refusal(case, device)
    if skip is None and estimate is not None:
        skip = _memory_skip(case, device, machine, estimate)
    return Placed(case, device, skip, None if estimate is None else estimate.total)


def _memory_skip(
    case: Case, device: Device, machine: Machine, estimate: MemoryEstimate
) -> str | None:
    """Why a case does not fit: both numbers, its largest part, and one change that would do."""
    room, process = capacity(case, device, machine), PROCESS[device]
    place = "GPU memory for tensors" if device == "cuda" else "host memory"
    if estimate.total + process > room:
        needed, part = estimate.total + process, estimate.largest
        parts = {part: getattr(estimate, part), "the process itself": process}
        part = max(parts, key=lambda name: parts[name])
        largest = f"mostly {part}, {binary(parts[part])}"
    elif device == "cuda" and estimate.host > (
        room := machine.memory_bytes / case.world.ranks_per_node
    ):
        needed, place, largest = estimate.host, "host memory", "offloaded states"
    else:
        return None
    text = f"needs about {binary(needed)} per rank, has {binary(room)} of {place} ({largest}"
    for change, other in _levers(case):
        lighter = estimate_memory(other, device)
        if lighter is None or refusal(other, device) is not None:
            continue
        on_host = machine.memory_bytes / case.world.ranks_per_node
        needed = lighter.total + process
        if needed <= capacity(other, device, machine) and (
            device == "cpu" or lighter.host <= on_host
        ):
            return f"{text}; {change} would need {binary(needed)})"
    return f"{text})"


def _levers(case: Case) -> Iterator[tuple[str, Case]]:
    """Single changes that save memory, the cheapest in time first: how to write it, the case."""
    if case.train.activation_checkpointing == "none" and case.train.mode != "forward":
        train = case.train.model_copy(update={"activation_checkpointing": "block"})
        yield (
            "train.activation_checkpointing: block",
            case.model_copy(update={"train": train}),
        )
    strategies: list[tuple[str, dict[str, Any]]] = []
    if case.world.size > 1:
        strategies += [("fsdp2", {}), ("zero3", {})]
    strategies += [("zero2", {"offload_optimizer": True}), ("fsdp2", {"cpu_offload": True})]
    for name, options in strategies:
        if (name, options) != (case.strategy.name, case.strategy.options):
            said = ", ".join([f"name: {name}", *(f"{key}: true" for key in options)])
            change = f"strategy: {{{said}}}" if options else f"strategy: {name}"
            strategy = StrategySpec(name=name, options=options)
            yield change, case.model_copy(update={"strategy": strategy})


def estimate_memory(case: Case, device: Device) -> MemoryEstimate | None:
    """Bytes one rank of the case needs; None for a model without closed forms."""
    shape = model_config(case.model).shape()
    if shape is None:
        return None
    strategy, options = _as_driven(case)
    return memory.estimate(
        shape,
        case.train,
        strategy.layout(options, case.train, case.world),
        strategy.working(options, case.train, case.world, Sizes.of(shape), device),
        device,
    )


def bytes_sent(case: Case, device: Device) -> float | None:
    """Bytes one rank sends in a training step, mean over ranks; None: there is no closed form."""
    shape = model_config(case.model).shape()
    if shape is None or case.train.mode != "train_step":
        return None
    (strategy, options), sizes = _as_driven(case), Sizes.of(shape)
    found = bytes_per_step(
        strategy.traffic(options, case.train, case.world),
        sizes.parameters,
        case.world.size,
        case.train.grad_accum,
        num_block_parameters=sizes.num_blocks * sizes.block,
        num_blocks=sizes.num_blocks,
        backend="nccl" if device == "cuda" else "gloo",
    )
    return found.total_wire


def _as_driven(case: Case) -> tuple[Any, Any]:
    """A case's strategy, and its options as its driver takes them."""
    strategy = load("strategy", case.strategy.name)
    options = strategy.Options(**case.strategy.options)
    if case.driver != "native":
        options = load("driver", case.driver).options_for(strategy, options)
    return strategy, options


def refusal(case: Case, device: Device) -> str | None:
    """Why the case's model, strategy or driver cannot do what it asks on this kind of device."""
    strategy = load("strategy", case.strategy.name)
    options = strategy.Options(**case.strategy.options)
    model = model_config(case.model)
    reason: str | None = model.refuses(case.train)
    if reason is None:
        reason = strategy.refuses(options, case.train, case.world, device)
    if reason is None and not model.in_a_row:
        reason = strategy.refuses_apart(options)
    if reason is None and case.driver != "native":
        reason = load("driver", case.driver).refuses(strategy, case.train, case.world, device)
    return reason or faults.refusal(case.faults, device)


def _device(case: Case, machine: Machine) -> tuple[Device, str | None]:
    """The kind of device a case uses here, and why it cannot."""
    ranks, gpus = case.world.ranks_per_node, len(machine.gpus)
    if case.device != "cpu" and gpus >= ranks:
        return "cuda", None
    wants_gpus = case.device == "cuda" or (case.device == "auto" and gpus > 0)
    if wants_gpus and case.fallback == "none":
        return "cuda", (
            f"needs {ranks} GPU{'s' * (ranks > 1)} per node, {gpus} here "
            "(fallback: cpu would use the CPU)"
        )
    if ranks > machine.cpu_cores and case.threads_per_rank is None:
        return "cpu", (
            f"{ranks} ranks on {machine.cpu_cores} cores would share cores "
            "(threads_per_rank allows it)"
        )
    return "cpu", None


def _nodes_skip(case: Case, machine: Machine) -> str | None:
    if case.world.nodes <= machine.nodes:
        return None
    return f"needs {case.world.nodes} nodes, {machine.nodes} here (start an agent on each)"


def capacity(case: Case, device: Device, machine: Machine) -> float:
    """Bytes one rank may use."""
    if case.limits.memory_gib is not None:
        return case.limits.memory_gib * GIB
    if device == "cuda":
        return max(0, min(machine.gpus) - _OUTSIDE)
    return machine.memory_bytes / case.world.ranks_per_node
