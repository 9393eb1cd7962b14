"""Suite -> plan: which cases run here, why the others do not, and in which order. No torch.

Stated rules
    devices    `auto` takes CUDA where a node has a GPU for each of the case's ranks. A machine
               with fewer GPUs skips the case, or runs it on CPU under `fallback: cpu`.
    cores      more CPU ranks than cores measure the scheduler: skipped, unless the suite sets
               threads_per_rank and so says that sharing is meant.
    threads    cores / the most ranks any case puts on a node, equal at every size.
    memory     a case whose estimate exceeds a rank's capacity is skipped with both numbers.
    order      parity references first; then each repeat runs every case once, in an order
               shuffled by (seed, repeat): randomised blocks, so neither the position in the
               sweep nor the neighbour before is a confounder.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from andromeda_scale import data
from andromeda_scale.config import Case, StrategySpec, Suite
from andromeda_scale.cost import memory
from andromeda_scale.cost.memory import MemoryEstimate
from andromeda_scale.errors import UserError
from andromeda_scale.expand import Point, expand, strategy_skip
from andromeda_scale.machine import Machine, detect_machine
from andromeda_scale.metrics import binary
from andromeda_scale.planned import Plan, PlannedRepeat
from andromeda_scale.registry import load
from andromeda_scale.validation import Where, place
from andromeda_scale.world import World

__all__ = [
    "Machine",
    "detect_machine",
    "estimate_memory",
    "make_plan",
    "reference_of",
    "require_runnable",
]

GIB = 1 << 30
MAX_LAUNCHES = 100_000  # seconds each: a longer plan would never end
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class _Placed:
    """A case, the kind of device it would use here, and why it does not run (None: it does)."""

    case: Case
    device: Device
    skip: str | None
    memory_bytes: int


def make_plan(suite: Suite, suite_name: str, machine: Machine, where: Where | None = None) -> Plan:
    """The ordered list of what is launched and what is skipped, with reasons.

    `where` says in errors where a key was written. Raises UserError for a value no case can have,
    and for data that cannot be read.
    """
    where = where or f"suite {suite_name}"
    points, notes = _without_duplicates(expand(suite, where))
    if len(points) * suite.measure.repeats > MAX_LAUNCHES:
        raise UserError(
            f"measure.repeats: {suite.measure.repeats} of {len(points)} cases are more than "
            f"{MAX_LAUNCHES} launches ({place(where, 'measure.repeats')}); use fewer"
        )
    _check_data(points, where)
    placed = [_place(point, machine) for point in points]
    running = [p for p in placed if p.skip is None]
    largest = max((p.case.world.ranks_per_node for p in running), default=1)
    threads = max(1, machine.cpu_cores // largest)
    if suite.threads_per_rank is None:
        notes.append(f"{threads} threads per rank at every size: cores / {largest} ranks")
    notes.append("each repeat runs every case once, in an order shuffled by seed and repeat")
    references = _references(running, machine)
    rows = [_row(p, 0, threads, role="reference") for p in references.values()]
    for repeat in range(suite.measure.repeats):
        block = running.copy()
        random.Random(f"{suite.seed}/{repeat}").shuffle(block)
        rows += [_row(p, repeat, threads, _reference_id(p)) for p in block]
    rows += [_row(p, 0, threads) for p in placed if p.skip is not None]
    cases = {p.case.case_id: p.case for p in [*references.values(), *placed]}
    return Plan(
        suite_name=suite_name,
        question=suite.question,
        cases=cases,
        repeats=tuple(rows),
        notes=tuple(notes),
    )


def require_runnable(plan: Plan, where: Where | None = None) -> None:
    """Raise UserError for a plan that would launch nothing, with the reason to mend first.

    That is one of the machine's before one of the suite's own, and of those the smallest world's.
    """
    if any(item.skip is None for item in plan.repeats):
        return
    skipped = [(plan.cases[item.case_id], str(item.skip)) for item in plan.repeats]
    case, reason = min(skipped, key=lambda s: (_blamed(*s) in _THE_SUITES_OWN, s[0].world.size))
    key = _blamed(case, reason)
    value, remedy = {
        "device": (case.device, "use device: cpu, or fallback: cpu"),
        "strategy": (case.strategy.name, "use world: 1, or another strategy"),
        "scaling.strong.global_batch_size": ("", "use a multiple"),
    }.get(key, (str(case.world), "change world, device, fallback or limits"))
    raise UserError(
        f"{key}: {value}{' ' * bool(value)}cannot run: {reason} "
        f"({place(where or f'suite {plan.suite_name}', key)}); {remedy} "
        f"(none of {len(plan.cases)} cases can run here, `andromeda-scale plan` shows why)"
    )


_THE_SUITES_OWN = ("strategy", "scaling.strong.global_batch_size")


def _blamed(case: Case, reason: str) -> str:
    """The key to change where a case is skipped for this reason."""
    if reason == strategy_skip(case):
        return "strategy"
    if reason.startswith("global batch "):
        return "scaling.strong.global_batch_size"
    return (
        "device" if case.device == "cuda" and "GPU" in reason and ", 0 here" in reason else "world"
    )


def estimate_memory(case: Case) -> MemoryEstimate:
    """Bytes one rank of the case needs, from the closed forms."""
    strategy = load("strategy", case.strategy.name)
    options = strategy.Options(**case.strategy.options)
    return memory.estimate(
        _model_config(case).shape(),
        case.train,
        strategy.layout(options, case.train, case.world),
        strategy.traffic(options, case.train, case.world),
        case.world.size,
    )


def reference_of(case: Case, device: Device) -> Case:
    """The single process whose first losses this case must show.

    Same model, data, seed and global batch, the batch by accumulation; always on the same kind of
    device. It measures nothing, so cases that differ only in what is measured share it.
    """
    grad_accum = case.global_batch_size // case.train.micro_batch_size
    return Case(
        model_name=case.model_name,
        model=case.model,
        data=case.data,
        train=case.train.model_copy(update={"grad_accum": grad_accum}),
        seed=case.seed,
        env=case.env,
        threads_per_rank=case.threads_per_rank,
        strategy=StrategySpec(name="single"),
        world=World(),
        device=device,
        limits=case.limits,
        collect=(),
        parity="off",
    )


def _without_duplicates(points: Sequence[Point]) -> tuple[list[Point], list[str]]:
    """Points with unique ids, and a note for each that said the same as another."""
    unique: dict[str, Point] = {}
    others: dict[str, list[Point]] = {}
    for point in points:
        case_id = point.case.case_id
        known = unique.setdefault(case_id, point)
        if known is not point:
            others.setdefault(case_id, [known]).append(point)
            if known.skip and not point.skip:
                unique[case_id] = point
    notes = []
    for case_id, same in others.items():
        times = "twice" if len(same) == 2 else f"{len(same)} times"
        skip = next((p.skip for p in same if p.skip), None)
        notes.append(f"{case_id} is there {times}, kept once" + (f" ({skip})" if skip else ""))
    return list(unique.values()), notes


def _check_data(points: Sequence[Point], where: Where) -> None:
    """Refuse data that some case cannot read, before anything starts."""
    checked = set()
    for case in (point.case for point in points if point.skip is None):
        vocab_size = _model_config(case).shape().vocab_size
        key = (case.data, vocab_size, case.train.seq_len)
        if key not in checked:
            try:
                data.check(case.data, vocab_size=vocab_size, seq_len=case.train.seq_len)
            except UserError as error:
                problem, _, remedy = str(error).partition("; ")
                named = problem.partition(":")[0]
                # Too few tokens for a length: either may be what was changed.
                keys = ("data.files", "train.seq_len") if named == "data" else (named,)
                at = " and ".join(dict.fromkeys(place(where, k) for k in keys))
                raise UserError(f"{problem} ({at}); {remedy}") from error
            checked.add(key)


def _place(point: Point, machine: Machine) -> _Placed:
    case = point.case
    needed = estimate_memory(case).total
    device, skip = _device(case, machine)
    skip = point.skip or skip or _nodes_skip(case, machine) or refusal(case, device)
    if skip is None and needed > (capacity := _capacity(case, device, machine)):
        skip = (
            f"needs about {binary(needed)} per rank, "
            f"has {binary(capacity)} of {'GPU' if device == 'cuda' else 'host'} memory"
        )
    return _Placed(case, device, skip, needed)


def refusal(case: Case, device: Device) -> str | None:
    """Why the case's strategy or driver cannot do what it asks on this kind of device."""
    strategy = load("strategy", case.strategy.name)
    options = strategy.Options(**case.strategy.options)
    reason: str | None = strategy.refuses(options, case.train, case.world, device)
    if reason is None and case.driver != "native":
        reason = load("driver", case.driver).refuses(strategy, case.train, case.world, device)
    return reason


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


