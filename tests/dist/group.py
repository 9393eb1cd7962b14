"""Starts real gloo ranks that run the worker, and reads back what they wrote."""

from __future__ import annotations

import gc
import json
import multiprocessing as mp
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from andromeda_scale import registry, worker
from andromeda_scale.contracts.planned import PlannedRepeat, RankSpec
from andromeda_scale.launch import preload
from andromeda_scale.suite.config import Case
from andromeda_scale.suite.world import World

Line = dict[str, Any]

TIMEOUT_S = 120.0
GRACE_S = 3.0  # for the peers of a rank that has failed

LLAMA = {
    "family": "llama",
    "vocab_size": 256,
    "d_model": 32,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
}

ANDROMEDA = {  # with biases
    "family": "andromeda",
    "vocab_size": 256,
    "d_model": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 1,
    "head_dim": 40,
    "alibi_num_heads": 2,
}


def tiny_case(strategy: str | dict[str, Any] = "single", **settings: Any) -> Case:
    """A case of a few steps; `train`, `measure` and `model` are merged into small defaults."""
    train = {"seq_len": 16, "micro_batch_size": 2} | settings.pop("train", {})
    measure = {"warmup": {"min_steps": 5, "max_steps": 5}, "steps": 2, "profile_steps": 0}
    measure |= settings.pop("measure", {})
    spec = {"name": strategy} if isinstance(strategy, str) else strategy
    given = {
        "model_name": "tiny",
        "model": LLAMA,
        "collect": (),
        "limits": {"timeout_s": TIMEOUT_S},
    }
    return Case.model_validate(
        {**given, "train": train, "measure": measure, "strategy": spec, "world": World()} | settings
    )


def in_rank(target: Callable[..., Any], *args: Any) -> None:
    """Body of a rank process: leaves without teardown, as the launcher's ranks do."""
    gc.freeze()  # as the launcher's forkserver does: the shared pages stay shared
    code = 1
    try:
        target(*args)
        code = 0
    finally:
        os._exit(code)


def no_beat(phase: str, step: int, total_steps: int) -> None:
    """A beat nobody listens to."""


class Group:
    """A store and a forkserver; every run is a group of fresh processes."""

    def __init__(self, directory: Path) -> None:
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._context = mp.get_context("forkserver")
        self._context.set_forkserver_preload(
            [
                *preload.MODULES,
                *preload.modules_of([tiny_case("zero3", driver="accelerate")]),
                *registry.load("model family", "huggingface").preload,
                "andromeda_scale.worker",
            ]
        )
        self._directory = directory
        self._runs = 0

    def specs(self, case: Case, world_size: int, **overrides: Any) -> list[RankSpec]:
        """What an agent would tell each rank of the next run."""
        self._runs += 1
        case = case.model_copy(update={"world": World(ranks_per_node=world_size)})
        role = overrides.pop("role", "measure")
        item = PlannedRepeat(case_id=case.case_id, repeat=0, role=role)
        return [
            RankSpec(
                **{
                    "case": case,
                    "item": item,
                    "rank": rank,
                    "world_size": world_size,
                    "local_rank": rank,
                    "node_rank": 0,
                    "store_host": "127.0.0.1",
                    "store_port": self._store.port,
                    "store_prefix": f"{case.case_id}/0/{self._runs}",
                    "record_path": str(self._directory / f"{self._runs}-{rank}.jsonl"),
                    **overrides,
                }
            )
            for rank in range(world_size)
        ]

    def run_case(self, case: Case, world_size: int = 1, **overrides: Any) -> list[list[Line]]:
        """Run the worker on every rank; returns the record lines of each rank, in rank order."""
        specs = self.specs(case, world_size, **overrides)
        self.run(worker.main, [(spec, no_beat) for spec in specs])
        return [read_lines(Path(spec.record_path)) for spec in specs]

    def run(
        self,
        target: Callable[..., Any],
        arguments: Sequence[tuple[Any, ...]],
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Run `target` in one process per tuple of arguments; kill those that outlive a failure."""
        ranks = [self._context.Process(target=in_rank, args=(target, *a)) for a in arguments]
        for rank in ranks:
            rank.start()
        deadline = time.monotonic() + timeout_s
        while any(r.is_alive() for r in ranks) and time.monotonic() < deadline:
            mp.connection.wait([r.sentinel for r in ranks if r.is_alive()], timeout=1.0)
            if any(not r.is_alive() for r in ranks):
                deadline = min(deadline, time.monotonic() + GRACE_S)
        for rank in ranks:
            rank.kill()
            rank.join()


def read_lines(path: Path) -> list[Line]:
    """The lines of one rank's record."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def of_kind(lines: list[Line], kind: str) -> list[Line]:
    """Lines of one kind."""
    return [line for line in lines if line["kind"] == kind]


def phase_values(lines: list[Line], phase: str) -> dict[str, Any]:
    """What a rank wrote in a phase."""
    found: dict[str, Any] = next(x for x in of_kind(lines, "phase") if x["phase"] == phase)
    values: dict[str, Any] = found["values"]
    return values


def end(lines: list[Line]) -> Line:
    """A rank's end line, which is its last."""
    assert lines, "the rank wrote nothing"
    assert lines[-1]["kind"] == "end", lines[-1]
    return lines[-1]
