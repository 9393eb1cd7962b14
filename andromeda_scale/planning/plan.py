"""Suite -> plan: which cases run here, why the others do not, and in which order. No torch.

Stated rules
    devices    `auto` takes CUDA where a node has a GPU for each of the case's ranks. A machine
               with fewer GPUs skips the case, or runs it on CPU under `fallback: cpu`.
    cores      more CPU ranks than cores measure the scheduler: skipped, unless the suite sets
               threads_per_rank and so says that sharing is meant.
    threads    cores / the most ranks any case puts on a node, equal at every size.
    memory     a case whose estimate exceeds a rank's capacity is skipped with both numbers.
    searches   a micro batch that is to be found is, before anything else is launched; the rest of
               the plan is then made anew with the sizes found (search.py).
    order      parity references first, then parity launches; then each repeat runs every case
               once, in an order shuffled by (seed, repeat): randomised blocks, so neither the
               position in the sweep nor the neighbour before is a confounder.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

from andromeda_scale.contracts.planned import Plan, PlannedRepeat
from andromeda_scale.data import batches as data
from andromeda_scale.errors import UserError
from andromeda_scale.hardware.machine import Machine, detect_machine
from andromeda_scale.planning.expand import Point, expand, strategy_skip, unknown_collectors
from andromeda_scale.planning.fits import Placed, fit
from andromeda_scale.planning.parity import ForParity, for_parity
from andromeda_scale.planning.search import guessed, search_note
from andromeda_scale.registry import model_config
from andromeda_scale.suite.config import Case, Suite
from andromeda_scale.suite.validation import Where, place

__all__ = ["Machine", "detect_machine", "make_plan", "require_runnable"]

MAX_LAUNCHES = 100_000  # seconds each: a longer plan would never end


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
    notes += _check_models(points, where)
    _check_data(points, where)
    placed = [guessed(fit(point.case, machine, point.skip), machine) for point in points]
    running = [p for p in placed if p.skip is None]
    largest = max((p.case.world.ranks_per_node for p in running), default=1)
    threads = max(1, machine.cpu_cores // largest)
    if suite.threads_per_rank is None:
        counts = f"{threads} thread{'s' * (threads > 1)} per rank"
        ranks = f"{largest} rank{'s' * (largest > 1)}"
        notes.append(f"{counts} at every size: cores / {ranks}")
    notes.append("each repeat runs every case once, in an order shuffled by seed and repeat")
    known = [p for p in running if p.case.auto is None]
    if len(known) < len(running):
        notes.append(search_note(running))
        for_parity(running, machine, where)  # what cannot be had is refused before a search
    parity = for_parity(known, machine, where)
    helpers = [*parity.references.values(), *parity.launches.values()]
    cases = {p.case.case_id: p.case for p in [*helpers, *placed]}
    return Plan(
        suite_name=suite_name,
        question=suite.question,
        cases=cases,
        repeats=tuple(_rows(suite, placed, parity, threads)),
        notes=(*notes, *parity.notes),
        problems=unknown_collectors(suite, where),
        machine=machine if len(known) < len(running) else None,
    )


def _rows(
    suite: Suite, placed: Sequence[Placed], parity: ForParity, threads: int
) -> Iterator[PlannedRepeat]:
    """The launches in their order, then what is skipped."""

    def row(one: Placed, repeat: int = 0, **fields: Any) -> PlannedRepeat:
        case = one.case
        return PlannedRepeat(
            case_id=case.case_id,
            repeat=repeat,
            reference_id=parity.reference_ids.get(case.case_id),
            device=one.device,
            threads_per_rank=case.threads_per_rank or threads,
            skip=one.skip,
            # Tables hold int64.
            estimated_memory_bytes=one.memory_bytes and min(one.memory_bytes, 2**63 - 1),
            **fields,
        )

    yield from (row(one, role="reference") for one in parity.references.values())
    yield from (row(one, role="parity") for one in parity.launches.values())
    running = [one for one in placed if one.skip is None]
    yield from (row(one, role="search") for one in running if one.case.auto)
    for repeat in range(suite.measure.repeats):
        block = running.copy()
        random.Random(f"{suite.seed}/{repeat}").shuffle(block)
        for one in block:
            case_id = one.case.case_id
            search_id = case_id if one.case.auto else None
            parity_id = parity.launch_ids.get(case_id)
            yield row(one, repeat, parity_id=parity_id, search_id=search_id)
    yield from (row(one) for one in placed if one.skip is not None)


def require_runnable(plan: Plan, where: Where | None = None) -> None:
    """Raise UserError for a plan that would launch nothing, with the reason to mend first.

    That is one of the machine's before one of the suite's own, and of those the smallest world's.
    """
    if any(item.skip is None for item in plan.repeats):
        return
    skipped = [(plan.cases[item.case_id], str(item.skip)) for item in plan.repeats]
    case, reason = min(skipped, key=lambda s: (_blamed(*s) in _THE_SUITES_OWN, s[0].world.size))
    none = f"none of {len(plan.cases)} cases can run here, `andromeda-scale plan` shows why"
    if refused := _REFUSAL.fullmatch(reason):
        at = place(where or f"suite {plan.suite_name}", refused["key"])
        raise UserError(
            f"{refused['key']}: {refused['problem']} ({at}); {refused['remedy']} ({none})"
        )
    key = _blamed(case, reason)
    value, remedy = {
        "device": (case.device, "use device: cpu, or fallback: cpu"),
        "strategy": (case.strategy.name, "use world: 1, or another strategy"),
        "scaling.strong.global_batch_size": ("", "use a multiple"),
    }.get(key, (str(case.world), "change world, device, fallback or limits"))
    raise UserError(
        f"{key}: {value}{' ' * bool(value)}cannot run: {reason} "
        f"({place(where or f'suite {plan.suite_name}', key)}); {remedy} "
        f"({none})"
    )


# What a model, a strategy or a driver says that it refuses.
_REFUSAL = re.compile(r"(?P<key>[a-z_]+(\.[a-z_]+)*): (?P<problem>.*); (?P<remedy>[^;]*)")
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


def _check_models(points: Sequence[Point], where: Where) -> list[str]:
    """Refuse models that cannot be built with what is installed here, each looked at once; what
    is to be said of the others."""
    models = {json.dumps(p.case.model, sort_keys=True): p.case for p in points}
    configs = [model_config(case.model) for case in models.values()]
    for config in configs:
        if wrong := config.wrong_here():
            problem, _, remedy = wrong.partition("; ")
            raise UserError(f"model.{problem} ({place(where, 'model')}); {remedy}")
    notes: list[str] = []
    for case, config in zip(models.values(), configs, strict=True):
        if missing := config.missing():
            notes.append(f"here model family {case.model['family']} {missing}")
        if remark := config.remark():
            notes.append(remark)
    return list(dict.fromkeys(notes))


def _check_data(points: Sequence[Point], where: Where) -> None:
    """Refuse data that some case cannot read, before anything starts."""
    checked = set()
    for case in (point.case for point in points if point.skip is None):
        vocab_size = model_config(case.model).vocab_size
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
