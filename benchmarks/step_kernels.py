"""Which kernels a strategy's step spends a GPU's time on, and where the GPU waits.

    torchrun --nproc-per-node 2 benchmarks/step_kernels.py llama-3.1-8b \\
        --strategy '{"name": "fsdp2", "reshard_after_forward": false}' \\
        --set seq_len=8192 --set precision='"bf16"' --set compile=true

Rank 0 prints its kernels by kind and the longest by name: milliseconds and spans a step, means over
the profiled steps. Kernels of several streams run side by side, so that kinds add up to more
than the GPU was busy; `alone` is what a kind's kernels last while no other kind's runs. `idle` is
the rest of the step. Without a GPU it prints the operators of the training thread, each without
the operators within it, which cut it into several spans.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from andromeda_scale.collectors.intervals import length_within, minus, union
from andromeda_scale.collectors.trace import STEP, Events, Recording, Timeline, read_timeline
from andromeda_scale.contracts.planned import PlannedRepeat, RankSpec
from andromeda_scale.models.factory import ModelFactory
from andromeda_scale.planning.model_file import resolve_model
from andromeda_scale.rank import runtime
from andromeda_scale.rank.assembly import make_batches, make_strategy
from andromeda_scale.rank.train_step import TrainStep, marked
from andromeda_scale.suite.config import Case
from andromeda_scale.suite.world import World

# In order: a kernel whose name has one of the words is of the kind.
KINDS = {
    "communication": ("nccl", "c10d", "gloo"),
    "attention": ("sdpa", "fmha", "flash", "attention", "flex"),
    "products": (
        "gemm",
        "nvjet",
        "cutlass",
        "xmma",
        "cublas",
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
    ),
    "update": ("adam", "multi_tensor", "foreach"),
    "compiled": ("triton", "compiledfxgraph"),
    "copies": ("memcpy", "memset", "copy", "aten::cat", "catarray"),
}
# Of the host: what runs within them is Python, or an operator of its own.
RANGES = ("andromeda::", "autograd::", "FSDP::")
LONGEST = 15
SHOWN = 90  # characters of a kernel's name


def kind_of(name: str) -> str:
    """The kind of a kernel or operator by its name."""
    lower = name.lower()
    return next((kind for kind, words in KINDS.items() if any(w in lower for w in words)), "other")


def kernels(events: Events) -> dict[str, Any]:
    """Spans by name: of device kernels, or of the training thread's operators without a device."""
    found = events.find(lambda name: True, device=True)
    if len(found):
        spans = {events.name(i): [] for i in found.tolist()}
        for i in found.tolist():
            spans[events.name(i)].append(events.spans[i])
        return {name: np.array(of) for name, of in spans.items()}
    return own_time(events)


def own_time(events: Events) -> dict[str, Any]:
    """Spans of every operator on the training thread, without those of operators within it."""
    steps = events.find(lambda name: name == STEP)
    thread = events.thread(int(steps[0]))
    at = [i for i in events.find(lambda n: "::" in n).tolist() if events.thread(i) == thread]
    at = [i for i in at if not events.name(i).startswith(RANGES)]
    spans: dict[str, list[Any]] = defaultdict(list)
    open_: list[tuple[str, int, int]] = []  # name, from when it has run by itself, its end

    def run(name: str, start: int, end: int) -> None:
        if end > start:
            spans[name].append((start, end))

    def close(until: int) -> None:
        while open_ and open_[-1][2] <= until:
            name, since, end = open_.pop()
            run(name, since, end)
            if open_:
                open_[-1] = (open_[-1][0], end, open_[-1][2])

    for i in at:  # by start; an operator's own are after it
        start, end = (int(x) for x in events.spans[i])
        close(start)
        if open_:
            run(open_[-1][0], open_[-1][1], start)
        open_.append((events.name(i), start, end))
    close(2**63 - 1)
    return {name: np.array(of) for name, of in spans.items()}


