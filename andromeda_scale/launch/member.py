"""One agent's part in a sweep: its ranks of each launch, from the fork to its node file."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from andromeda_scale.contracts.planned import RankSpec
from andromeda_scale.launch.control import Control
from andromeda_scale.launch.forkservers import Forkservers
from andromeda_scale.launch.local_files import CompileCaches, make_directory, remove_stale
from andromeda_scale.launch.messages import (
    Abort,
    Launch,
    NodeEnd,
    RankEnd,
    RankEnvironment,
    Seat,
    Sweep,
)
from andromeda_scale.launch.node_files import NodeSamplers, pack, write_node_file
from andromeda_scale.launch.process import StopRequest, kernel_oom_kills
from andromeda_scale.launch.ranks import RankGroup
from andromeda_scale.launch.verdict import killed_by_kernel

GRACE_S = 0.5  # for ranks that are failing too to write their end line, or where they stand
_STUCK_S = 30.0  # after which a process that SIGKILL does not end is left to the kernel
IMPORTS_S = 300.0  # the longest a forkserver may import
_SHOWN_S = 2.0  # within which a network file system shows what another node has made
_TICK_S = 0.1  # rare enough that watching costs the ranks nothing


class Member:
    """Runs this agent's seat of one launch at a time; `tick` drives everything."""

    def __init__(self, control: Control, forkservers: Forkservers, caches: CompileCaches) -> None:
        self.control = control
        self.caches = caches
        self._forkservers = forkservers
        self._samplers = NodeSamplers()
        self._run: _Run | None = None
        self._collect: tuple[str, ...] = ()
        self.shared_dir: Path | None = None  # the run directory, where this agent sees it
        remove_stale()

    def use(self, sweep: Sweep) -> None:
        """Start what a sweep needs; it imports meanwhile."""
        self.caches.token = sweep.token
        self._forkservers.modules = sweep.modules
        self._collect = sweep.collect
        self.warm_up(sweep.environments)

    def before_ranks(self) -> None:
        """Imports are done and no rank exists: the moment to see the node at rest."""
        self._samplers.before_ranks(self._collect)

    def warm_up(self, environments: Iterable[RankEnvironment]) -> None:
        """Start the forkservers of these environments, and collect this node's meanwhile."""
        for wanted in environments:
            self._forkservers.get(wanted)
        self._samplers.environment()

    def wait_for_imports(self, stop: StopRequest, limit_s: float) -> None:
        """Let imports finish, so that no repeat's time contains them."""
        deadline = time.monotonic() + limit_s
        while self._forkservers.still_importing(_TICK_S):
            self.control.say_alive()
            if stop.requested or time.monotonic() > deadline:
                return

    def begin(self, launch: Launch, seat: Seat) -> None:
        """Start this agent's ranks of a launch."""
        server = self._forkservers.get(RankEnvironment.of(launch.item, launch.case))
        if self.shared_dir is not None and not _appears(self.shared_dir / launch.directory):
            self._leave_shared_dir("is gone from this node")
        shared = self.shared_dir is not None
        directory = self.shared_dir / launch.directory if self.shared_dir else make_directory()
        cache = self.caches.of_case(launch.case.case_id) if launch.case.train.compile else None
        specs = rank_specs(launch, seat, directory, self.control, cache)
        group = RankGroup(server, specs)
        first_of_host = seat.first_local_rank == 0
        self._samplers.start(launch.case.collect if first_of_host else ())
        self._run = _Run(launch, seat, directory, group, shared)
        group.start()

    def _leave_shared_dir(self, why: str) -> None:
        if self.shared_dir is not None:
            print(f"{self.shared_dir}: {why}; files go through agent 0", file=sys.stderr)
        self.shared_dir = None

    @property
    def run(self) -> _Run | None:
        return self._run

    def abort(self, reason: _Reason, cause: str) -> None:
        """End the current launch on every node, unless another reason came first."""
        if self._run is not None:
            control = self.control
            message = Abort(reason=reason, cause=cause, agent=control.agent, host=control.node)
            self.control.set_first(self._run.launch.key("abort"), message)

    def end_ranks(self) -> None:
        """Kill what runs here, and what it started: nobody is left to tell."""
        if self._run is not None:
            self._run.group.kill()

    def tick(self) -> None:
        """Watch the ranks for one moment; after their end, write the node file and say so."""
        self.control.say_alive()
        run = self._run
        if run is None:
            time.sleep(_TICK_S / 4)
            return
        run.group.poll(_TICK_S)
        if run.abort is None:
            self._look_for_failure(run)
        else:
            run.enforce()
        if not run.group.alive:
            self._close(run)

    def _look_for_failure(self, run: _Run) -> None:
        limit_s = run.launch.case.limits.heartbeat_s
        if failed := run.group.failed:
            self.abort("rank", f"rank {failed[0].spec.rank} left first")
        elif late := run.group.silent(limit_s):
            self.abort("heartbeat", f"rank {late[0].spec.rank} was silent for {limit_s:g} s")
        run.abort = self.control.get(run.launch.key("abort"), Abort)
        run.abort_s = time.monotonic()

    def _close(self, run: _Run) -> None:
        """The ranks are gone: gather their lines, give the files to agent 0, report."""
        agent, item = self.control.agent, run.launch.item
        node_line = None
        if run.seat.first_local_rank == 0:
            node_line = self._samplers.stop(item.case_id, item.repeat)
        ends = tuple(run.rank_ends(self.control.node))
        end = NodeEnd(agent=agent, host=self.control.node, ranks=ends)
        try:
            records = [rank.record for rank in run.group.ranks]
            write_node_file(run.directory, agent, records, node_line)
            if not run.shared:
                chunks = self.control.push(run.launch.key(f"files/{agent}"), pack(run.directory))
                end = end.model_copy(update={"num_chunks": chunks})
                shutil.rmtree(run.directory, ignore_errors=True)
        except OSError as error:
            if agent == 0:  # it writes the run: without its directory there is none
                raise
            self._leave_shared_dir("cannot be written from this node")
            problem = f"{self.control.node} cannot write the run directory: {error}"
            end = end.model_copy(update={"problem": problem})
        self.control.set(run.launch.key(f"end/{agent}"), end)
        self._run = None


