"""The profiler's events of one rank, cut into steps, compute, data and parts.

Host events come from the thread that trains, device events from all streams. Times are
nanoseconds of one clock per rank; nothing here compares clocks of two ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from andromeda_scale.collectors.intervals import Intervals, intervals, minus, union

STEP = "andromeda::step"
DATA = "andromeda::data"
UPDATE = "andromeda::update"
# Range of the worker -> name of the part in METRICS.
PARTS = {
    "andromeda::forward": "forward_s",
    "andromeda::backward": "backward_s",
    UPDATE: "optimizer_s",
    DATA: "data_s",
}

# Work of the CPU. Inductor's own kernels are no operators: the call of their graph stands for them.
_COMPUTE = ("aten::", "fsdp::", "## Call CompiledFxGraph")
# Calls of the CUDA runtime and driver: each shares its correlation id with what it launched.
_RUNTIME = ("cu", "hip")
# Operators that issue or await a collective; a DTensor's aten:: operator may hold one inside.
_COMMUNICATE = ("c10d::", "_c10d_functional::", "c10d_functional::")


_HOST, _DEVICE, _SHADOW = range(3)


class TraceError(ValueError):
    """The trace does not hold what a number needs; the message says what is missing."""


class Events:
    """The profiler's events as columns; `raw[i]` is the event itself."""

    def __init__(self, raw: Sequence[Any], *, device: bool) -> None:
        self.raw = raw
        table: dict[str, int] = {}  # some 200 names for 100,000 events: test each name once
        codes = [table.setdefault(event.name(), len(table)) for event in raw]
        self._code = np.array(codes, np.int64)
        self._names = list(table)
        starts = np.array([event.start_ns() for event in raw], np.int64)
        durations = np.array([event.duration_ns() for event in raw], np.int64)
        self.spans: Intervals = intervals(starts, starts + durations)
        self._place = self._places() if device else np.full(len(raw), _HOST)

    def launch_times(self, kernels: NDArray[np.int64]) -> NDArray[np.int64]:
        """When the host called for each of `kernels`; the start of one whose call is not known."""
        called, raw = self._called, self.raw
        found = kernels.tolist()
        times = [called.get(raw[i].correlation_id(), int(self.spans[i, 0])) for i in found]
        return np.array(times, np.int64)

    @cached_property
    def _called(self) -> dict[int, int]:
        """Correlation id of each call of the runtime -> its start."""
        calls = self.find(lambda name: name.startswith(_RUNTIME))
        starts = self.spans[calls, 0].tolist()
        ids = [self.raw[i].correlation_id() for i in calls.tolist()]
        return dict(zip(ids, starts, strict=True))

    def _places(self) -> NDArray[np.int64]:
        """Host or device by name, which is quick; ranges have shadows and are asked one by one."""
        _, first = np.unique(self._code, return_index=True)
        ranges = [self.raw[i].is_user_annotation() for i in first.tolist()]
        places = np.array([_place(self.raw[i]) for i in first.tolist()], np.int64)[self._code]
        for i in np.flatnonzero(np.array(ranges, np.bool_)[self._code]).tolist():
            places[i] = _place(self.raw[i])
        return places

    def name(self, index: int) -> str:
        return self._names[int(self._code[index])]

    def thread(self, index: int) -> int:
        return int(self.raw[index].start_thread_id())

    def find(self, test: Callable[[str], bool], *, device: bool = False) -> NDArray[np.int64]:
        """Indices of host (or device) events whose name passes `test`, by time of their start."""
        passed = np.array([test(name) for name in self._names], np.bool_)
        if not len(passed):
            return np.empty(0, np.int64)
        found = np.flatnonzero(passed[self._code] & (self._place == (_DEVICE if device else _HOST)))
        return found[np.argsort(self.spans[found, 0], kind="stable")]


class Recording:
    """A profile from now until `stop`. On a device ("cuda") the host shows ranges and calls alone.

    Not torch.profiler: nothing but Kineto's own list of events is wanted.
    """

    def __init__(self, device: str | None, *, shapes: bool = False) -> None:
        from torch._C._autograd import _enable_profiler, _prepare_profiler
        from torch._C._profiler import RecordScope
        from torch.autograd.profiler import profile

        self._on_device = device is not None
        self._profile = profile(use_kineto=True, use_device=device, record_shapes=shapes)
        if not self._on_device:
            self._profile.__enter__()
            return
        # Operators would cost as much again. The stub of the call lacks its third argument.
        config = self._profile.config()
        activities = self._profile.kineto_activities
        _prepare_profiler(config, activities)
        _enable_profiler(config, activities, {RecordScope.USER_SCOPE})  # type: ignore[call-arg]

    def stop(self) -> tuple[Events, int]:
        """(the events, when recording began in nanoseconds)."""
        self._profile.__exit__(None, None, None)
        result = self._profile.kineto_results
        assert result is not None
        del self._profile
        return Events(result.events(), device=self._on_device), result.trace_start_ns()


