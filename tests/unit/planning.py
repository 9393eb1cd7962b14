"""Suites and plans of tests, and the machines they are made for."""

from __future__ import annotations

from typing import Any

from andromeda_scale.contracts.planned import Plan, PlannedRepeat
from andromeda_scale.hardware.machine import Machine
from andromeda_scale.planning.plan import make_plan
from andromeda_scale.suite.config import Case, Suite
from andromeda_scale.suite.validation import validate

GIB = 1 << 30
TWO_CORES = Machine(cpu_cores=2, memory_bytes=16 * GIB)
EIGHT_GPUS = Machine(cpu_cores=64, gpus=[80 * GIB] * 8, memory_bytes=512 * GIB)
ONE_GPU = Machine(cpu_cores=8, gpus=[80 * GIB], memory_bytes=64 * GIB)
AUTO = {"seq_len": 256, "micro_batch_size": "auto"}  # as `train`: its size is searched for


def suite(**keys: Any) -> Suite:
    base: dict[str, Any] = {
        "question": "Why?",
        "model": "andromeda-tiny",
        "data": {"source": "random"},
        "strategy": "ddp",
        "world": [1, 2],
    }
    return validate(Suite, base | keys, "x.yaml")


def plan(machine: Machine = TWO_CORES, **keys: Any) -> Plan:
    return make_plan(suite(**keys), "x", machine)


def measured(made: Plan) -> list[tuple[Case, PlannedRepeat]]:
    """Each case with its first item, without references."""
    first: dict[str, PlannedRepeat] = {}
    for item in made.repeats:
        if item.role == "measure":
            first.setdefault(item.case_id, item)
    return [(made.cases[case_id], item) for case_id, item in first.items()]


def skips(made: Plan) -> dict[str, str | None]:
    return {str(case.world): item.skip for case, item in measured(made)}