_Reason = Literal["rank", "timeout", "heartbeat", "interrupted", "leaving", "node_failed"]


class _Run:
    """A launch while this agent's ranks run."""

    def __init__(
        self, launch: Launch, seat: Seat, directory: Path, group: RankGroup, shared: bool
    ) -> None:
        self.launch, self.seat, self.directory, self.group = launch, seat, directory, group
        self.shared = shared  # agent 0 sees the directory too
        self.abort: Abort | None = None
        self.abort_s = 0.0
        self._oom_kills = kernel_oom_kills()

    def enforce(self) -> None:
        """End the group: a moment to speak, then SIGKILL."""
        assert self.abort is not None
        waited_s = time.monotonic() - self.abort_s
        if self.abort.reason in ("timeout", "heartbeat"):
            self.group.ask_where()
        if waited_s > GRACE_S:
            self.group.kill()
        if waited_s > GRACE_S + _STUCK_S:
            for rank in self.group.alive:
                rank.left(None)

    def rank_ends(self, host: str) -> list[RankEnd]:
        zero_unix_s = time.time() - time.monotonic()  # once: a step of the clock changes no order
        ends = [rank.end(host, zero_unix_s) for rank in self.group.ranks]
        return (
            ends if kernel_oom_kills() == self._oom_kills else [killed_by_kernel(e) for e in ends]
        )


def rank_specs(
    launch: Launch, seat: Seat, directory: Path, control: Control, cache: Path | None
) -> list[RankSpec]:
    """What the worker of each rank of a seat needs to know."""
    return [
        RankSpec(
            case=launch.case,
            item=launch.item,
            rank=seat.first_rank + i,
            world_size=launch.case.world.size,
            local_rank=seat.first_local_rank + i,
            node_rank=seat.node_rank,
            store_host=control.host,
            store_port=control.port,
            store_prefix=launch.key("group"),
            record_path=str(directory / f"rank-{seat.first_rank + i}.jsonl"),
            reference=launch.reference,
            compile_cache=str(cache) if cache is not None else None,
        )
        for i in range(seat.num_ranks)
    ]


def sees_same_disk(sweep: Sweep) -> Path | None:
    """The run directory, if this agent finds agent 0's token in it."""
    token = Path(sweep.run_dir) / "token"

    def told() -> bool:
        try:
            return token.read_text() == sweep.token
        except OSError:
            return False

    return Path(sweep.run_dir) if _patiently(told) else None


def _appears(directory: Path) -> bool:
    """Whether a directory that agent 0 has made is seen here."""
    return _patiently(directory.is_dir)


def _patiently(seen: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _SHOWN_S
    while not seen():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def follow(member: Member, stop: StopRequest) -> None:
    """An agent other than agent 0: take part in every launch that has a seat for it, to the end."""
    control = member.control
    sweep = None
    while sweep is None:
        member.tick()
        if control.said("over"):
            control.say(f"bye/{control.agent}")
            return
        sweep = control.get("sweep", Sweep)
    member.use(sweep)
    member.shared_dir = sees_same_disk(sweep)
    member.wait_for_imports(stop, IMPORTS_S)
    member.before_ranks()
    control.say(f"warm/{control.agent}")
    number, told = 0, False
    while True:
        member.tick()
        if stop.requested and not told:
            told = True
            control.say(f"leaving/{control.agent}")
            member.abort("leaving", f"the agent on {control.node} was told to stop")
        if member.run is not None:
            continue
        if told or control.said("over"):
            control.say(f"bye/{control.agent}")
            return
        launch = control.get(f"next/{number}", Launch)
        if launch is None:
            continue
        number += 1
        if control.agent in launch.gone:
            print("agent 0 had given this agent up; it leaves", file=sys.stderr)
            return
        seat = next((s for s in launch.seats if s.agent == control.agent), None)
        if seat is not None:
            member.begin(launch, seat)
