"""What the instrument costs: timed steps of the worker against a bare loop in the same process.

    python benchmarks/overhead.py [--strategy ddp zero1] [--world 1 2] [--seconds 60]
                                  [--device cuda] [--model andromeda-tiny] [--records FILE]

A is phase `measure` as the worker runs it, every collector configured, under its agent. B is the
plain loop below, on the same model, optimizer and batches, while agent, forkserver and driver are
stopped. Both run in short blocks, ABBA BAAB ..., each after a step that does not count and between
synchronised edges, the garbage collector off. A block's time is the max over ranks, d of four
blocks is ln(A A / (B B)) / 2, and the ratio exp(median d) has a distribution-free 95 % interval of
the median. The claim "costs at most x" holds when the upper bound is at most x (1.005 on a GPU,
1.01 on a CPU), is exceeded when the lower bound is above it, and is not resolved otherwise.

`cpu` is the same ratio of the ranks' own processor seconds, which neighbours on a busy machine
disturb less: it sees the instrument's work in a rank, not what the agent's samplers take from it.
`hooks` is the least time a step of the worker's window took around a step that does nothing, and
its share of a step: what is between the steps, found on the busiest machine. `launchers` is the
processor time that agent, forkserver and driver took while A ran, as a share of one core.
`profile` is how much longer the separate steps under the profiler last: no speed comes from them.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from scipy.stats import binom

from andromeda_scale.contracts.planned import Plan, RankSpec
from andromeda_scale.hardware.machine import detect_machine
from andromeda_scale.launch import driver
from andromeda_scale.launch.run_dir import RunDir
from andromeda_scale.planning.plan import make_plan
from andromeda_scale.planning.suite_file import mapping_suite
from andromeda_scale.registry import COLLECTORS

STRATEGIES = ("single", "ddp", "fsdp2", "zero1")
BOUNDS = {"cpu": 1.01, "cuda": 1.005}
CONFIDENCE = 0.95
EMPTY_WINDOWS, EMPTY_STEPS = 20, 200
STEPS = 5  # of a block: short, so that a busy neighbour slows A and B alike
ORDER = "ABBABAAB"
CASE = ["strategy", "world", "device"]


# In a rank


def bare_loop(
    state: Any, batches: Any, device: Any, scale: float, clip: float
) -> Callable[..., Any]:
    """run(first step, number of steps): what one would write by hand."""
    import torch

    model, module, optimizer = state.wrapped, state.module, state.optimizer
    engine = model if hasattr(model, "zero_optimization_stage") else None
    parameters = list(module.parameters())
    group = optimizer.param_groups[0]
    if engine is None and group["params"][0] is not parameters[0]:  # by hand DTensors are updated
        settings = {"lr": group["lr"], "weight_decay": group["weight_decay"]}
        optimizer = torch.optim.AdamW(parameters, fused=True, **settings)

    def run(first: int, num_steps: int) -> None:
        for step in range(first, first + num_steps):
            tokens, labels = (torch.from_numpy(ids) for ids in batches.micro_batch(step, 0))
            if device.type == "cuda":
                tokens = tokens.pin_memory().to(device, non_blocking=True)
                labels = labels.pin_memory().to(device, non_blocking=True)
            loss, _ = model(tokens, labels)
            if engine is not None:
                engine.backward(loss * scale)
                engine.step()
                continue
            (loss * scale).backward()
            torch.nn.utils.clip_grad_norm_(parameters, clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def rank_main(spec: RankSpec, beat: Callable[[str, int, int], None]) -> None:
    """The worker, whose phase `measure` is many blocks of A and B."""
    import torch

    from andromeda_scale import worker
    from andromeda_scale.rank import runtime

    class Clock(worker.StepTime):
        def start(self, num_steps: int) -> None:
            self._cpu_ns = time.process_time_ns()
            super().start(num_steps)

        def stop(self) -> dict[str, Any]:
            window = super().stop()
            return {**window, "cpu_ns": time.process_time_ns() - self._cpu_ns}

    class Overhead(worker.Worker):
        def run(self) -> None:
            self._setup()
            self._clock = Clock(self._runtime.device)
            self._warmup(self._case.measure.warmup)
            rt, train = self._runtime, self._case.train
            batches = self._step._batches
            scale = rt.world_size / batches.global_tokens
            bare = bare_loop(self._state, batches, rt.device, scale, train.grad_clip)
            deadline = time.monotonic() + float(os.environ["OVERHEAD_SECONDS"])
            above, cpu_s, wall_s = launchers(), 0.0, 0.0
            while self._control.from_rank_0(time.monotonic() < deadline):
                for kind in ORDER:
                    if kind == "B":
                        self._bare(bare)
                        continue
                    start_s, used_s = time.monotonic(), used_by(above)
                    self._steps("measure", STEPS, worker.unmarked)
                    wall_s += time.monotonic() - start_s
                    cpu_s += used_by(above) - used_s
            self._record.write("launchers", share=cpu_s / wall_s)
            self._nothing()
            self._steps("profile", self._case.measure.profile_steps, worker.marked)

        def _window(self, *arguments: Any) -> dict[str, Any]:
            self._one_more_step(worker.unmarked)
            return super()._window(*arguments)

        def _nothing(self) -> None:
            """Windows of steps that do nothing: what is left is the worker's own."""
            step, nothing = self._step, torch.zeros((), device=self._runtime.device)
            self._step = lambda *_: (nothing, 1)
            for _ in range(EMPTY_WINDOWS):
                window = super()._window({}, EMPTY_STEPS, EMPTY_STEPS, worker.unmarked)
                self._record.write("empty", window_ns=window["window_ns"])
            self._step = step

        def _bare(self, bare: Callable[..., Any]) -> None:
            with launchers_stopped(first=self._runtime.local_rank == 0):
                bare(self._next_step, 1)
                runtime.synchronize(self._runtime.device)
                self._control.barrier()
                gc.disable()
                start_ns, cpu_ns = time.perf_counter_ns(), time.process_time_ns()
                bare(self._next_step + 1, STEPS)
                runtime.synchronize(self._runtime.device)
                window_ns = time.perf_counter_ns() - start_ns
                cpu_ns = time.process_time_ns() - cpu_ns
                gc.enable()
                gc.collect()
                self._control.barrier()
            self._next_step += 1 + STEPS
            self._record.write("bare", window_ns=window_ns, cpu_ns=cpu_ns)

    program, worker.Worker = worker.Worker, Overhead
    try:
        worker.main(spec, beat)
    finally:
        worker.Worker = program


