"""What a plan says of a micro batch before it is found, and what becomes of it then. No torch.

Each case finds its own, and all its repeats have it. Under `auto_worlds` cases that differ by their
world alone have the smallest that one of them found.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from andromeda_scale.contracts.planned import Plan, PlannedRepeat
from andromeda_scale.hardware.machine import Machine
from andromeda_scale.planning.fits import PROCESS, Placed, capacity, estimate_memory
from andromeda_scale.planning.parity import ForParity, for_parity
from andromeda_scale.suite import micro_batch
from andromeda_scale.suite.config import Case
from andromeda_scale.suite.micro_batch import MARGIN
from andromeda_scale.suite.schema import Device
from andromeda_scale.suite.world import World


@dataclass(frozen=True)
class Found:
    """How the search for a case's micro batch ended."""

    size: int | None  # None: no size runs
    why: str = ""  # of None


def guessed(placed: Placed, machine: Machine) -> Placed:
    """A case that finds its micro batch, at the largest for which closed forms leave the margin."""
    case, device = placed.case, placed.device
    if case.auto is None or placed.skip or placed.memory_bytes is None:
        return placed
    room = (1 - MARGIN) * capacity(case, device, machine) - PROCESS[device]

    def with_size(size: int) -> Case:
        return micro_batch.at_size(case, size).model_copy(update={"auto": case.auto})

    def fits(size: int) -> bool:
        estimate = estimate_memory(with_size(size), device)
        return estimate is not None and estimate.total <= room

    case = with_size(micro_batch.largest(micro_batch.sizes(case), fits))
    return replace(placed, case=case, memory_bytes=_bytes(case, device))


def search_note(running: Sequence[Placed]) -> str:
    """What a plan with searches cannot know yet, and what they cost."""
    searching = [placed.case for placed in running if placed.case.auto]
    text = (
        "micro_batch_size: auto is found before the first repeat, by a few launches a case of "
        f"{micro_batch.TRIAL_STEPS} steps each, until the largest is known that leaves "
        f"{MARGIN:.0%} of memory free; the batches and bytes of these cases are a guess by closed "
        "forms"
    )
    weak = {case.regime for case in searching} == {"weak"}
    if weak and len(searching) > 1:
        text += (
            "; every case finds its own, and rows of other batches are not compared (auto_worlds "
            "gives the worlds of a row one; scaling.strong gives all rows the same work)"
        )
    return text


def settle(plan: Plan, found: Mapping[str, Found]) -> Plan:
    """The plan with the sizes that searches found, by the searches' ids; their references too.

    Unchanged until every search has ended. A case for which no size runs is skipped, with the
    reason.
    """
    searches = {item.case_id: item for item in plan.repeats if item.role == "search"}
    if not searches or plan.machine is None or not set(searches) <= set(found):
        return plan
    found = _shared({key: plan.cases[key] for key in searches}, found)
    placed = {key: _placed(plan.cases[key], item, found[key]) for key, item in searches.items()}
    running = [one for one in placed.values() if one.skip is None]
    parity = for_parity(running, plan.machine, where=f"suite {plan.suite_name}")
    measured: dict[tuple[str, int], PlannedRepeat] = {}
    for item in plan.repeats:
        if item.role == "measure":
            at = item if item.search_id is None else _at(item, placed[item.search_id], parity)
            known = measured.setdefault((at.case_id, at.repeat), at)
            if known.search_id is not None:  # a size that was asked for too stays as it was asked
                measured[at.case_id, at.repeat] = at
    last = sorted(measured.values(), key=lambda item: item.skip is not None)
    repeats = (*_helpers(plan, parity, last), *searches.values(), *last)
    return plan.model_copy(
        update={
            "cases": _cases(plan, placed, parity, {item.case_id for item in repeats}),
            "repeats": repeats,
            "notes": tuple(dict.fromkeys([*plan.notes, *parity.notes])),
        }
    )


def _shared(cases: Mapping[str, Case], found: Mapping[str, Found]) -> dict[str, Found]:
    """What was found, under `auto_worlds` the smallest of all worlds."""
    groups: dict[str, list[str]] = {}
    for key, case in cases.items():
        if case.auto == "auto_worlds" and found[key].size is not None:
            alike = case.model_copy(update={"world": World()})
            groups.setdefault(alike.case_id, []).append(key)
    shared = {key: found[key] for key in cases}
    for keys in groups.values():
        smallest = min((found[key] for key in keys), key=lambda one: one.size or 0)
        shared |= dict.fromkeys(keys, smallest)
    return shared


def _placed(case: Case, item: PlannedRepeat, found: Found) -> Placed:
    """A case at the size that its search found, or at the smallest and skipped."""
    sizes, skip = micro_batch.sizes(case), found.why or None
    if found.size is not None and found.size not in sizes:
        skip = f"its search for a micro batch found {found.size}, which it cannot have"
    case = micro_batch.at_size(case, sizes[0] if skip or found.size is None else found.size)
    return Placed(case, item.device, skip, _bytes(case, item.device))


def _bytes(case: Case, device: Device) -> int | None:
    estimate = estimate_memory(case, device)
    return None if estimate is None else min(estimate.total, 2**63 - 1)


def _at(item: PlannedRepeat, placed: Placed, parity: ForParity) -> PlannedRepeat:
    case_id = placed.case.case_id
    return item.model_copy(
        update={
            "case_id": case_id,
            "reference_id": parity.reference_ids.get(case_id),
            "parity_id": parity.launch_ids.get(case_id),
            "estimated_memory_bytes": placed.memory_bytes,
            "skip": placed.skip,
        }
    )


def _helpers(
    plan: Plan, parity: ForParity, measured: Sequence[PlannedRepeat]
) -> list[PlannedRepeat]:
    """References, then parity launches, that these cases need: the plan's own, and new ones."""
    like = next(item for item in plan.repeats if item.role == "search")
    helpers = {item.case_id: item for item in plan.repeats if item.role in ("reference", "parity")}
    for role, of_role in (("reference", parity.references), ("parity", parity.launches)):
        for case_id, one in of_role.items():
            fields = {
                "case_id": case_id,
                "role": role,
                "reference_id": parity.reference_ids.get(case_id),
                "device": one.device,
                "threads_per_rank": one.case.threads_per_rank or like.threads_per_rank,
                "skip": one.skip,
                "estimated_memory_bytes": _bytes(one.case, one.device),
            }
            helpers.setdefault(case_id, like.model_copy(update=fields))
    launches = [helpers[key] for key in dict.fromkeys(i.parity_id for i in measured) if key]
    needed = dict.fromkeys(i.reference_id for i in (*launches, *measured))
    return [*(helpers[key] for key in needed if key), *launches]


def _cases(
    plan: Plan, placed: Mapping[str, Placed], parity: ForParity, used: Collection[str]
) -> dict[str, Case]:
    """The cases in the suite's order, a found one where the search for it stood."""
    helpers = {**parity.references, **parity.launches}
    cases = {case_id: one.case for case_id, one in helpers.items()}
    for case_id, case in plan.cases.items():
        case = placed[case_id].case if case_id in placed else case
        cases[case.case_id] = case
    cases |= {case_id: plan.cases[case_id] for case_id in placed}
    return {case_id: case for case_id, case in cases.items() if case_id in used}
