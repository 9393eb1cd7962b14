"""The program of one rank: the phases of one repeat, in order, into the rank's record."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from andromeda_scale.collectors.base import Context
from andromeda_scale.collectors.running import Collectors
from andromeda_scale.collectors.step_time import StepTime
from andromeda_scale.contracts import parity
from andromeda_scale.contracts.planned import RankSpec
from andromeda_scale.contracts.records import Phase, RecordWriter
from andromeda_scale.data.batches import Batches
from andromeda_scale.models.factory import ModelFactory
from andromeda_scale.rank import runtime, warmup
from andromeda_scale.rank.assembly import make_batches, make_source, make_strategy
from andromeda_scale.rank.failures import Diverged, Invalid, end_of
from andromeda_scale.rank.first_steps import FirstSteps
from andromeda_scale.rank.fitting import Room
from andromeda_scale.rank.planting import Planted
from andromeda_scale.rank.probe import Probe
from andromeda_scale.rank.readback import (
    attention_ops,
    compile_facts,
    compute_dtype,
    num_compiled,
    num_to_recompute,
    unexpected,
)
from andromeda_scale.rank.train_step import Mark, TrainStep, marked, unmarked
from andromeda_scale.suite.config import Warmup
from andromeda_scale.suite.micro_batch import TRIAL_STEPS
from andromeda_scale.suite.precision import POLICIES

Beat = Callable[[str, int, int], None]


def main(spec: RankSpec, beat: Beat) -> None:
    """Run one rank of one repeat. Raises only where no record can be written.

    Every outcome is an end line. `beat(phase, step, total_steps)` is called at the start of each
    phase and at every step boundary.
    """
    record = RecordWriter(spec.record_path, spec.item.case_id, spec.item.repeat, spec.rank)
    program = Probe if spec.item.role == "probe" else Worker
    worker = program(spec, record, beat)
    try:
        worker.run()
        end: dict[str, Any] = {"status": "ok"}
    except BaseException as error:  # the outermost layer: here alone an exception is a status
        end = {"phase": worker.phase, **end_of(error)}
    if worker.description:
        record.write("describe", values=worker.description)
    record.write("end", end_s=time.monotonic(), **end)
    record.close()


class Worker:
    """One rank of one repeat. `phase` is the one under way, `description` what was read back."""

    def __init__(self, spec: RankSpec, record: RecordWriter, beat: Beat) -> None:
        self.phase: Phase = "setup"
        self.description: dict[str, Any] = {}
        self._spec = spec
        self._case = spec.case
        self._record = record
        self._beat = beat
        self._next_step = 0
        self._state: Any = None
        self._warm_step_s: float | None = None

    def run(self) -> None:
        """All phases, or those that give the compared steps where these are all that is asked."""
        self._setup()
        if self._spec.item.role == "trial":
            self._try()
            return
        if self._spec.item.role != "measure":
            self._warmup(Warmup(min_steps=parity.PARITY_STEPS, max_steps=parity.PARITY_STEPS))
            return
        self._warmup(self._case.measure.warmup)
        self._steps("measure", self._measured_steps(), unmarked)
        if self._case.measure.profile_steps:
            self._steps("profile", self._case.measure.profile_steps, marked)
        self._inspect()

    def _setup(self) -> None:
        """From a fresh process to a model ready for its first step; each part timed."""
        spec, case = self._spec, self._case
        seconds: dict[str, float] = {}
        started = time.monotonic()
        with _timed(seconds, "device_s"):
            self._runtime = runtime.start(spec)
            if spec.item.role == "trial":
                self._room = Room(spec, self._runtime.device)
        self._record.write("start", **runtime.identity(spec, self._runtime))
        self._strategy = make_strategy(spec)
        watched = spec.item.role == "measure"
        self._collectors = Collectors(case.collect if watched else ())
        with self._in_phase("setup", started) as values:
            with _timed(seconds, "process_group_s"):
                self._control = runtime.init_process_group(spec, self._runtime)
            with _timed(seconds, "data_s"):
                factory = ModelFactory(case.model, case.train, case.seed)
                batches = make_batches(spec, factory.config.vocab_size)
            with _timed(seconds, "model_s"):
                self._state = self._strategy.build(factory, self._runtime)
                runtime.synchronize(self._runtime.device)
            values["setup"] = seconds
            values["model"] = {"num_parameters": factory.num_parameters}
            values["data"] = self._fingerprint(batches)
            planted = self._plant() if case.faults else None
            gc.collect()
            gc.freeze()
        self._loss_chunks = factory.config.loss_chunks(case.train)
        source = make_source(spec, batches)
        self._step = TrainStep(
            self._strategy, self._state, source, case.train, self._runtime, planted
        )
        self._clock = StepTime(self._runtime.device)
        self._first = FirstSteps(
            spec, self._strategy, self._state, factory.num_parameters, self._control.gather
        )
        self._read_back()
        self._verify()

    def _plant(self) -> Planted:
        def parameters() -> list[torch.Tensor]:
            found: list[torch.Tensor] = self._strategy.states(self._state)["parameters"]
            return found

        return Planted(self._spec, self._runtime, parameters, self._control.gather)

    def _fingerprint(self, batches: Batches) -> dict[str, Any]:
        """Hash of the first global batches: equal for every strategy; rank 0 is enough."""
        steps = parity.PARITY_STEPS
        found = batches.fingerprint(steps) if self._spec.rank == 0 else None
        return {"fingerprint": found, "steps": steps, "global_tokens": batches.global_tokens}

    def _warmup(self, bounds: Warmup) -> None:
        """Steps that are recorded and left out of every result, until the rule ends them."""
        blocks: list[warmup.Block] = []
        rule = None if bounds.max_steps else "fixed"
        with self._in_phase("warmup") as values:
            mine: dict[str, Any] = {"step_ns": [], "window_ns": 0, "tokens": 0}
            while rule is None:
                done = len(mine["step_ns"])
                before = _footprint(self._runtime.device)
                size = warmup.next_block(bounds, done)
                window = self._window(values, size, bounds.max_steps, unmarked, done)
                steady = before == _footprint(self._runtime.device)
                for key in mine:
                    mine[key] += window[key]
                everyone = self._control.gather((window["step_ns"], steady))
                slowest = tuple(max(steps) for steps in zip(*(e[0] for e in everyone), strict=True))
                blocks.append(warmup.Block(slowest, all(e[1] for e in everyone)))
                rule = self._control.from_rank_0(warmup.ended_by(bounds, blocks))
                if self._first.mismatch() is not None:
                    rule = "diverged"
            values["step_time"] = mine
            values["warmup"] = {"ended_by": rule, "steps": len(mine["step_ns"])}
        self._warm_step_s = warmup.step_s(blocks)
        self._check_losses()

    def _try(self) -> None:
        """The first steps, of which only what they need of memory is asked."""
        with self._in_phase("warmup") as values:
            values["step_time"] = self._window(values, TRIAL_STEPS, TRIAL_STEPS, unmarked)
            values["room"] = self._room.values()

    def _measured_steps(self) -> int:
        """Those asked for, or more where a collector needs a longer window: rank 0 decides."""
        asked, limits = self._case.measure.steps, self._case.limits
        needed = warmup.window_steps(
            asked,
            self._collectors.least_steps,
            self._collectors.least_s,
            step_s=self._warm_step_s,
            limit_s=limits.timeout_s / 2,
        )
        return int(self._control.from_rank_0(needed))

    def _steps(self, phase: Phase, num_steps: int, mark: Mark) -> None:
        """A phase of a fixed number of steps in one window."""
        with self._in_phase(phase) as values:
            if phase == "measure":
                values["window"] = {"asked": self._case.measure.steps, "steps": num_steps}
            values["step_time"] = self._window(values, num_steps, num_steps, mark)
        self._check_losses()

    def _window(
        self, values: dict[str, Any], num_steps: int, total: int, mark: Mark, done: int = 0
    ) -> dict[str, Any]:
        """Run steps between two synchronised edges; only step boundaries are noted inside.

        Adds to `values` what is compared of those among the first PARITY_STEPS.
        """
        losses, tokens = [], []
        runtime.synchronize(self._runtime.device)
        self._control.barrier()
        collects = self._case.measure.collect_garbage
        with nullcontext() if collects else runtime.uncollected():
            self._clock.start(num_steps)
            for index in range(num_steps):
                before_update = self._first.prepare(self._next_step + index, self.phase)
                loss_sum, count = self._step(self._next_step + index, mark, before_update)
                self._clock.boundary()
                losses.append(loss_sum)
                tokens.append(count)
                self._beat(self.phase, done + index + 1, total)
            window = self._clock.stop()
        self._next_step += num_steps
        self._first.keep(values, losses, tokens)
        return {**window, "tokens": sum(tokens)}

    def _check_losses(self) -> None:
        found = self._first.mismatch()
        if found is not None:
            raise Diverged(str(found), self._first.odd_ranks)

    def _inspect(self) -> None:
        """One step apart, in which what happened is read back between backward and update."""
        with self._in_phase("inspect"):
            with (
                compute_dtype(self._state.module, self._case.train) as seen,
                attention_ops(self._runtime.device) as ran,
            ):
                self._step(self._next_step, before_update=self._read_back)
            self._next_step += 1
            self.description.setdefault("dtypes", {})["compute"] = seen()
            self.description["attention"]["ops"] = ran()
        self._verify()

    def _one_more_step(self, mark: Mark) -> None:
        self._step(self._next_step, mark)
        self._next_step += 1

    def _read_back(self) -> None:
        module = self._state.module
        attention = getattr(module, "describe_attention", dict)
        loss = getattr(module, "describe_loss", lambda: None)
        checkpointing = getattr(module, "describe_checkpointing", lambda: None)
        self.description = {
            **self._strategy.describe(self._state),
            "mode": self._case.train.mode,
            "compile": compile_facts(),
            "attention": {**attention(), "ops": None},
            "loss": loss(),
            "checkpointing": checkpointing(),
            "matmul_precision": torch.get_float32_matmul_precision(),
        }

    def _verify(self) -> None:
        """Raise Invalid where what was read back is not what was asked."""
        asked = {
            **self._strategy.expects(),
            "world_size": self._spec.world_size,
            "matmul_precision": POLICIES[self._case.train.precision].matmul,
        }
        if self._next_step and self.description["loss"]:
            asked["loss"] = {"chunks": self._loss_chunks}
        if self._next_step and self.description["checkpointing"]:
            count = num_to_recompute(self._case.train, len(self._state.module.blocks))
            asked["checkpointing"] = {"blocks_recomputed": count}
        problem = unexpected(self.description, asked)
        if problem is None and self._case.train.compile and self._next_step and not num_compiled():
            problem = "compile was asked for, and torch.compile captured no graph"
        if problem is not None:
            raise Invalid(problem)

    @contextmanager
    def _in_phase(self, phase: Phase, started: float | None = None) -> Iterator[dict[str, Any]]:
        """Announce a phase, let the collectors watch it, then write its line."""
        self.phase = phase
        self._beat(phase, 0, 0)
        context = Context(
            case=self._case,
            runtime=self._runtime,
            strategy=self._strategy,
            state=self._state,
            gather=lambda value: self._control.gather(value),
            step=self._one_more_step,
            directory=Path(self._spec.record_path).parent,
        )
        values: dict[str, Any] = {}
        started = time.monotonic() if started is None else started
        with self._collectors.around(phase, context, values):
            yield values
        self._record.write(
            "phase", phase=phase, start_s=started, end_s=time.monotonic(), values=values
        )


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds[name] = time.monotonic() - start


def _footprint(device: torch.device) -> tuple[int, ...]:
    """What must not change in a warm block: graphs compiled, memory taken from the device."""
    if device.type != "cuda":
        return (num_compiled(),)
    stats = torch.cuda.memory_stats(device)
    keys = ("segment.all.allocated", "num_alloc_retries")
    return (num_compiled(), *(int(stats.get(key, 0)) for key in keys))
