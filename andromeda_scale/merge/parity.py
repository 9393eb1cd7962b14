"""Whether a case trains the same model: by its launches, its parity launch, or its peers. No torch.

full      each launch compared itself with the reference; one that differs ended as `diverged`
shallow   the case's parity launch did, on a model of two layers; what it found is the case's
cross     the launches of cases that would share a reference are compared here: those that differ
          from what most cases agree on are `diverged`, and all of them where no majority agrees
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from andromeda_scale import parity
from andromeda_scale.config import Case
from andromeda_scale.merge.ranks import integer, number
from andromeda_scale.planned import PlannedRepeat
from andromeda_scale.records import RankRecord, RepeatRecord

if TYPE_CHECKING:
    from andromeda_scale.merge.repeats import MergedRepeat

Row = dict[str, Any]

REPEAT_COLUMNS = {
    "parity_steps": "Int64",  # whose losses were compared; empty: not said
    "parity_norm_steps": "Int64",  # of these, whose gradient norms were
    "parity_skipped": "str",  # steps that fp16's scaler skipped, which compare no update
}
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
    if case.parity == "cross":
        return found | _verdict(pooled, "nothing to compare with")
    if item.parity_id is not None:
        launch = [helper] if helper.get("status") == "ok" else [{}]
        return found | _verdict(launch, f"the parity launch {_ending(helper)}")
    if item.reference_id is None:
        return found | {"parity": "reference"}
    silent = ", ".join(str(row["repeat"]) for row in pooled if not _steps(row))
    why = f"repeat {silent} compared no losses: the reference {_ending(helper)}"
    return found | _verdict(pooled, why)


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


def cross(group: Mapping[str, Sequence[MergedRepeat]], cases: Mapping[str, Case]) -> None:
    """Compare the launches of cases that would share a reference, in place.

    Each case has one vote, its first ok launch. Launches that are not what most cases agree on
    lose their numbers; where no majority agrees all do. A case alone compares nothing.
    """
    launches = {
        case_id: [one for one in merged if one.row["status"] == "ok" and one.first is not None]
        for case_id, merged in group.items()
    }
    votes = {case_id: found[0].first for case_id, found in launches.items() if found}
    if len(votes) < 2:
        return
    agreeing = {
        one: [
            other for other in votes if _mismatch(votes[other], votes[one], cases[one], one) is None
        ]
        for one in votes
    }
    right = max(votes, key=lambda case_id: len(agreeing[case_id]))
    count = f"{len(agreeing[right])} of {len(votes)} cases agree"
    majority = 2 * len(agreeing[right]) > len(votes)
    for case_id in votes:
        # Without a majority the one that most agree with is as wrong as the others.
        judge = right if majority or case_id != right else _other(right, agreeing)
        peers = [other for other in agreeing[right] if other != case_id] if majority else [judge]
        for one in launches[case_id]:
            assert one.first is not None
            one.row |= _differences(one.first, [votes[peer] for peer in peers])
            mismatch = _mismatch(one.first, votes[judge], cases[case_id], judge)
            if mismatch is not None or not majority:
                one.condemn(f"{mismatch or 'first losses'}; {count}")


def _other(right: str, agreeing: Mapping[str, Sequence[str]]) -> str:
    """A case that does not agree with `right`."""
    return next(case_id for case_id in agreeing if case_id not in agreeing[right])


def _mismatch(
    one: parity.First | None, other: parity.First | None, case: Case, whose: str
) -> parity.Mismatch | None:
    assert one is not None
    found = parity.compare(
        one,
        other,
        case.train.precision,
        world_size=case.world.size,
        grad_accum=case.train.grad_accum,
    )
    return None if found is None else replace(found, whose=f"that of {whose},")


def _differences(one: parity.First, peers: Sequence[parity.First | None]) -> Row:
    pairs = [
        (
            parity.largest_difference(one.losses, peer.losses),
            parity.largest_difference(one.norms, peer.norms),
        )
        for peer in peers
        if peer is not None
    ]
    losses, norms = ([d for d in column if d is not None] for column in zip(*pairs, strict=True))
    return {
        "parity_steps": len(one.losses),
        "parity_norm_steps": len(one.norms),
        "parity_skipped": ", ".join(map(str, parity.skipped_steps(one.norms))),
        "parity_loss_difference": max(losses, default=None),
        "parity_norm_difference": max(norms, default=None),
    }