def launchers() -> list[psutil.Process]:
    """Forkserver, agent and driver of this rank."""
    return psutil.Process().parents()[:3]


def used_by(processes: Sequence[psutil.Process]) -> float:
    """Processor seconds, in the kernel's ticks of 10 ms, which add up over many blocks."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


@contextmanager
def launchers_stopped(*, first: bool) -> Iterator[None]:
    """Neither agent nor driver runs meanwhile; the first rank of the node sees to it."""
    above = launchers() if first else []
    try:
        for process in above:
            process.send_signal(signal.SIGSTOP)
        yield
    finally:
        for process in above:
            process.send_signal(signal.SIGCONT)


# Outside


# What the bare loop does not do is left out of the worker's step.
AS_BY_HAND: dict[str, dict[str, Any]] = {"fsdp2": {"early_gather": False, "early_norm": False}}


def suite_of(asked: argparse.Namespace) -> dict[str, Any]:
    warmup = {"min_steps": 20, "max_steps": 20}
    return {
        "question": "What does the instrument cost?",
        "model": asked.model,
        "train": {
            "seq_len": asked.seq_len,
            "micro_batch_size": asked.micro_batch_size,
            "precision": "fp32",
            "update_streams": 1,
        },
        "device": asked.device,
        "world": asked.world,
        "axes": {
            "strategy": [{"name": name, **AS_BY_HAND.get(name, {})} for name in asked.strategy]
        },
        "measure": {"warmup": warmup, "steps": STEPS, "repeats": 1, "profile_steps": 20},
        "collect": list(COLLECTORS),
        "parity": "off",
        "limits": {"timeout_s": 600 + 20 * asked.seconds},
    }


@dataclass
class Blocks:
    """What one rank timed; `order` has a letter a block."""

    order: str = ""
    window_ns: list[int] = field(default_factory=list)
    cpu_ns: list[int] = field(default_factory=list)
    step_ns: list[int] = field(default_factory=list)  # of A
    profiled_ns: list[int] = field(default_factory=list)
    empty_ns: list[int] = field(default_factory=list)
    launchers: float = math.nan

    def take(self, line: dict[str, Any]) -> None:
        """One line of the rank's record."""
        if line["kind"] == "bare":
            self._add("B", line)
        elif line["kind"] == "launchers":
            self.launchers = line["share"]
        elif line["kind"] == "empty":
            self.empty_ns.append(line["window_ns"])
        elif line.get("phase") in ("measure", "profile"):
            steps = line["values"]["step_time"]
            if line["phase"] == "profile":
                self.profiled_ns = steps["step_ns"]
            else:
                self._add("A", steps)
                self.step_ns += steps["step_ns"]

    def _add(self, kind: str, block: dict[str, Any]) -> None:
        self.order += kind
        self.window_ns.append(block["window_ns"])
        self.cpu_ns.append(block["cpu_ns"])


def read_blocks(file: Path) -> list[Blocks]:
    """Of every rank of a node file."""
    ranks: dict[int, Blocks] = {}
    for line in map(json.loads, file.read_text().splitlines()):
        if line["rank"] is not None:
            ranks.setdefault(line["rank"], Blocks()).take(line)
    return list(ranks.values())