def table(spans: dict[str, Any], timeline: Timeline) -> list[str]:
    """Lines of text: kinds, then the longest by name; ms and spans a step."""
    steps, num = timeline.steps, len(timeline.steps)
    inside = {name: _within(of, steps) for name, of in spans.items()}
    by_kind: dict[str, list[Any]] = defaultdict(list)
    for name, of in inside.items():
        by_kind[kind_of(name)].append(of)
    unions = {kind: union(np.concatenate(of)) for kind, of in by_kind.items()}
    whole_ms = (steps[:, 1] - steps[:, 0]).sum() / num / 1e6
    busy = union(np.concatenate(list(unions.values())))

    def ms(of: Any) -> float:
        return float(length_within(of, steps).sum() / num / 1e6)

    lines = [f"{'kind':15}{'ms':>10}{'alone':>10}{'of step':>9}{'spans':>10}"]
    for kind, of in sorted(unions.items(), key=lambda item: -ms(item[1])):
        others = [other for name, other in unions.items() if name != kind]
        alone = minus(of, union(np.concatenate(others))) if others else of
        count = sum(len(one) for one in by_kind[kind]) / num
        lines.append(
            f"{kind:15}{ms(of):10.3f}{ms(alone):10.3f}{ms(of) / whole_ms:9.1%}{count:10.0f}"
        )
    idle = whole_ms - ms(busy)
    lines += [
        f"{'idle':15}{idle:10.3f}{idle:10.3f}{idle / whole_ms:9.1%}",
        f"{'step':15}{whole_ms:10.3f}",
    ]
    lines += ["", f"{'ms':>10}{'spans':>10}  kernel"]
    longest = sorted(inside.items(), key=lambda item: -_total(item[1]))[:LONGEST]
    return lines + [
        f"{_total(of) / num / 1e6:10.3f}{len(of) / num:10.1f}  {name[:SHOWN]}"
        for name, of in longest
    ]


def _within(spans: Any, steps: Any) -> Any:
    """Of (n, 2) spans those that begin within a step."""
    at = np.searchsorted(steps[:, 0], spans[:, 0], side="right") - 1
    return spans[(at >= 0) & (spans[:, 0] < steps[at, 1])]


def _total(spans: Any) -> int:
    return int((spans[:, 1] - spans[:, 0]).sum())


def spec_of(asked: argparse.Namespace) -> RankSpec:
    """What an agent would tell this rank."""
    train = {key: json.loads(v) for key, _, v in (s.partition("=") for s in asked.sets)}
    world = int(os.environ["WORLD_SIZE"])
    options = json.loads(asked.strategy) if "{" in asked.strategy else {"name": asked.strategy}
    model = json.loads(asked.model) if "{" in asked.model else asked.model
    name, resolved = resolve_model(model, "command line")
    case = Case.model_validate(
        {
            "model_name": name,
            "model": resolved,
            "train": train,
            "strategy": {"name": options.pop("name"), "options": options},
            "world": World(ranks_per_node=world),
        }
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return RankSpec(
        case=case,
        item=PlannedRepeat(case_id=case.case_id, repeat=0, device=device),
        rank=int(os.environ["RANK"]),
        world_size=world,
        local_rank=int(os.environ["LOCAL_RANK"]),
        node_rank=0,
        store_host="127.0.0.1",
        store_port=1,
        store_prefix="",
        record_path="",
    )


def profiled(step: Callable[..., Any], asked: argparse.Namespace, device: torch.device) -> Any:
    """(events, timeline) of the steps after the warm-up."""
    for index in range(asked.warmup):
        step(index)
    runtime.synchronize(device)
    dist.barrier()
    recording = Recording("cuda" if device.type == "cuda" else None)
    for index in range(asked.warmup, asked.warmup + asked.steps):
        step(index, marked)
    runtime.synchronize(device)
    events, _ = recording.stop()
    return events, read_timeline(events)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a name, or JSON as in a suite")
    parser.add_argument("--strategy", default="fsdp2", help="a name, or JSON as in a suite")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON", dest="sets")
    parser.add_argument("--warmup", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    asked = parser.parse_args()
    spec = spec_of(asked)
    dist.init_process_group("nccl" if spec.item.device == "cuda" else "gloo")
    rt = runtime.start(spec)  # which sets the variables that torchrun's store was found by
    strategy = make_strategy(spec)
    factory = ModelFactory(spec.case.model, spec.case.train, spec.case.seed)
    state = strategy.build(factory, rt)
    batches = make_batches(spec, factory.config.vocab_size)
    step = TrainStep(strategy, state, batches, spec.case.train, rt)
    events, timeline = profiled(step, asked, rt.device)
    if rt.rank == 0:
        print("\n".join(table(kernels(events), timeline)), flush=True)
    dist.barrier()
    os._exit(0)  # as ranks do: what engines leave behind may wait for one another


if __name__ == "__main__":
    main()
