"""The program of one rank of a probe: what this device and this fabric reach at best."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from andromeda_scale.contracts.planned import RankSpec
from andromeda_scale.contracts.probed import (
    COLLECTIVES,
    TRIALS,
    Point,
    ProbeSettings,
    repetition,
    too_long,
)
from andromeda_scale.contracts.records import Phase, RecordWriter
from andromeda_scale.hardware.machine import detect_machine
from andromeda_scale.rank import runtime
from andromeda_scale.rank.probe_device import device_points
from andromeda_scale.rank.runtime import Control, Runtime

Beat = Callable[[str, int, int], None]
Call = Callable[[], object]

_MEMORY_SHARE = 0.5  # of what is free, for all ranks of a node together
_COPIES = 4  # of a message: what is sent, what comes, and what gloo may hold of both
_ITEM_BYTES = 4  # float32


class Probe:
    """One rank of one probe: of one rank its device, of several what they send each other."""

    def __init__(self, spec: RankSpec, record: RecordWriter, beat: Beat) -> None:
        self.phase: Phase = "setup"
        self.description: dict[str, Any] = {}
        self._spec, self._record, self._beat = spec, record, beat
        self._settings = ProbeSettings.model_validate(spec.case.model["probe"])

    def run(self) -> None:
        """Every point as a line of its own, so that those before a failure are kept."""
        started_s = time.monotonic()
        self._beat("setup", 0, 0)
        rt = runtime.start(self._spec)
        self._record.write("start", **runtime.identity(self._spec, rt))
        control = runtime.init_process_group(self._spec, rt)
        self.phase = "measure"
        gc.disable()
        if rt.world_size == 1:
            points = device_points(rt, self._settings, free_bytes(rt))
        else:
            points = Fabric(rt, control, self._settings).points(tuple(self._groups()))
        for number, point in enumerate(points, start=1):
            self._record.write("point", values=point.model_dump(mode="json", exclude_none=True))
            self._beat("measure", number, 0)
        self._record.write(
            "phase", phase="measure", start_s=started_s, end_s=time.monotonic(), values={}
        )

    def _groups(self) -> Iterator[int]:
        """Sizes of the groups that are measured: the whole world, and its halves, first ranks."""
        size = self._spec.world_size
        while size > 1:
            yield size
            size = size // 2 if size % 2 == 0 else 1


def free_bytes(rt: Runtime) -> int:
    """Memory that this rank may fill without troubling its neighbours."""
    if rt.device.type == "cuda":
        return int(_MEMORY_SHARE * torch.cuda.mem_get_info(rt.device)[0])
    free = min(psutil.virtual_memory().available, detect_machine().memory_bytes)
    return int(_MEMORY_SHARE * free / rt.world.ranks_per_node)


class Fabric:
    """Collectives of this rank's world, and of its first ranks, over message sizes."""

    def __init__(self, rt: Runtime, control: Control, settings: ProbeSettings) -> None:
        self._rt, self._control, self._settings = rt, control, settings
        self._room = min(control.gather(free_bytes(rt))) // _COPIES
        largest = max((s for s in settings.sizes if s <= self._room), default=settings.sizes[0])
        # Written to: pages that were never touched are all one, and always in cache.
        self._ins, self._outs = (
            torch.empty(largest // _ITEM_BYTES, device=rt.device).fill_(0) for _ in range(2)
        )
        self._token = torch.zeros(1, device=rt.device)

    def points(self, group_sizes: tuple[int, ...]) -> Iterator[Point]:
        """Every rank passes through every point; only those of its groups yield one."""
        for size in group_sizes:
            group = dist.new_group(range(size))
            member = self._rt.rank < size
            for op in COLLECTIVES:
                for point in self._of_op(op, size, group, member):
                    if member:
                        yield point

    def _of_op(self, op: str, group_size: int, group: Any, member: bool) -> Iterator[Point]:
        """One collective from the smallest message to the largest that there is room for."""
        about: dict[str, Any] = {"kind": "collective", "op": op, "group_size": group_size}
        call_s, last = 0.0, 0
        for asked in self._settings.sizes:
            chunk = max(1, asked // _ITEM_BYTES // group_size)  # elements of one rank's share
            size_bytes = chunk * group_size * _ITEM_BYTES
            why = too_long(call_s * size_bytes / last, self._settings) if last else None
            if why is None and asked > self._room:
                why = f"{_COPIES} times as much are not free on every rank"
            if why is not None:
                yield Point(**about, size_bytes=size_bytes, left_out=why)
                continue
            call = self._call(op, chunk, group_size, group) if member else None
            timed = self._time(call, group)
            if isinstance(timed, str):
                yield Point(**about, size_bytes=size_bytes, left_out=f"unavailable: {timed}")
                return
            call_s, calls, blocks = timed
            last, messages = size_bytes, 2 if op == "send" else 1  # there and back
            calls *= messages
            yield Point(**about, size_bytes=size_bytes, calls=calls, block_ns=tuple(blocks))

    def _time(self, call: Call | None, group: Any) -> tuple[float, int, list[int]] | str:
        """(seconds of one call, calls in a block, this rank's blocks), or why it does not work.

        The ranks agree on how often before they begin; those outside the group (`call` None) only
        listen.
        """
        found: float | str | None = None
        if call is not None:
            try:
                call()
                found = min(self._block(call, 1, group) for _ in range(TRIALS)) / 1e9
            except (RuntimeError, NotImplementedError) as error:
                if "not support" not in str(error):
                    raise
                found = str(error).splitlines()[0]
        everyone = [x for x in self._control.gather(found) if x is not None]
        failed = [x for x in everyone if isinstance(x, str)]
        if failed:
            return failed[0]
        call_s = max(x for x in everyone if not isinstance(x, str))
        calls, num_blocks = repetition(call_s, self._settings)
        if call is None:
            return call_s, calls, []
        return call_s, calls, [self._block(call, calls, group) for _ in range(num_blocks)]

    def _block(self, call: Call, calls: int, group: Any) -> int:
        """Nanoseconds of some calls after a barrier of the group, on the fabric itself."""
        dist.all_reduce(self._token, group=group)
        runtime.synchronize(self._rt.device)
        start_ns = time.perf_counter_ns()
        for _ in range(calls):
            call()
        runtime.synchronize(self._rt.device)
        return max(1, time.perf_counter_ns() - start_ns)

    def _call(self, op: str, chunk: int, group_size: int, group: Any) -> Call:
        """One call of a collective whose ranks hold `chunk` elements of S each."""
        whole, part = self._ins[: chunk * group_size], self._ins[:chunk]
        out, out_part = self._outs[: chunk * group_size], self._outs[:chunk]
        # The names until torch 2.12, deprecated since.
        gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
        scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
        calls: dict[str, Call] = {
            "all_reduce": lambda: dist.all_reduce(whole, group=group),
            "all_gather": lambda: gather(out, part, group=group),
            "reduce_scatter": lambda: scatter(out_part, whole, group=group),
            "all_to_all": lambda: dist.all_to_all_single(out, whole, group=group),
            "broadcast": lambda: dist.broadcast(whole, 0, group=group),
            "send": lambda: self._there_and_back(whole, group_size, group),
        }
        return calls[op]

    def _there_and_back(self, message: Tensor, group_size: int, group: Any) -> None:
        """From the group's first rank to its last and back: two messages."""
        rank, last = self._rt.rank, group_size - 1
        if rank == 0:
            dist.send(message, last, group=group)
            dist.recv(message, last, group=group)
        elif rank == last:
            dist.recv(message, 0, group=group)
            dist.send(message, 0, group=group)
