"""Agent 0: publishes the plan's repeats one by one, and writes how each ended."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from andromeda_scale.contracts.planned import Plan, PlannedRepeat
from andromeda_scale.contracts.records import SCHEMA_VERSION
from andromeda_scale.launch import searching
from andromeda_scale.launch.control import Control, Silence
from andromeda_scale.launch.disk import write_atomic
from andromeda_scale.launch.forkservers import MAX_FORKSERVERS
from andromeda_scale.launch.member import IMPORTS_S, Member
from andromeda_scale.launch.messages import (
    Abort,
    Event,
    Hello,
    Launch,
    NodeEnd,
    RankEnvironment,
    Seat,
    Sweep,
)
from andromeda_scale.launch.node_files import unpack
from andromeda_scale.launch.parity import foregone, reference_of
from andromeda_scale.launch.placement import place
from andromeda_scale.launch.preload import modules_of
from andromeda_scale.launch.process import StopRequest
from andromeda_scale.launch.rendezvous import wait_for_agents
from andromeda_scale.launch.run_dir import RunDir
from andromeda_scale.launch.time_left import kind
from andromeda_scale.launch.verdict import Verdict, judge, rank_summary
from andromeda_scale.suite import micro_batch
from andromeda_scale.suite.config import Case

_BEAT_PERIOD_S = 0.2
_FAREWELL_S = 5.0
_TOGETHER_S = 3.0  # within which all agents of a job that is stopped are told


class Coordinator:
    """Runs a sweep over the agents that said hello."""

    def __init__(
        self,
        run_dir: RunDir,
        member: Member,
        agents: list[Hello],
        emit: Callable[[Event], None],
        stop: StopRequest,
    ) -> None:
        self._run_dir, self._member, self._agents = run_dir, member, agents
        self._control = member.control
        self._emit, self._stop = emit, stop
        self._silence = Silence(self._control)
        self._gone: set[int] = set()
        self._number = 0
        self._next_beat_s = 0.0
        self._beat_window: tuple[str, int, float] | None = None

    def sweep(
        self, items: list[PlannedRepeat], then: Callable[[], list[PlannedRepeat]] = list
    ) -> bool:
        """Run the items in order, then what follows from them, until nothing does.

        False if it was interrupted before the last ended.
        """
        self._open(items)
        complete = True
        while items and complete:
            complete = self._round(items)
            items = then() if complete else []
        say_over(self._control, self._others())
        return complete

    def _round(self, items: list[PlannedRepeat]) -> bool:
        total, interrupted = len(self._run_dir.plan.repeats), False
        if any(item.role == "search" for item in items):  # how much follows is not known yet
            total = len(items)
        cases = self._run_dir.plan.cases
        left = Counter(kind(i, cases[i.case_id]) for i in items if i.skip is None)
        self._emit({"event": "sweep", "total": total, "done": total - len(items), "left": left})
        for index, item in enumerate(items):
            case = self._run_dir.plan.cases[item.case_id]
            if item.skip is None:
                self._member.warm_up([RankEnvironment.of(item, case)])
                self._member.wait_for_imports(self._stop, IMPORTS_S)
            if interrupted := self._stop.requested:
                break
            self._emit({"event": "start", **_name(item), "index": total - len(items) + index})
            one = self._search if item.role == "search" else self._one
            if one(item, case).status == "interrupted":
                interrupted = True
                break
        return not interrupted

    def _open(self, items: list[PlannedRepeat]) -> None:
        """Say where the run is, and let every agent import before the first clock starts."""
        sweep = Sweep(
            run_dir=str(self._run_dir.path),
            token=secrets.token_hex(16),
            environments=environments(self._run_dir.plan, items),
            collect=_collected(self._run_dir.plan, items),
            modules=modules_of(self._run_dir.plan.cases.values()),
        )
        self._member.shared_dir = self._run_dir.path
        write_atomic(self._run_dir.path / "token", sweep.token)
        self._control.set("sweep", sweep)
        self._member.use(sweep)
        self._member.wait_for_imports(self._stop, IMPORTS_S)
        self._member.before_ranks()
        wait_for_agents(self._control, "warm", self._stop, IMPORTS_S)

    def _search(self, item: PlannedRepeat, case: Case) -> Verdict:
        """The trials of one search, then what it found."""
        verdict, started_s, clock_s = None, time.time(), time.monotonic()
        searching.begin(self._run_dir, item)
        while verdict is None:
            trial = searching.next_trial(self._run_dir, item, case)
            if trial is None:
                verdict = searching.outcome(self._run_dir, item, case)
                break
            at_size = micro_batch.at_size(case, trial.repeat).model_copy(update={"faults": ()})
            ended = self._one(trial, at_size)
            if searching.is_doubtful(ended):
                ended = self._one(trial, at_size)
            verdict = searching.ends(ended)
        status = _status(item, verdict, [], started_s, time.monotonic() - clock_s)
        status |= searching.summary(self._run_dir, item, case)
        self._run_dir.finish(item, self._run_dir.begin(item, self._number), status)
        self._say_ended(item, status)
        return verdict

    def _one(self, item: PlannedRepeat, case: Case) -> Verdict:
        """One repeat from its publication to status.json."""
        started_s, clock_s = time.time(), time.monotonic()
        self._gone |= {a for a in self._others() if self._control.said(f"leaving/{a}")}
        attempt = self._run_dir.begin(item, self._number)
        seats = item.skip or place(case.world, self._agents, self._gone)
        ends: list[NodeEnd] = []
        known = foregone(self._run_dir, item)
        if isinstance(seats, str):
            verdict = Verdict(status="skipped", cause=seats)
        elif known is not None:
            verdict = known
        else:
            verdict, ends = self._launch(item, case, attempt, seats)
        status = _status(item, verdict, ends, started_s, time.monotonic() - clock_s)
        self._run_dir.finish(item, attempt, status)
        self._say_ended(item, status)
        return verdict

    def _say_ended(self, item: PlannedRepeat, status: dict[str, Any]) -> None:
        event = "trial" if item.role == "trial" else "end"
        keys = ("status", "rank", "host", "cause", "seconds")
        of_kind = kind(item, self._run_dir.plan.cases[item.case_id])
        named = {**_name(item), "kind": of_kind}
        self._emit({"event": event, **named, **{k: status[k] for k in keys}})

    def _launch(
        self, item: PlannedRepeat, case: Case, attempt: Path, seats: tuple[Seat, ...]
    ) -> tuple[Verdict, list[NodeEnd]]:
        launch = Launch(
            number=self._number,
            case=case,
            item=item,
            directory=str(attempt.relative_to(self._run_dir.path)),
            seats=seats,
            reference=reference_of(self._run_dir, item),
            gone=tuple(sorted(self._gone)),
        )
        self._number += 1
        self._control.set(f"next/{launch.number}", launch)
        self._member.begin(launch, seats[0])
        published_s = time.monotonic()
        ends: dict[int, NodeEnd] = {}
        lost: Abort | None = None
        while waiting := {seat.agent for seat in seats} - self._gone - ends.keys():
            self._member.tick()
            self._emit_beat(item, case)
            self._enforce_limits(case, published_s)
            lost = self._look_for_lost_nodes(waiting, seats) or lost
            for agent in waiting - self._gone:
                end = self._control.get(launch.key(f"end/{agent}"), NodeEnd)
                if end is not None:
                    ends[agent] = end
        for end in ends.values():
            if end.num_chunks:
                files = self._control.pull(launch.key(f"files/{end.agent}"), end.num_chunks)
                unpack(files, attempt)
        abort = lost or self._control.get(launch.key("abort"), Abort)
        if abort is not None and abort.reason == "leaving":
            abort = self._without(abort)
        return judge(ends.values(), abort, case.world.size), list(ends.values())

    def _enforce_limits(self, case: Case, published_s: float) -> None:
        limit_s = case.limits.timeout_s
        if self._stop.requested:
            self._member.abort("interrupted", "told to stop")
        elif self._member.run is not None:
            if time.monotonic() - published_s > limit_s:
                self._member.abort("timeout", f"not finished after {limit_s:g} s")

    def _others(self) -> set[int]:
        return {hello.agent for hello in self._agents} - {0} - self._gone

    def _without(self, abort: Abort) -> Abort:
        """What it means that an agent was told to stop: the whole job is, or its node is lost."""
        deadline = time.monotonic() + _TOGETHER_S
        while not self._stop.requested and time.monotonic() < deadline:
            time.sleep(0.02)
        if self._stop.requested:
            return abort.model_copy(update={"reason": "interrupted"})
        self._gone.add(abort.agent)
        return abort.model_copy(update={"reason": "node_failed"})

    def _look_for_lost_nodes(self, waiting: set[int], seats: tuple[Seat, ...]) -> Abort | None:
        agent, silent_s = self._silence.longest(waiting - {0})
        if silent_s <= self._control.silence_s:
            return None
        self._gone.add(agent)
        host = next(seat.host for seat in seats if seat.agent == agent)
        cause = f"agent {agent} on {host} fell silent"
        self._member.abort("node_failed", cause)
        return Abort(reason="node_failed", cause=cause, agent=agent, host=host)

    def _emit_beat(self, item: PlannedRepeat, case: Case) -> None:
        """Say how far the slowest rank of this node is, a few times a second."""
        now = time.monotonic()
        run = self._member.run
        if run is None or now < self._next_beat_s:
            return
        self._next_beat_s = now + _BEAT_PERIOD_S
        beats = [rank.last_beat for rank in run.group.ranks if rank.last_beat]
        if not beats:
            return
        beat = min(beats, key=lambda b: b.time_s)
        window = self._beat_window
        if window is None or window[0] != beat.phase or beat.step < window[1]:
            window = self._beat_window = (beat.phase, beat.step, beat.time_s)
        seconds = beat.time_s - window[2]
        tokens = (beat.step - window[1]) * case.global_batch_size * case.train.seq_len
        tokens = 0 if item.role == "probe" else tokens
        self._emit(
            {
                "event": "beat",
                **_name(item),
                "phase": beat.phase,
                "step": beat.step,
                "total_steps": beat.total_steps,
                "tokens_per_s": tokens / seconds if seconds > 0 else None,
            }
        )


def say_over(control: Control, others: set[int]) -> None:
    """Say that the sweep is over, and stay until the others know: the store dies with agent 0."""
    control.say("over")
    deadline = time.monotonic() + _FAREWELL_S
    while others and time.monotonic() < deadline:
        others = {a for a in others if not control.said(f"bye/{a}")}
        time.sleep(0.02)


def environments(plan: Plan, items: Iterable[PlannedRepeat]) -> tuple[RankEnvironment, ...]:
    """The first few kinds of ranks that these items need, in their order."""
    needed: list[RankEnvironment] = []
    for item in items:
        wanted = RankEnvironment.of(item, plan.cases[item.case_id])
        if item.skip is None and wanted not in needed:
            needed.append(wanted)
    return tuple(needed[:MAX_FORKSERVERS])


def _collected(plan: Plan, items: Iterable[PlannedRepeat]) -> tuple[str, ...]:
    """The collectors of what will be launched, each once; of a search's case in the end too."""
    cases = [plan.cases[item.case_id] for item in items if item.skip is None]
    return tuple(dict.fromkeys(name for case in cases for name in case.collect))


def _name(item: PlannedRepeat) -> dict[str, Any]:
    return item.model_dump(include={"case_id", "repeat", "role"})


def _status(
    item: PlannedRepeat, verdict: Verdict, ends: list[NodeEnd], started_s: float, seconds: float
) -> dict[str, Any]:
    """The content of status.json; `seconds` are monotonic, the stamps are the wall clock's."""
    ranks = sorted((r for end in ends for r in end.ranks), key=lambda r: r.rank)
    longest_s = max((r.phases_s for r in ranks), default=0.0)
    return {
        "v": SCHEMA_VERSION,
        "case_id": item.case_id,
        "repeat": item.repeat,
        "role": item.role,
        **verdict.model_dump(mode="json"),
        "started_unix_s": started_s,
        "ended_unix_s": time.time(),
        "seconds": seconds,
        "outside_s": seconds - longest_s,
        "ranks": {str(r.rank): rank_summary(r) for r in ranks},
    }