def differences(order: str, windows: Sequence[int]) -> list[float]:
    """d of every four blocks."""
    found = []
    for at in range(0, len(windows) - 3, 4):
        four = list(zip(order[at : at + 4], windows[at : at + 4], strict=True))
        logs = [math.log(ns) if kind == "A" else -math.log(ns) for kind, ns in four]
        found.append(sum(logs) / 2)
    return found


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and its distribution-free interval: order statistics by the binomial distribution."""
    ordered, num = sorted(values), len(values)
    below = int(binom.ppf((1 - CONFIDENCE) / 2, num, 0.5))
    middle = statistics.median(ordered)
    if below < 1:  # under 6 values no interval has 95 %
        return middle, math.nan, math.nan
    return middle, ordered[below - 1], ordered[num - below]


def verdict(low: float, high: float, bound: float) -> str:
    if high <= bound:
        return "holds"
    return "exceeds" if low > bound else "not resolved"


def records(run: RunDir, plan: Plan) -> pd.DataFrame:
    """A row a rank of every case: its Blocks, or why there are none."""
    rows: list[dict[str, Any]] = []
    for item in plan.repeats:
        case = plan.cases[item.case_id]
        named = {"strategy": case.strategy.name, "world": str(case.world), "device": item.device}
        status = run.status(item) or {}
        if status.get("status") == "ok":
            found = read_blocks(run.case_dir(item) / "node-0.jsonl")
            rows += [{**named, "cause": None, **asdict(one)} for one in found]
        else:
            cause = item.skip or status.get("cause") or status.get("status", "not run")
            rows.append({**named, "cause": str(cause), **asdict(Blocks())})
    return pd.DataFrame(rows)


def table_of(found: pd.DataFrame) -> pd.DataFrame:
    """A row for every case, as text."""
    return pd.DataFrame([_row(named, of) for named, of in found.groupby(CASE, sort=False)])


def _row(named: tuple[str, str, str], ranks: pd.DataFrame) -> dict[str, str]:
    strategy, world, device = named
    head = {"strategy": strategy, "world": world}
    if cause := ranks["cause"].iloc[0]:
        return {**head, "step ms": "-", "ratio [low, high]": "-", "claim": str(cause)}
    order, bound = ranks["order"].iloc[0], BOUNDS[device]
    wall = interval_of(order, slowest(ranks["window_ns"]))
    cpu = interval_of(order, slowest(ranks["cpu_ns"]))
    step_ns = statistics.median(slowest(ranks["step_ns"]))
    profiled_ns = statistics.median(slowest(ranks["profiled_ns"]))
    hooks_ns = max(min(empty) for empty in ranks["empty_ns"]) / EMPTY_STEPS
    return {
        **head,
        "step ms": f"{step_ns / 1e6:.2f}",
        "ratio [low, high]": "{:.4f} [{:.4f}, {:.4f}]".format(*wall),
        "claim": f"{verdict(wall[1], wall[2], bound)} (at most {bound})",
        "cpu": "{:.4f} [{:.4f}, {:.4f}]".format(*cpu),
        "hooks": f"{hooks_ns / 1e3:.1f} us ({hooks_ns / step_ns:.3%})",
        "launchers": f"{ranks['launchers'].iloc[0]:.1%}",
        "n": str(len(order) // 4),
        "profile": f"{profiled_ns / step_ns:.2f}x",
    }


def slowest(ranks: Iterable[Sequence[int]]) -> list[int]:
    """Max over ranks of each."""
    return [max(of_one) for of_one in zip(*ranks, strict=True)]


def interval_of(order: str, blocks: Sequence[int]) -> tuple[float, ...]:
    """Ratio A/B with its interval."""
    return tuple(math.exp(d) for d in median_interval(differences(order, blocks)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--strategy", nargs="+", default=list(STRATEGIES))
    parser.add_argument("--world", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=60.0, help="of blocks, for each case")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--model", default="andromeda-tiny")
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--micro-batch-size", type=int, default=2)
    parser.add_argument("--records", type=Path, help="a Parquet file to write: a row a rank")
    asked = parser.parse_args()
    loaded = mapping_suite(suite_of(asked), [], [])
    plan = make_plan(loaded.suite, "overhead", detect_machine(), loaded.where)
    os.environ["OVERHEAD_SECONDS"] = str(asked.seconds)
    path = f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    os.environ["PYTHONPATH"] = path
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir.create(Path(folder) / "run", plan, loaded.text, {})
        outcome = driver.run(run, worker="overhead:rank_main")
        if outcome.error:
            sys.exit(outcome.error)
        found = records(run, plan)
    if asked.records:
        asked.records.parent.mkdir(parents=True, exist_ok=True)
        found.to_parquet(asked.records, index=False)
    print(to_markdown(found))


def to_markdown(found: pd.DataFrame) -> str:
    return str(table_of(found).fillna("-").to_markdown(index=False, disable_numparse=True))


if __name__ == "__main__":
    main()
