"""What a step costs less when nothing is communicated: exposure seen from outside the profiler."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from andromeda_scale.collectors.base import Collector, Context
from andromeda_scale.collectors.intervals import length_within
from andromeda_scale.collectors.trace import Recording, TraceError, read_timeline
from andromeda_scale.collectors.witness import Witness
from andromeda_scale.contracts.records import Phase
from andromeda_scale.errors import CollectorUnavailable

ORDER = "ABBAABBAABBA"  # A with, B without communication: a drift hits both alike
BLOCK_STEPS = 5
PROFILED_STEPS = 5


class Ablation(Collector):
    """Blocks of steps with and without communication, after all else; off unless collected.

    Values of `inspect`: {order: text, full_s, without_s: seconds per step of each block,
    full_bytes, without_bytes: what came in per step over TCP (null: not counted)}, a block from
    when all ranks are there until this one's device is done; without_compute_s: compute of each
    profiled step without communication (null: no trace of it)}. The model is worth nothing
    afterwards: name this collector last.
    """

    phases: frozenset[Phase] = frozenset({"inspect"})

    def start(self, phase: Phase, context: Context) -> None:
        from andromeda_scale.strategies.base import Unavailable

        self._context = context
        if context.runtime.world_size == 1:
            raise CollectorUnavailable("one rank communicates with nobody")
        if context.case.train.precision == "fp16":
            raise CollectorUnavailable("a loss scale follows gradients, which are wrong without")
        found = context.strategy.without_communication(context.state)
        if isinstance(found, Unavailable):
            raise CollectorUnavailable(found.reason)

    def stop(self, phase: Phase) -> Mapping[str, Any]:
        blocks: dict[str, list[tuple[float, float | None]]] = {"A": [], "B": []}
        for kind in ORDER:
            blocks[kind].append(self._block(silent=kind == "B"))
        found: dict[str, Any] = {"order": ORDER}
        for name, kind in (("full", "A"), ("without", "B")):
            found[f"{name}_s"], found[f"{name}_bytes"] = map(list, zip(*blocks[kind], strict=True))
        return {**found, "without_compute_s": self._compute_without()}

    def _block(self, *, silent: bool) -> tuple[float, float | None]:
        """(seconds, bytes) per step; the first step, which changes the kind, is not counted."""
        from andromeda_scale.rank.runtime import synchronize, uncollected
        from andromeda_scale.rank.train_step import unmarked

        context = self._context
        around = context.strategy.without_communication(context.state) if silent else nullcontext()
        with around:
            context.step(unmarked)
            synchronize(context.runtime.device)
            context.gather(None)
            witness = Witness()
            witness.start()
            with uncollected():
                started = time.perf_counter()
                for _ in range(BLOCK_STEPS):
                    context.step(unmarked)
                synchronize(context.runtime.device)
                seconds = (time.perf_counter() - started) / BLOCK_STEPS
            came = witness.received_bytes()
            return seconds, None if came is None else came / BLOCK_STEPS

    def _compute_without(self) -> list[float] | None:
        """Seconds of compute in each of some steps, from a profile of its own."""
        from andromeda_scale.rank.runtime import synchronize
        from andromeda_scale.rank.train_step import marked, unmarked

        context = self._context
        device = context.runtime.device
        with context.strategy.without_communication(context.state):
            context.step(unmarked)
            synchronize(device)
            context.gather(None)
            recording = Recording("cuda" if device.type == "cuda" else None)
            for _ in range(PROFILED_STEPS):
                context.step(marked)
            synchronize(device)
            events, _ = recording.stop()
        try:
            timeline = read_timeline(events)
        except TraceError:
            return None
        return [float(x) / 1e9 for x in length_within(timeline.compute, timeline.steps)]
