"""Whether a case trains the same model: by its launches, its parity launch, or its peers. No torch.

full      each launch compared itself with the reference; one that differs ended as `diverged`
shallow   the case's parity launch did, on a model of two layers; what it found is the case's
cross     `cross.py` compares the launches of cases that would share a reference
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from andromeda_scale.contracts import parity
from andromeda_scale.contracts.planned import PlannedRepeat
from andromeda_scale.contracts.records import RankRecord, RepeatRecord
from andromeda_scale.contracts.references import is_own_reference
from andromeda_scale.merge.values import integer, number, text
from andromeda_scale.suite.config import Case

Row = dict[str, Any]

REPEAT_COLUMNS = {
    "parity_steps": "Int64",  # whose losses were compared; empty: not said
    "parity_norm_steps": "Int64",  # of these, whose gradient norms were
    "parity_rounding": "str",  # the precision whose tolerance counts
    "parity_skipped": "str",  # steps that fp16's scaler skipped, which compare no update
}
_ALL_STEPS = ("warmup_steps", "num_steps")
CASE_COLUMNS = {
    "parity": "str",  # ok: every pooled launch was compared; diverged, unavailable, off;
    # reference: the case is the reference's own program; empty without a launch
    "parity_kind": "str",  # full, shallow, cross or off: what was asked
    "parity_cause": "str",  # why it is unavailable or diverged, or which steps say less
    **REPEAT_COLUMNS,
}


def of_rank_0(record: RankRecord) -> Row:
    """What rank 0, which knows it for all, says of its first steps against the reference's."""
    last = record.values("measure", "parity") or record.values("warmup", "parity")
    skipped = last.get("skipped_steps")
    return {
        "parity_steps": integer(last, "steps_compared"),
        "parity_norm_steps": integer(last, "norms_compared"),
        "parity_rounding": text(last, "rounding"),
        "parity_skipped": ", ".join(map(str, skipped)) if isinstance(skipped, list) else "",
        "parity_loss_difference": number(last, "loss_difference"),
        "parity_norm_difference": number(last, "norm_difference"),
    }


def first_of(record: RepeatRecord) -> parity.First | None:
    """First losses and norms of all ranks; None if the record does not hold them."""
    phases = ("warmup", "measure")
    values = [
        [r.phases.get(p, {}).get("values", {}) for p in phases] for r in record.ranks.values()
    ]
    try:
        return parity.first(values)
    except ValueError:
        return None


def case_parity(
    case: Case, item: PlannedRepeat, rows: Sequence[Row], pooled: Sequence[Row], helper: Row
) -> Row:
    """The columns of a case. `helper` is how its reference or parity launch ended: `status`,
    `cause`, and of a parity launch what it compared."""
    found: Row = {"parity_kind": case.parity}
    diverged = [row for row in rows if row["status"] == "diverged"]
    if case.parity == "off":
        return found | {"parity": "off"}
    if not pooled:
        cause = {"parity": "diverged", "parity_cause": _cause(diverged[0])} if diverged else {}
        return found | _worst(diverged) | cause
    if case.parity == "cross" and is_own_reference(case) and not any(map(_steps, pooled)):
        return found | {"parity": "reference"}  # nobody disagrees, and it is what others must show
    if case.parity == "cross":
        return found | _verdict(pooled, _alone(pooled))
    if item.parity_id is not None:
        launch = [helper] if helper.get("status") == "ok" else [{}]
        return found | _verdict(launch, f"the parity launch {_ending(helper)}")
    if item.reference_id is None:
        return found | {"parity": "reference"}
    silent = ", ".join(str(row["repeat"]) for row in pooled if not _steps(row))
    why = f"repeat {silent} compared no losses: the reference {_ending(helper)}"
    return found | _verdict(pooled, why)


def _alone(pooled: Sequence[Row]) -> str:
    """Why a case was compared with no other."""
    steps = min(sum(row.get(name) or 0 for name in _ALL_STEPS) for row in pooled)
    if steps >= parity.PARITY_STEPS:
        return "nothing to compare with"
    return (
        f"its {steps} steps are fewer than the {parity.PARITY_STEPS} that are compared; raise "
        "measure.steps or measure.warmup.min_steps"
    )


def _steps(row: Row) -> int:
    """Steps whose losses a launch compared."""
    return max(row.get("parity_steps") or 0, 0)


def _verdict(launches: Sequence[Row], otherwise: str) -> Row:
    """`ok` if each launch compared something, `unavailable` with the reason if one did not."""
    if not all(map(_steps, launches)):
        return {"parity": "unavailable", "parity_cause": otherwise}
    found = _worst(launches)
    skipped = found["parity_skipped"]
    if not skipped:
        return found | {"parity": "ok"}
    nothing = len(skipped.split(", ")) >= found["parity_steps"]
    cause = f"fp16's scaler skipped step {skipped}: nothing of their update was compared"
    return found | {"parity": "unavailable" if nothing else "ok", "parity_cause": cause}


def _worst(launches: Sequence[Row]) -> Row:
    """The largest differences of any launch, over the fewest steps of any."""
    if not launches:
        return {}
    found: Row = {}
    for name in ("parity_steps", "parity_norm_steps"):
        found[name] = min(row.get(name) or 0 for row in launches)
    for name in ("parity_loss_difference", "parity_norm_difference"):
        values = [float(row[name]) for row in launches if row.get(name) is not None]
        found[name] = max((value for value in values if math.isfinite(value)), default=None)
    found["parity_skipped"] = max((row.get("parity_skipped") or "" for row in launches), key=len)
    return found


def _cause(row: Row) -> str:
    return " ".join(str(row.get("cause") or "").split())


def _ending(helper: Row) -> str:
    """How a reference or parity launch ended, in words."""
    if not helper.get("status"):
        return "did not finish"
    cause = _cause(helper)
    return f"is {helper['status']}{f': {cause}' if cause else ''}"
