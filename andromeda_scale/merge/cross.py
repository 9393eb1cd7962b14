"""Cases without a reference, compared with each other: `parity: cross`. No torch.

Cases that would share one full reference see the same global batches from the same weights. Those
that differ from what most of them agree on are `diverged`; all are where no majority agrees, as of
two that differ nobody knows which is right. A case alone is compared with nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from andromeda_scale.contracts import parity
from andromeda_scale.merge.repeats import MergedRepeat
from andromeda_scale.suite.config import Case

Votes = dict[str, MergedRepeat]  # a case's first ok launch, by case_id


def compare(group: Mapping[str, Sequence[MergedRepeat]], cases: Mapping[str, Case]) -> None:
    """Compare the launches of a group's cases, in place: a `diverged` one loses its numbers."""
    launches = {
        case_id: [one for one in merged if one.row["status"] == "ok" and one.first is not None]
        for case_id, merged in group.items()
    }
    votes = {case_id: found[0] for case_id, found in launches.items() if found}
    if len(votes) < 2:
        return
    agreeing = {one: _agreeing(one, votes, cases) for one in votes}
    right = max(votes, key=lambda case_id: len(agreeing[case_id]))
    majority = 2 * len(agreeing[right]) > len(votes)
    count = f"{len(agreeing[right])} of {len(votes)} cases agree"
    for case_id in votes:
        peers = [other for other in agreeing[right] if other != case_id]
        if not majority:  # the one that most agree with is as doubtful as the others
            differs = (other for other in votes if other not in agreeing[right])
            peers = [next(differs) if case_id == right else right]
        for one in launches[case_id]:
            one.row |= _differences(one, [votes[peer] for peer in peers])
            judge = right if majority else peers[0]
            mismatch = _mismatch(one, votes[judge], cases[case_id], judge)
            if mismatch is not None or not majority:
                one.condemn(f"{mismatch or f'alike only with {judge}'}; {count}")


def _agreeing(case_id: str, votes: Votes, cases: Mapping[str, Case]) -> list[str]:
    """The cases whose vote is this one's, itself among them."""
    return [
        other
        for other, vote in votes.items()
        if _mismatch(vote, votes[case_id], cases[other], case_id) is None
    ]


def _mismatch(
    one: MergedRepeat, other: MergedRepeat, case: Case, whose: str
) -> parity.Mismatch | None:
    assert one.first is not None
    found = parity.compare(
        one.first,
        other.first,
        case.train.precision,
        judged_as=_rounding(case, one, other),
        world_size=case.world.size,
        grad_accum=case.train.grad_accum,
    )
    return None if found is None else replace(found, whose=f"that of {whose},")


def _rounding(case: Case, *launches: MergedRepeat) -> str:
    words = (launch.row.get("parity_rounding") or "" for launch in launches)
    return parity.coarsest(case.train.precision, *words)


def _differences(one: MergedRepeat, peers: Sequence[MergedRepeat]) -> dict[str, Any]:
    """The columns of a launch's parity, its differences being the largest to any peer."""
    assert one.first is not None
    losses, norms = [], []
    for peer in peers:
        assert peer.first is not None
        losses.append(parity.largest_difference(one.first.losses, peer.first.losses))
        norms.append(parity.largest_difference(one.first.norms, peer.first.norms))
    return {
        "parity_steps": len(one.first.losses),
        "parity_norm_steps": len(one.first.norms),
        "parity_skipped": ", ".join(map(str, parity.skipped_steps(one.first.norms))),
        "parity_loss_difference": max((d for d in losses if d is not None), default=None),
        "parity_norm_difference": max((d for d in norms if d is not None), default=None),
    }