def _place(event: Any) -> int:
    """Where an event ran. A range's shadow on the device spans kernels and is none."""
    from torch._C._autograd import DeviceType

    if event.device_type() == DeviceType.CPU:
        return _HOST
    return _SHADOW if event.is_user_annotation() else _DEVICE


@dataclass(frozen=True)
class Timeline:
    """One rank's profiled steps: `host` as the worker issued them, `steps` as they executed.

    On a CPU a step lasts until the next begins, as for the clock of timed steps. On a device it
    lasts until the last kernel it launched.
    `compute`, `data` and `update` are unions; `parts` holds nanoseconds per step by METRICS' names.
    """

    host: Intervals
    steps: Intervals
    compute: Intervals
    data: Intervals
    update: Intervals
    parts: dict[str, NDArray[np.int64]]


def is_collective_kernel(name: str) -> bool:
    """Whether a device kernel is NCCL's: ncclKernel_*, ncclDevKernel_*, ncclSymk*."""
    return name.startswith("nccl")


def read_timeline(events: Events, fused: Collection[str] = ()) -> Timeline:
    """Steps, compute, data and parts of a profiled phase.

    A part that no step had, or that the strategy cannot time apart (`fused`, by the worker's
    names), is absent. Raises TraceError where no step is marked.
    """
    steps_at = events.find(lambda name: name == STEP)
    if not len(steps_at):
        raise TraceError(f"the profiler saw no {STEP!r} range")
    ranges_at = events.find(lambda name: name in PARTS)
    names = [PARTS[events.name(i)] for i in ranges_at.tolist()]
    host, ranges = events.spans[steps_at], events.spans[ranges_at]

    kernels_at = events.find(lambda name: True, device=True)
    if len(kernels_at):
        launched, kernels, compute = _device_work(events, kernels_at)
        steps = device_windows(host, launched, kernels)
        parts = device_windows(ranges, launched, kernels)
    else:
        steps, parts = intervals(host[:, 0], np.append(host[1:, 0], host[-1, 1])), ranges
        compute = _cpu_work(events, thread=events.thread(int(steps_at[0])))

    step_of = np.searchsorted(host[:, 0], ranges[:, 0], side="right") - 1
    apart = set(names) - {PARTS[f"andromeda::{part}"] for part in fused}
    lengths = {name: np.zeros(len(host), np.int64) for name in PARTS.values() if name in apart}
    for name, step, (start, end) in zip(names, step_of, parts, strict=True):
        if step >= 0 and name in apart:
            lengths[name][step] += end - start
    is_data, is_update = (
        np.array([name == PARTS[part] for name in names], np.bool_) for part in (DATA, UPDATE)
    )
    data, update = union(ranges[is_data]), union(parts[is_update])
    return Timeline(host, steps, compute, data, update, lengths)


def _cpu_work(events: Events, thread: int) -> Intervals:
    """Operators of the training thread without the time inside collective operators.

    Autograd's own events wrap hooks that block, so they do not count as work.
    """

    def here(prefixes: tuple[str, ...]) -> Intervals:
        found = events.find(lambda name: name.startswith(prefixes))
        mine = [i for i in found.tolist() if events.thread(i) == thread]
        return union(events.spans[mine])

    return minus(here(_COMPUTE), here(_COMMUNICATE))


def _device_work(
    events: Events, kernels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Intervals, Intervals]:
    """(launch time of each kernel, span of each kernel, union of those that compute)."""
    compute = [i for i in kernels.tolist() if not is_collective_kernel(events.name(i))]
    return events.launch_times(kernels), events.spans[kernels], union(events.spans[compute])


def device_windows(host: Intervals, launched: NDArray[np.int64], kernels: Intervals) -> Intervals:
    """When what was issued in each host range executed: ranges in order, as disjoint windows.

    A window ends with the last kernel launched in its range (or with the range itself, if that
    is later) and starts where the window before it ended, but not before its range.
    """
    if not len(host):
        return host
    ends = host[:, 1].copy()
    index = np.searchsorted(host[:, 0], launched, side="right") - 1
    inside = (index >= 0) & (launched < host[index, 1])
    np.maximum.at(ends, index[inside], kernels[inside, 1])
    ends = np.maximum.accumulate(ends)
    starts = np.maximum(host[:, 0], np.concatenate([host[:1, 0], ends[:-1]]))
    return intervals(starts, np.maximum(ends, starts))
