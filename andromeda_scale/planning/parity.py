"""What a plan launches for parity alone: references and first steps on shallow models. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from andromeda_scale.contracts.references import (
    NoShallowForm,
    is_own_reference,
    reference_of,
    shallow_of,
)
from andromeda_scale.errors import UserError
from andromeda_scale.hardware.machine import Machine
from andromeda_scale.planning.fits import Placed, fit
from andromeda_scale.suite.config import Case
from andromeda_scale.suite.validation import Where, place


@dataclass
class ForParity:
    """Launches by case_id, each once for all cases that share it, and which case needs which."""

    references: dict[str, Placed] = field(default_factory=dict)
    launches: dict[str, Placed] = field(default_factory=dict)
    reference_ids: dict[str, str] = field(default_factory=dict)  # of cases and of launches
    launch_ids: dict[str, str] = field(default_factory=dict)  # of cases
    notes: list[str] = field(default_factory=list)


def for_parity(running: Sequence[Placed], machine: Machine, where: Where) -> ForParity:
    """What the cases that run need; what does not fit is skipped like a case.

    The reference's own program needs none, and `parity: cross` compares what is measured anyway.
    Raises UserError for a shallow model that cannot be had.
    """
    made = ForParity()
    for placed in running:
        case = placed.case
        if is_own_reference(case) or case.parity in ("off", "cross"):
            continue
        if case.parity == "shallow":
            shallow = _shallow(placed, where)
            made.launch_ids[case.case_id] = case_id = shallow.case_id
            if case_id in made.launches:
                continue
            placed = made.launches[case_id] = fit(shallow, machine)
        reference = reference_of(placed.case, placed.device)
        made.reference_ids[placed.case.case_id] = reference.case_id
        if reference.case_id not in made.references:
            made.references[reference.case_id] = fit(reference, machine)
    made.notes += _without_reference(running, made)
    return made


def _shallow(placed: Placed, where: Where) -> Case:
    try:
        return shallow_of(placed.case, placed.device)
    except NoShallowForm as error:
        raise UserError(
            f"parity: shallow is not to be had: {error} ({place(where, 'parity')}); "
            "use parity: cross"
        ) from error


def _without_reference(running: Sequence[Placed], made: ForParity) -> list[str]:
    """A note for each reason why a whole model's reference cannot run here."""
    needed_by: dict[str, int] = {}
    for placed in running:
        reference = made.references.get(made.reference_ids.get(placed.case.case_id, ""))
        if placed.case.parity == "full" and reference is not None and reference.skip:
            reason = reference.skip.partition(" (")[0]  # what else would fit is no reference
            needed_by[reason] = needed_by.get(reason, 0) + 1
    return [
        f"parity of {count} case{'s' * (count > 1)} will be unavailable: the single-process "
        f"reference {reason}; parity: shallow would check {'them' if count > 1 else 'it'}"
        for reason, count in needed_by.items()
    ]
