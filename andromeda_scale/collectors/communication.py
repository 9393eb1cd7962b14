"""What communication costs a rank, from the profiler and the flight recorder (phase `profile`)."""

from __future__ import annotations

import os
import socket
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from andromeda_scale.collectors.base import Collector, Context
from andromeda_scale.collectors.charges import Durations, Group, charges
from andromeda_scale.collectors.collectives import kinds, one_by_one, times
from andromeda_scale.collectors.executions import (
    Execution,
    flight_recorder_entries,
    group_ranks,
    join,
    sizes_needed,
)
from andromeda_scale.collectors.intervals import (
    Intervals,
    covers,
    intervals,
    length_within,
    minus,
    union,
)
from andromeda_scale.collectors.trace import Recording, Timeline, TraceError, read_timeline
from andromeda_scale.collectors.witness import Witness
from andromeda_scale.contracts.records import Phase


class Communication(Collector):
    """Total, exposed, waiting and transfer seconds of every step, and bytes by collective.

    Values of `profile`, in seconds, one number per step of this rank, defined in METRICS:
        step_s                 length of the step, and its disjoint classes, which sum to it:
        compute_s              C: operators (CPU), kernels that are no collectives (CUDA)
        exposed_wait_s         W: waiting for a later rank, outside C
        exposed_transfer_s     X: exposed communication that is no waiting
        data_s                 D: the batch, outside C and communication
        host_s                 H: the rest
        comm_total_s, comm_exposed_s, comm_overlapped_s
        optimizer_compute_s    what of compute_s lies in the update
        charged_s              exposed waiting of others for this rank (see charges.py)
        parts                  {forward_s, backward_s, optimizer_s, data_s}: each [seconds]; one
                               that the mode lacks or that is fused with another is absent
    and per kind of collective, as means over the steps,
        collectives: [{op, c10d_op, backend_op, dtype, ranks, scalar, count_per_step,
                       bytes_per_step, wire_bytes_per_step, and per step total_, exposed_,
                       overlapped_, exposed_wait_, transfer_, moving_s_per_step; of the
                       median step moving_s_median, busbw_gbps}]
        last_step: {op, backend_op, group, seq, dtype, bytes, start_s, total_s, exposed_s,
                    overlapped_s, exposed_wait_s, transfer_s, moving_s}: lists, a value a collective
        counted: {tcp_bytes_per_step: received by this rank, as its kernel counted (gloo; null:
                  it does not), loopback_bytes_per_step: of all ranks on rank 0's device, packets'
                  headers included (rank 0, all ranks on one host; or a text: why not)}
    where bytes are S of METRICS and wire bytes count what the backend ran. When the trace cannot
    be trusted the value is {"error": reason} on every rank.

    Build it before the process group: the flight recorder reads its size once.
    """

    phases: frozenset[Phase] = frozenset({"profile"})

    def __init__(self) -> None:
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "32768")  # some 20 steps of collectives

    def start(self, phase: Phase, context: Context) -> None:
        self._context = context
        self._witness = Witness()
        self._failure = ""
        device = "cuda" if context.runtime.device.type == "cuda" else None
        try:
            if context.runtime.backend == "gloo":
                self._witness.start()
            shapes = device is None and sizes_needed(group_ranks())
            self._recording = Recording(device, shapes=shapes)
        except Exception as error:  # to be told to the other ranks, which wait for this one's word
            self._failure = f"cannot record: {error!r}"

    def stop(self, phase: Phase) -> Mapping[str, Any]:
        counted = self._counted()
        try:
            if self._failure:
                raise TraceError(self._failure)
            timeline, executions = self._read()
            mine: Durations | str = _durations(executions)
        except TraceError as error:
            mine = str(error)
        except Exception as error:
            # Another torch writes other traces. The rank must not stay away from the exchange.
            mine = f"unreadable trace: {error!r}"
        everyone = self._context.gather(mine)
        errors = [f"rank {rank}: {x}" for rank, x in enumerate(everyone) if isinstance(x, str)]
        if errors:
            return {"error": "; ".join(errors)}
        try:
            transfers = _transfers(executions, everyone)
        except TraceError as error:  # every rank sees the same tables, so every rank says so
            return {"error": str(error)}
        comm, exposed_wait = _communication(timeline, executions, transfers)
        spent = times(executions, transfers, minus(comm, timeline.compute), exposed_wait)
        waited_for = charges(
            executions, everyone, transfers, exposed_wait, timeline.host, timeline.steps
        )
        charged = sum(
            theirs[self._context.runtime.rank] for theirs in self._context.gather(waited_for)
        )
        num_steps = len(timeline.steps)
        return {
            **_classes(timeline, comm, exposed_wait),
            "charged_s": (charged / 1e9).tolist(),
            "collectives": kinds(executions, spent, timeline.host),
            "last_step": one_by_one(executions, spent, timeline.host[-1]),
            "counted": {
                f"{name}_per_step": x if x is None or isinstance(x, str) else x / num_steps
                for name, x in counted.items()
            },
        }

    def _read(self) -> tuple[Timeline, list[Execution]]:
        """End the profile: the timeline and the collectives issued within a step."""
        events, began_ns = self._recording.stop()
        timeline = read_timeline(events, self._context.strategy.fused)
        groups = group_ranks()
        backend = self._context.runtime.backend
        entries = flight_recorder_entries(backend, began_ns)
        found = join(backend, events, entries, groups)
        executions = _of_steps(found, timeline)
        if not executions and self._must_communicate():
            raise TraceError("no collective in any profiled step of a run of several ranks")
        return timeline, executions

    def _counted(self) -> dict[str, float | str | None]:
        """Bytes of the phase that the kernel counted, before anything else is sent."""
        if self._context.runtime.backend != "gloo":
            return {}
        came = None if self._failure else self._witness.received_bytes()
        hosts = self._context.gather(socket.gethostname())  # when all have come, nobody sends
        if self._failure or self._context.runtime.rank > 0 or len(hosts) == 1:
            return {"tcp_bytes": came}
        if len(set(hosts)) > 1:
            return {"tcp_bytes": came, "loopback_bytes": "the ranks are on several hosts"}
        return {"tcp_bytes": came, "loopback_bytes": self._witness.loopback_bytes()}

    def _must_communicate(self) -> bool:
        """Replicas whose forward alone runs have nothing to say to each other."""
        forward_only = self._context.case.train.mode == "forward"
        return bool(self._context.runtime.world_size > 1 and not forward_only)


