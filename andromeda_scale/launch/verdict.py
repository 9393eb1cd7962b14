"""How a repeat ended: which of many deaths was the first, and its cause. Pure functions."""

from __future__ import annotations

import re
import signal
from collections.abc import Collection
from typing import Any, get_args

from andromeda_scale.contracts.records import Phase, Status
from andromeda_scale.launch.messages import Abort, NodeEnd, RankEnd
from andromeda_scale.suite.schema import Schema

# What a rank says when another one left: it suffers from the cause, it is not the cause.
_PEER_LEFT = re.compile(
    r"connection (was )?(closed|reset|refused|aborted)|broken pipe|socket ?timeout|"
    r"failed to recv|failed to send|recvbytes failed|sendbytes failed|read error|"
    r"ncclRemoteError|ncclSystemError|remote process exited|communicator was aborted|"
    r"connectfullmesh failed|closing connection|timed out waiting|wait timeout|"
    r"application timeout caused pair closure|DistNetworkError",
    re.IGNORECASE,
)
# Functions of torch, DeepSpeed and Accelerate in which a rank may wait for the others.
_WAITING = re.compile(
    r'File ".*/(torch|deepspeed|accelerate)/.*", line \d+ in \w*(all_reduce|allreduce|all_gather|'
    r"reduce_scatter|all_to_all|broadcast|barrier|wait|backward|synchronize|step|"
    r"init_process_group|new_process_group)"
)
_PHASES: tuple[Phase, ...] = get_args(Phase)  # in the order in which a rank comes to them
_MAX_NAMED = 8  # ranks named in one cause


class Verdict(Schema):
    """The end of a repeat in one row: status, and who and what caused it."""

    status: Status
    rank: int | None = None
    host: str | None = None
    phase: str | None = None
    cause: str | None = None
    stderr_tail: tuple[str, ...] = ()


def judge(nodes: Collection[NodeEnd], abort: Abort | None, world_size: int) -> Verdict:
    """The verdict on a repeat from what every agent saw.

    A lost node, a node that could not keep its ranks' files, and the user's interrupt explain
    every death after them. Out of memory outranks the others, because ranks that see a peer vanish
    often say so first. Then the first death that is no complaint about a peer; then lateness; then
    the first complaint. The first is of the agent whose abort came first to the store, and there by
    time: clocks of two hosts may differ.
    """
    first = abort.agent if abort is not None else None
    ends = [(node.agent != first, r.ended_unix_s, r) for node in nodes for r in node.ranks]
    ranks = [r for *_, r in sorted(ends, key=lambda end: end[:2])]
    if abort is not None and abort.reason in ("interrupted", "node_failed"):
        status: Status = "interrupted" if abort.reason == "interrupted" else "node_failed"
        return Verdict(status=status, host=abort.host, cause=abort.cause)
    if unkept := [node for node in nodes if node.problem]:
        return Verdict(status="node_failed", host=unkept[0].host, cause=unkept[0].problem)
    failed = [r for r in ranks if r.status != "ok" and not r.ended_by_agent]
    for end in failed:
        if end.status == "oom":
            return _blame(end, ranks)
    if abort is not None and abort.reason in ("timeout", "heartbeat"):
        return _late(ranks, abort)
    for end in failed:
        if not is_peer_error(end):
            return _blame(end, ranks)
    if failed:
        return _blame(failed[0], ranks)
    missing = set(range(world_size)) - {r.rank for r in ranks if r.status == "ok"}
    if missing:
        cause = f"no complete end record of rank {_named(missing)}"
        return Verdict(status="crashed", rank=min(missing), cause=cause)
    return Verdict(status="ok")


def is_peer_error(end: RankEnd) -> bool:
    """Whether a rank's last words are only that another rank left."""
    killed = end.code is not None and end.code < 0
    return end.status == "crashed" and not killed and bool(_PEER_LEFT.search(end.cause or ""))


def killed_by_kernel(end: RankEnd) -> RankEnd:
    """The same end where the kernel has killed for want of memory meanwhile: an unexplained
    SIGKILL is that."""
    if end.code != -signal.SIGKILL or end.status is not None or end.ended_by_agent:
        return end
    cause = "killed by the kernel's out-of-memory killer"
    return end.model_copy(update={"status": "oom", "cause": cause})


def signal_name(code: int) -> str:
    """SIGSEGV for an exit code of -11."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _blame(end: RankEnd, ranks: Collection[RankEnd]) -> Verdict:
    """By its own end, or by what all ranks found alike, whichever of them left first."""
    status = end.status if end.status not in (None, "ok") else "crashed"
    cause = end.cause
    if end.status is None:
        if end.code is None:
            cause = "its forkserver ended"
        elif end.code < 0:
            cause = f"killed by {signal_name(end.code)}"
        else:
            last = f": {end.stderr_tail[-1]}" if end.stderr_tail and end.code else ""
            cause = f"left with exit status {end.code} and no end record{last}"
    who: RankEnd | None = end
    if end.odd_ranks is not None:
        odd = [other for other in ranks if other.rank in end.odd_ranks]
        who = odd[0] if len(end.odd_ranks) == 1 and odd else None
    return Verdict(
        status=status or "crashed",
        rank=who.rank if who else None,
        host=who.host if who else None,
        phase=end.phase,
        cause=cause,
        stderr_tail=end.stderr_tail,
    )


def _late(ranks: list[RankEnd], abort: Abort) -> Verdict:
    """A timeout, naming the ranks that had come least far: the others waited for them.

    Where several had, the one is blamed whose stack alone shows no wait for others; else none is.
    """
    unfinished = [r for r in ranks if r.status is None] or ranks
    if not unfinished:
        return Verdict(status="timeout", cause=abort.cause)
    least = min(_progress(r) for r in unfinished)
    late = sorted((r for r in unfinished if _progress(r) == least), key=lambda r: r.rank)
    first = late[0]
    culprit = first if len(late) == 1 else _alone_not_waiting(late)
    where = f"after step {first.step} of {first.total_steps} in {first.phase}"
    where = where if first.phase else "before it said anything"
    who = f"rank {_named({r.rank for r in late})} {'was' if len(late) == 1 else 'were'} late"
    if culprit is not None and len(late) > 1:
        who = f"rank {culprit.rank} was late: it alone waited for no other"
    return Verdict(
        status="timeout",
        rank=culprit.rank if culprit else None,
        host=culprit.host if culprit else None,
        phase=first.phase,
        cause=f"{abort.cause}; {who}, {where}",
        stderr_tail=(culprit or first).stderr_tail,
    )


def _alone_not_waiting(ranks: list[RankEnd]) -> RankEnd | None:
    """The one rank whose stack shows no wait for others while the stacks of all others do."""
    idle = [r for r in ranks if not any(map(_WAITING.search, r.stderr_tail))]
    shown = len(idle) == 1 and any("most recent call first" in x for x in idle[0].stderr_tail)
    return idle[0] if shown else None


def _progress(end: RankEnd) -> tuple[int, int]:
    phase = _PHASES.index(end.phase) if end.phase in _PHASES else -1
    return phase, end.step or 0


def _named(ranks: Collection[int]) -> str:
    names = [str(r) for r in sorted(ranks)]
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def rank_summary(end: RankEnd) -> dict[str, Any]:
    """What status.json says of one rank."""
    return end.model_dump(include={"host", "status", "code", "phase", "step", "ended_unix_s"})