def _capacity(case: Case, device: Device, machine: Machine) -> float:
    """Bytes one rank may use."""
    if case.limits.memory_gib is not None:
        return case.limits.memory_gib * GIB
    if device == "cuda":
        return min(machine.gpus)
    return machine.memory_bytes / case.world.ranks_per_node


def _references(running: Sequence[_Placed], machine: Machine) -> dict[str, _Placed]:
    """The references of all cases, by id; one that does not fit is skipped like a case."""
    references: dict[str, _Placed] = {}
    for placed in running:
        case_id = _reference_id(placed)
        if case_id is not None and case_id not in references:
            reference = reference_of(placed.case, placed.device)
            references[case_id] = _place(Point(reference), machine)
    return references


def _reference_id(placed: _Placed) -> str | None:
    """Id of the reference, None where parity is off or the case is the reference's own program."""
    if placed.case.parity == "off" or placed.case.strategy.name == "single":
        return None
    return reference_of(placed.case, placed.device).case_id


def _row(
    placed: _Placed,
    repeat: int,
    threads: int,
    reference_id: str | None = None,
    role: Literal["measure", "reference"] = "measure",
) -> PlannedRepeat:
    return PlannedRepeat(
        case_id=placed.case.case_id,
        repeat=repeat,
        role=role,
        reference_id=reference_id,
        device=placed.device,
        threads_per_rank=placed.case.threads_per_rank or threads,
        skip=placed.skip,
        estimated_memory_bytes=min(placed.memory_bytes, 2**63 - 1),  # tables hold int64,
    )


def _model_config(case: Case) -> Any:
    """The family's torch-free configuration: here only its shape is asked for."""
    options = {key: value for key, value in case.model.items() if key != "family"}
    return load("model family", case.model["family"])(**options)