def _of_steps(found: list[Execution], timeline: Timeline) -> list[Execution]:
    """What was issued within a step, each up to the end of that step at most.

    A step waits for its collectives. The event of a gloo worker may end later, when the thread that
    trains goes on before the worker is scheduled again; on CUDA a step lasts until its last kernel.
    """
    issued = np.array([e.issued_ns for e in found], np.int64)
    inside = covers(union(timeline.host), issued)
    step = np.searchsorted(timeline.host[:, 0], issued, side="right") - 1
    return [
        replace(e, end_ns=max(e.start_ns, min(e.end_ns, int(timeline.steps[index, 1]))))
        for e, kept, index in zip(found, inside, step.tolist(), strict=True)
        if kept
    ]


def _durations(executions: list[Execution]) -> Durations:
    """What one rank tells the others: how long each of its collectives executed."""
    rows = defaultdict(list)
    for e in executions:
        rows[e.group, e.ranks].append((e.seq, e.end_ns - e.start_ns))
    tables = {group: np.array(sorted(x), np.int64).T for group, x in rows.items()}
    return {group: (table[0], table[1]) for group, table in tables.items()}


def _transfers(executions: list[Execution], everyone: list[Durations]) -> NDArray[np.int64]:
    """transfer[k] of METRICS for each execution: the shortest duration over the group's ranks.

    Raises TraceError where two ranks of any group saw other collectives.
    """
    shortest: dict[Group, dict[int, int]] = {}
    for group in sorted({group for table in everyone for group in table}):
        name, ranks = group
        tables = [everyone[rank].get(group) for rank in ranks]
        first = tables[0]
        if first is None or not all(t and np.array_equal(first[0], t[0]) for t in tables):
            counts = {rank: len(t[0]) if t else 0 for rank, t in zip(ranks, tables, strict=True)}
            raise TraceError(f"ranks saw other collectives in group {name}: count by rank {counts}")
        fastest = np.min([t[1] for t in tables if t], axis=0)
        shortest[group] = dict(zip(first[0].tolist(), fastest.tolist(), strict=True))
    return np.array([shortest[e.group, e.ranks][e.seq] for e in executions], np.int64)


def _communication(
    timeline: Timeline, executions: list[Execution], transfers: NDArray[np.int64]
) -> tuple[Intervals, Intervals]:
    """(when any collective executes, when one waits and nothing computes), as unions."""
    starts = np.array([e.start_ns for e in executions], np.int64)
    ends = np.array([e.end_ns for e in executions], np.int64)
    waiting = union(intervals(starts, ends - transfers))
    return union(intervals(starts, ends)), minus(waiting, timeline.compute)


def _classes(timeline: Timeline, comm: Intervals, exposed_wait: Intervals) -> dict[str, Any]:
    """The disjoint classes of every step, in seconds, from unions alone."""
    compute, steps = timeline.compute, timeline.steps
    data = minus(minus(timeline.data, compute), comm)
    updating = minus(timeline.update, minus(timeline.update, compute))

    total = length_within(comm, steps)
    exposed = length_within(minus(comm, compute), steps)
    values = {
        "step_s": steps[:, 1] - steps[:, 0],
        "compute_s": length_within(compute, steps),
        "optimizer_compute_s": length_within(updating, steps),
        "exposed_wait_s": length_within(exposed_wait, steps),
        "data_s": length_within(data, steps),
        "comm_total_s": total,
        "comm_exposed_s": exposed,
        "comm_overlapped_s": total - exposed,
    }
    values["exposed_transfer_s"] = exposed - values["exposed_wait_s"]
    values["host_s"] = values["step_s"] - values["compute_s"] - exposed - values["data_s"]
    return {
        **{name: (x / 1e9).tolist() for name, x in values.items()},
        "parts": {name: (x / 1e9).tolist() for name, x in timeline.parts.items()},
    }
