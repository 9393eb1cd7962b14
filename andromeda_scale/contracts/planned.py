"""The schema of a plan, and of what an agent tells each rank. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, NonNegativeInt, PositiveInt, ValidationError

from andromeda_scale.contracts import parity
from andromeda_scale.contracts.records import SCHEMA_VERSION, wrong_version
from andromeda_scale.errors import UserError
from andromeda_scale.hardware.machine import Machine
from andromeda_scale.suite.config import Case
from andromeda_scale.suite.schema import Device, Schema

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
    device: Device = "cpu"
    threads_per_rank: PositiveInt = 1
    skip: str | None = None
    estimated_memory_bytes: NonNegativeInt | None = None  # per rank, from cost/

    @property
    def folder(self) -> str:
        """Where it lies in a run directory when it has ended."""
        kind = _FOLDERS[self.role]
        return f"{kind}/{self.case_id}/{self.repeat}"


def _readable(version: int) -> int:
    if wrong := wrong_version(version):
        raise ValueError(wrong)
    return version


class Plan(Schema):
    """The ordered list of (case, repeat) a suite expands to, with every case by id: plan.json."""

    # First, so that a plan of another version is told as one, whatever else differs in it.
    schema_version: Annotated[int, AfterValidator(_readable)] = SCHEMA_VERSION
    suite_name: str
    question: str
    cases: dict[str, Case]
    repeats: tuple[PlannedRepeat, ...]
    notes: tuple[str, ...] = ()  # what the planner decided, for people: order, duplicates, threads
    problems: tuple[str, ...] = ()  # what was asked for and cannot be had, for every table
    machine: Machine | None = None  # it was made for, where something is still to be found


def read_plan(run_dir: Path) -> Plan:
    """The plan that a run was made by. Raises UserError if there is none that can be read."""
    path = run_dir / "plan.json"
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{run_dir}: holds no run ({error.strerror}: plan.json); give the directory that "
            "`andromeda-scale run` named"
        ) from None
    try:
        plan = Plan.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        what = f"{key}: {first['msg'].removeprefix('Value error, ')}" if key else first["msg"]
        raise _unreadable(path, what) from None
    if unknown := {item.case_id for item in plan.repeats} - plan.cases.keys():
        what = f"repeats name cases that it does not hold: {', '.join(sorted(unknown))}"
        raise _unreadable(path, what)
    return plan


def _unreadable(path: Path, what: str) -> UserError:
    return UserError(
        f"{path}: {what}; it was written by another version or is damaged: use that version, or "
        "start a new run"
    )


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
