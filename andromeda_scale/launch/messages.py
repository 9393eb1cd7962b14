"""What agents tell each other through the control store, and the driver through a pipe."""

from __future__ import annotations

from typing import Any, Literal

from andromeda_scale.contracts import parity
from andromeda_scale.contracts.planned import PlannedRepeat
from andromeda_scale.contracts.records import Status
from andromeda_scale.suite.config import Case
from andromeda_scale.suite.schema import Device, Schema


class Hello(Schema):
    """An agent that has arrived."""

    agent: int
    host: str
    num_slots: int  # ranks it can hold
    pid: int


class RankEnvironment(Schema):
    """What a forkserver serves: ranks of one device kind with the same variables."""

    device: Device
    variables: dict[str, str]

    @classmethod
    def of(cls, item: PlannedRepeat, case: Case) -> RankEnvironment:
        return cls(device=item.device, variables=case.env)


class Sweep(Schema):
    """Where agent 0 keeps the run, and a word that only an agent on the same disk can read."""

    run_dir: str
    token: str
    environments: tuple[RankEnvironment, ...]  # to be imported for before the first launch
    collect: tuple[str, ...] = ()  # the collectors of all its cases
    modules: tuple[str, ...]  # what some case needs beyond what all do


class Seat(Schema):
    """The ranks one agent brings to a launch: consecutive in the world and on its host."""

    agent: int
    host: str
    node_rank: int
    first_rank: int
    first_local_rank: int
    num_ranks: int


class Launch(Schema):
    """One repeat to be run now by the agents that have a seat."""

    number: int
    case: Case
    item: PlannedRepeat
    directory: str  # of this attempt, below the run directory
    seats: tuple[Seat, ...]
    reference: parity.First | None = None
    gone: tuple[int, ...] = ()  # agents that fell silent and must leave if they wake up

    def key(self, name: str) -> str:
        """A key of the control store that belongs to this launch alone."""
        return f"{self.item.case_id}/{self.item.repeat}/{self.number}/{name}"


class Abort(Schema):
    """Why a launch must end at once on every node; the first one written counts."""

    reason: Literal["rank", "timeout", "heartbeat", "interrupted", "leaving", "node_failed"]
    cause: str
    agent: int
    host: str | None = None  # of a node that is lost


class RankEnd(Schema):
    """How one rank left, as its agent saw it."""

    rank: int
    host: str
    status: Status | None  # of a complete end line; None: it wrote none
    code: int | None = None  # exit status, negative: the signal; None: it was never started
    ended_by_agent: bool = False  # by the group's end, not by its own
    ended_unix_s: float  # in the order of the node's monotonic clock
    phase: str | None = None
    step: int | None = None  # the last it finished in `phase`
    total_steps: int | None = None
    cause: str | None = None
    odd_ranks: tuple[int, ...] | None = None  # of what all ranks find alike: whose it is
    phases_s: float = 0.0  # sum of its phases' durations
    pid: int | None = None
    stderr_tail: tuple[str, ...] = ()


class NodeEnd(Schema):
    """An agent's part of a launch is over; without a shared disk its files follow in chunks."""

    agent: int
    host: str
    ranks: tuple[RankEnd, ...]
    num_chunks: int = 0
    problem: str | None = None  # why the ranks' files could not be kept


Event = dict[str, Any]
"""Progress, one JSON object a line:

    {"event": "sweep", "total": n, "done": n, "left": {kind: n}}    kinds are time_left.py's
    {"event": "start", "case_id", "repeat", "role", "index"}
    {"event": "beat", "case_id", "repeat", "phase", "step", "total_steps", "tokens_per_s"}
    {"event": "end", "case_id", "repeat", "role", "status", "rank", "host", "cause", "seconds",
        "kind"}
    {"event": "trial", ...}          the same of a launch within a search, which ends later
    {"event": "error", "cause"}      the agent itself failed
"""
