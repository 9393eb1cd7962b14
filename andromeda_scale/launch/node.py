"""An agent's life: find its place, prepare a forkserver, join the others, take part, leave."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from andromeda_scale.errors import UserError
from andromeda_scale.hardware import environment
from andromeda_scale.hardware.machine import detect_machine
from andromeda_scale.launch import anew, gather, placement
from andromeda_scale.launch.control import Control
from andromeda_scale.launch.coordinator import Coordinator, environments, say_over
from andromeda_scale.launch.disk import full_disk, is_full
from andromeda_scale.launch.forkservers import Forkservers
from andromeda_scale.launch.local_files import CompileCaches
from andromeda_scale.launch.member import Member, follow
from andromeda_scale.launch.messages import Event, Hello
from andromeda_scale.launch.preload import modules_of
from andromeda_scale.launch.process import StopRequest
from andromeda_scale.launch.progress import make_display
from andromeda_scale.launch.rendezvous import connect, find_place, wait_for_agents
from andromeda_scale.launch.run_dir import RunDir, fresh
from andromeda_scale.planning.plan import make_plan, require_runnable
from andromeda_scale.planning.suite_file import Loaded, read_suite

INTERRUPTED = 130


def serve_driver(arguments: Namespace) -> int:
    """The only agent of a sweep that `andromeda-scale run` drives; the driver holds the lock."""
    stop = StopRequest()
    run_dir = RunDir.open(arguments.run_dir)
    items = [run_dir.plan.repeats[index] for index in json.load(sys.stdin)]
    emit = _event_writer(arguments.events)
    caches = CompileCaches(num_agents=1)
    forkservers = Forkservers(os.environ, arguments.worker, arguments.slots)
    try:
        forkservers.modules = modules_of(run_dir.plan.cases.values())
        for wanted in environments(run_dir.plan, items):  # they import while torch loads here
            forkservers.get(wanted)
        control = connect(find_place({}), stop)
        member = Member(control, forkservers, caches)
        agents = _gather(control, arguments.slots, stop)
        coordinator = Coordinator(run_dir, member, agents, emit, stop)
        return 0 if coordinator.sweep(items) else INTERRUPTED
    except OSError as error:
        if is_full(error):  # the agent's log lies on the same disk
            emit({"event": "error", "cause": full_disk(run_dir.path, error)})
        raise
    finally:
        forkservers.close()
        caches.close()


def serve_launcher(arguments: Namespace) -> int:
    """One agent of those an outer launcher started; agent 0 plays the driver too."""
    place = find_place(os.environ)
    stop = StopRequest(watch_parent=place.count > 1)
    caches = CompileCaches(place.count)
    forkservers = Forkservers(os.environ, arguments.worker, arguments.slots)
    try:
        control = connect(place, stop)
        control.silence_s = arguments.node_silence_s or control.silence_s
        member = Member(control, forkservers, caches)
        if place.index == 0:
            return _lead(arguments, member, stop)
        return _follow(arguments, member, stop)
    finally:
        forkservers.close()
        caches.close()


def _follow(arguments: Namespace, member: Member, stop: StopRequest) -> int:
    from torch.distributed import DistError

    control = member.control
    try:
        _say_hello(control, arguments.slots)
        follow(member, stop)
    except DistError:
        how = "answers no more" if control.unanswered else "closed the connection"
        who = f"agent {control.agent} on {control.node}"
        print(f"{who}: agent 0 on {control.host} {how}; this agent ends", file=sys.stderr)
        member.end_ranks()
        if arguments.requeue:
            anew.requeue(control, stop)
        return 1
    return INTERRUPTED if stop.requested else 0


def _lead(arguments: Namespace, member: Member, stop: StopRequest) -> int:
    try:
        loaded = read_suite(arguments.suite, arguments.sets, arguments.axes)
        return _lead_sweep(arguments, loaded, member, stop)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:  # the others need not guess whether this node was lost
        if not member.control.said("over"):
            member.abort("interrupted", "agent 0 failed")
            say_over(member.control, set(range(1, member.control.num_agents)))


def _lead_sweep(arguments: Namespace, loaded: Loaded, member: Member, stop: StopRequest) -> int:
    agents = _gather(member.control, arguments.slots, stop)
    machine = replace(detect_machine(), nodes=len(placement.hosts(agents)))
    if arguments.gather:
        machine = replace(machine, nodes=max(world.nodes for world in loaded.suite.world))
    plan = make_plan(loaded.suite, loaded.name, machine, loaded.where)
    path = Path(arguments.run_dir) if arguments.run_dir else fresh(loaded.name)
    if arguments.array:
        plan, path = gather.one_case(plan, path, os.environ)
    else:
        require_runnable(plan, loaded.where)
    found = environment.fingerprint(environment.collect())
    run_dir = RunDir.create(path, plan, loaded.text, found, allow_mixed=arguments.allow_mixed)
    if arguments.gather:
        gather.gather(run_dir)
        return _finish(run_dir.path, arguments.quiet)
    display = make_display(quiet=arguments.quiet)
    with run_dir.lock():
        run_dir.recover()
        run_dir.settle()
        items = run_dir.todo(only_failed=arguments.only_failed)
        coordinator = Coordinator(run_dir, member, agents, display.show, stop)
        try:
            complete = coordinator.sweep(items, run_dir.after_searches)
        except OSError as error:
            if is_full(error):
                raise OSError(full_disk(run_dir.path, error)) from None
            raise
        finally:
            display.close()
    code = _finish(run_dir.path, arguments.quiet)
    return code if complete else INTERRUPTED


def _finish(run_dir: Path, quiet: bool) -> int:
    # The table is the command line's to make; like the worker, it is named by string.
    code: int = import_module("andromeda_scale.cli").finish(run_dir, quiet)
    return code


def serve(arguments: Namespace) -> int:
    return serve_driver(arguments) if arguments.driver is not None else serve_launcher(arguments)


def _say_hello(control: Control, num_slots: int) -> Hello:
    hello = Hello(agent=control.agent, host=control.node, num_slots=num_slots, pid=os.getpid())
    control.set(f"hello/{control.agent}", hello)
    return hello


def _gather(control: Control, num_slots: int, stop: StopRequest) -> list[Hello]:
    """Say hello as agent 0 and wait for the others'. Raises UserError naming who is missing."""
    _say_hello(control, num_slots)
    missing = wait_for_agents(control, "hello", stop)
    if missing and not stop.requested:
        raise UserError(
            f"{len(missing)} of {control.num_agents} agents did not arrive (first: agent "
            f"{missing[0]}); is the same command running on every node?"
        )
    hellos = (control.get(f"hello/{i}", Hello) for i in range(control.num_agents))
    return [hello for hello in hellos if hello is not None]


def _event_writer(fd: int) -> Callable[[Event], None]:
    """Events for the driver, one JSON line each."""
    pipe = open(fd, "w", encoding="utf-8", buffering=1)

    def emit(event: Event) -> None:
        print(json.dumps(event), file=pipe)

    return emit
