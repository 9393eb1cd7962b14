"""The plan of a probe: one launch a world. No torch.

A world of one rank probes its device, a larger one what its ranks send each other.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import TypeAdapter, ValidationError

from andromeda_scale.contracts import probed
from andromeda_scale.contracts.planned import Plan, PlannedRepeat
from andromeda_scale.errors import UserError
from andromeda_scale.hardware.machine import Machine
from andromeda_scale.suite.config import Case, Limits, StrategySpec
from andromeda_scale.suite.schema import Device
from andromeda_scale.suite.world import World, WorldSpec

TIMEOUT_S = 3600.0  # of a launch: points have limits of their own


def make_probe(
    worlds: Sequence[str], device: Device | None, machine: Machine, *, quick: bool
) -> Plan:
    """One launch of every world; without `worlds` 1, 2, 4, ... to what is here.

    `device` None: GPUs where there are any. Raises UserError for what is no world, and where
    nothing can be launched.
    """
    chosen: Device = device or ("cuda" if machine.gpus else "cpu")
    cuda = chosen == "cuda"
    room = len(machine.gpus) if cuda else machine.cpu_cores
    asked = [_world(text) for text in worlds] or [World(ranks_per_node=n) for n in _doubling(room)]
    asked = sorted(dict.fromkeys(asked), key=lambda world: (world.size, world.nodes))
    launched = [world for world in asked if world.ranks_per_node <= room]
    if not launched:
        if cuda and not room:
            raise UserError("--device cuda: no GPU is here; use --device cpu")
        raise UserError(
            f"--world {','.join(map(str, asked))}: {room} {'GPUs' if cuda else 'CPU cores'} are "
            f"here; use --world {room} or smaller"
        )
    largest = max(world.ranks_per_node for world in launched)
    threads = max(1, machine.cpu_cores // largest)
    ladder = tuple(max(1, machine.cpu_cores // n) for n in reversed(_doubling(machine.cpu_cores)))
    settings = probed.settings(quick=quick, cuda=cuda, threads=() if cuda else ladder)
    cases = {world: _case(world, chosen, settings) for world in asked}
    return Plan(
        suite_name="probe",
        question="What do this machine's devices and its fabric reach at best?",
        cases={case.case_id: case for case in cases.values()},
        repeats=tuple(
            PlannedRepeat(
                case_id=case.case_id,
                repeat=0,
                role="probe",
                device=chosen,
                threads_per_rank=threads,
                skip=None
                if world in launched
                else f"{world.ranks_per_node} ranks a node, and {room} "
                f"{'GPUs' if cuda else 'cores'} here",
            )
            for world, case in cases.items()
        ),
    )


def is_probe(plan: Plan) -> bool:
    """Whether a plan, and so its run, is a probe."""
    return any(item.role == "probe" for item in plan.repeats)


def _case(world: World, device: Device, settings: probed.ProbeSettings) -> Case:
    return Case(
        model_name="quick" if settings.quick else "full",
        model={"probe": settings.model_dump(mode="json")},
        strategy=StrategySpec(name="probe"),
        world=world,
        device=device,
        collect=(),
        parity="off",
        limits=Limits(timeout_s=TIMEOUT_S),
    )


def _doubling(most: int) -> list[int]:
    """1, 2, 4, ... and `most` itself."""
    return sorted({2**power for power in range(most.bit_length())} | {most}) if most else []


def _world(text: str) -> World:
    adapter: TypeAdapter[World] = TypeAdapter(WorldSpec)
    try:
        return adapter.validate_python(text)
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"--world: {said}") from None
