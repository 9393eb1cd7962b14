"""The schema of a plan, and of what an agent tells each rank. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from andromeda_scale.contracts import parity
from andromeda_scale.hardware.machine import Machine
from andromeda_scale.suite.config import Case
from andromeda_scale.suite.schema import Schema

Role = Literal["measure", "reference", "parity", "probe", "search", "trial"]


_FOLDERS: dict[Role, str] = {
    "measure": "cases",
    "reference": "references",
    "parity": "parity",
    "probe": "probes",
    "search": "searches",
    "trial": "searches",
}


class PlannedRepeat(Schema):
    """One line of the plan: a case launched once more in fresh processes.

    `role` "reference" marks a single-process run with whose first losses others are compared,
    "parity" the first steps of a case's strategy on the shallow model; neither has a row in
    results. "probe" measures this machine, and is alone in its plan. "search" finds the micro batch
    of a case by launches that no plan holds: each a "trial", with the size it tries as `repeat`.
    `skip` holds the reason why nothing will be launched.
    """

    case_id: str
    repeat: NonNegativeInt
    role: Role = "measure"
    reference_id: str | None = None  # case_id of the reference that this launch is compared with
    parity_id: str | None = None  # case_id of the parity launch that stands for this case
    search_id: str | None = None  # case_id of the search that finds this launch's micro batch
    device: Literal["cpu", "cuda"] = "cpu"
    threads_per_rank: PositiveInt = 1
    skip: str | None = None
    estimated_memory_bytes: NonNegativeInt | None = None  # per rank, from cost/

    @property
    def folder(self) -> str:
        """Where it lies in a run directory when it has ended."""
        kind = _FOLDERS[self.role]
        return f"{kind}/{self.case_id}/{self.repeat}"


class Plan(Schema):
    """The ordered list of (case, repeat) a suite expands to, with every case by id: plan.json."""

    schema_version: int = 1
    suite_name: str
    question: str
    cases: dict[str, Case]
    repeats: tuple[PlannedRepeat, ...]
    notes: tuple[str, ...] = ()  # what the planner decided, for people: order, duplicates, threads
    problems: tuple[str, ...] = ()  # what was asked for and cannot be had, for every table
    machine: Machine | None = None  # it was made for, where something is still to be found


class RankSpec(Schema):
    """What an agent tells one rank it forks: everything the worker needs, as plain data."""

    case: Case
    item: PlannedRepeat
    rank: NonNegativeInt
    world_size: PositiveInt
    local_rank: NonNegativeInt  # index of the rank on its node: chooses the device
    node_rank: NonNegativeInt
    store_host: str
    store_port: PositiveInt  # the agents' TCPStore; the group's keys are prefixed below
    store_prefix: str  # "<case_id>/<repeat>/<attempt>"
    record_path: str  # this rank's JSONL file
    reference: parity.First | None = None  # what its first steps are compared with
    compile_cache: str | None = None  # torch.compile's directory for this case on this node
