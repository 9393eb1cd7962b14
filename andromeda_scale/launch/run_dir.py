"""The run directory: plan, lock, the repeats' directories, what is finished and what is not.

    plan.json  suite.yaml  fingerprint.json  calibration.json  lock
    cases/<case_id>/<repeat>/        a repeat that ended: complete, with status.json
    references/<case_id>/<repeat>/   the same for parity references, which have no row in results
    parity/<case_id>/<repeat>/       and for parity launches on a shallow model
    probes/<case_id>/<repeat>/       and for launches that probe the machine
    searches/<case_id>/<size>/       and for launches that try a micro batch; 0/ is what they found
    running/<case_id>-<repeat>-<attempt>/   being written; moved to its place when it ended
    slurm/                           of a submitted run: suite, script, jobs, their logs
    tasks/<index>/                   of one submitted as an array: a run a case

A directory moves to its place whole, so a repeat is either finished or has nothing there.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

from andromeda_scale.contracts.planned import Plan, PlannedRepeat, Role, read_plan
from andromeda_scale.contracts.records import read_repeat, read_status
from andromeda_scale.errors import UserError
from andromeda_scale.hardware import calibration
from andromeda_scale.launch import lock
from andromeda_scale.launch.disk import full_disk, is_full, make_writable, write_atomic
from andromeda_scale.planning.search import Found, settle

RUNS = Path("runs")  # where a run goes that is given no directory
FAILED = frozenset(
    {"crashed", "timeout", "oom", "node_failed", "interrupted", "invalid", "diverged"}
    | {"unavailable"}
)
# Not kept by a resume: an interrupted repeat never ended, and a skipped one costs nothing to ask
# again whether it fits the machine now.
_NOT_FINISHED = frozenset({"interrupted", "skipped"})
NOT_ENDED = ("pending", "interrupted")  # what is left of a run
# What may lie in a directory that holds no run yet: a submitted job's files, and what a driver
# that was killed at once leaves of a plan.
_BEFORE_A_PLAN = re.compile(r"lock|slurm|tasks|\.(probe|plan\.json)\.\d+")
_HALF_WRITTEN = re.compile(r"\.(probe|[a-z]+\.[a-z]+)\.\d+")  # by write_atomic and make_writable


class RunDir:
    """One run on disk. Only its driver, which holds the lock, writes to it."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = path
        self.plan = plan

    @classmethod
    def create(
        cls,
        path: str | Path,
        plan: Plan,
        suite_text: str,
        fingerprint: Mapping[str, Any],
        *,
        allow_mixed: bool = False,
    ) -> Self:
        """Make the directory of a new run, or take up that of an earlier run of the same cases.

        Raises UserError if it cannot be written, holds something else or another suite's run,
        is in use, or was measured with another code, libraries or hardware.
        """
        path = Path(path).absolute()
        make_writable(path)
        is_new = not (path / "plan.json").exists()
        if not is_new:
            old = cls.open(path)
            if not old.holds(plan):
                raise UserError(
                    f"{path}: holds a run of other cases (suite {old.plan.suite_name!r}); choose "
                    f"another --run-dir, or resume that run with `andromeda-scale resume {path}`"
                )
            plan = old.keep_ended(old._settled(plan))
        elif not all(_BEFORE_A_PLAN.fullmatch(entry.name) for entry in path.iterdir()):
            raise UserError(f"{path}: is not empty and holds no run; choose another --run-dir")
        run = cls(path, plan)
        try:
            with run.lock():
                if is_new:
                    run._write_plan()  # first: what a kill leaves is a run
                run.check_fingerprint(fingerprint, allow_mixed=allow_mixed)
                write_atomic(path / "suite.yaml", suite_text)
                run.calibrate(fingerprint)
                run._write_plan()
        except OSError as error:
            if not is_full(error):
                raise
            raise UserError(full_disk(path, error)) from None
        return run

    def holds(self, plan: Plan) -> bool:
        """Whether this is a run of the cases of a plan, whatever sizes it found for them."""
        return _asked(self.plan) == _asked(plan)

    def settle(self) -> bool:
        """Give cases the micro batches that searches found; whether the plan is another now."""
        plan = self._settled(self.plan)
        if plan == self.plan:
            return False
        self.plan = plan
        self._write_plan()
        return True

    def replanned(self, plan: Plan) -> Self:
        """The same run by another plan, which it holds from now on.

        Raises UserError naming the driver that holds the run.
        """
        run = type(self)(self.path, plan)
        with run.lock():
            run._write_plan()
        return run

    def _write_plan(self) -> None:
        write_atomic(self.path / "plan.json", self.plan.model_dump_json(indent=1))

    def after_searches(self) -> list[PlannedRepeat]:
        """What is left to launch where searches have ended that it waited for; else nothing."""
        return self.todo() if self.settle() else []

    def _settled(self, plan: Plan) -> Plan:
        searches = {i: self.status(i) for i in plan.repeats if i.role == "search"}
        ended = {
            item.case_id: found_of(status)
            for item, status in searches.items()
            if status is not None and status["status"] != "interrupted"
        }
        return settle(plan, ended)

    def keep_ended(self, plan: Plan) -> Plan:
        """A newer plan of the same cases, with what has ended here and it no longer asks for."""
        asked = {(item.role, item.case_id, item.repeat) for item in plan.repeats}
        kept = tuple(
            item
            for item, word in self.statuses()
            if word != "pending"
            and word not in _NOT_FINISHED
            and (item.role, item.case_id, item.repeat) not in asked
        )
        if not kept:
            return plan
        note = f"{len(kept)} launches of an earlier plan with more repeats are kept and counted"
        return plan.model_copy(
            update={"repeats": plan.repeats + kept, "notes": (*plan.notes, note)}
        )

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """An existing run. Raises UserError if there is none, or its plan cannot be read."""
        path = Path(path).absolute()
        return cls(path, read_plan(path))

    def check_fingerprint(self, current: Mapping[str, Any], *, allow_mixed: bool = False) -> None:
        """Store the first fingerprint; refuse another one, naming what differs.

        With `allow_mixed` the run goes on: every repeat records its own environment.
        """
        file = self.path / "fingerprint.json"
        current = json.loads(json.dumps(current, default=str))
        if not file.exists():
            write_atomic(file, json.dumps(current, indent=1, sort_keys=True))
            return
        try:
            first = json.loads(file.read_text())
            if not isinstance(first, dict):
                raise ValueError("it holds no object")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{file}: is damaged ({error}); start a new run, or delete this file if the run "
                "was measured with the present code and hardware"
            ) from None
        differing = sorted(
            k for k in first.keys() | current.keys() if first.get(k) != current.get(k)
        )
        if differing and not allow_mixed:
            changes = "; ".join(f"{k}: {first.get(k)!r}, now {current.get(k)!r}" for k in differing)
            raise UserError(
                f"{self.path}: was measured with other code or hardware ({changes}); start a new "
                "run, or mix them in one table on purpose with --allow-mixed"
            )

    def calibrate(self, hardware: Mapping[str, Any]) -> None:
        """Copy here what is known of this hardware; an older copy stays where nothing is newer."""
        file = self.path / calibration.FILE
        if known := calibration.load(hardware):
            old = calibration.read(file)
            old.pop("problem", None)  # mended by what is written now
            write_atomic(file, json.dumps({**old, **known}, indent=1))

    def lock(self) -> AbstractContextManager[int]:
        """Hold the run for this driver; yields the descriptor whose inheritors hold it too.

        Raises UserError naming the process and host that hold it.
        """
        return lock.held(self.path)

    def holder(self) -> tuple[int, str] | None:
        """(process id, host) of the driver that holds the run; None: nobody does."""
        return lock.holder(self.path)

    # Repeats

    def case_dir(self, item: PlannedRepeat) -> Path:
        """Where a repeat that ended lies."""
        return self.path / item.folder

    def status(self, item: PlannedRepeat) -> dict[str, Any] | None:
        """status.json of a repeat; None if it did not end, or the file says nothing known: a
        merge has no numbers of it either, and a resume launches it again."""
        status, _ = read_status(self.case_dir(item) / "status.json")
        return status or None

    def statuses(self) -> list[tuple[PlannedRepeat, str]]:
        """Every item of the plan with its status word; "pending" without a status.json, and
        "interrupted" with one that says nothing known."""

        def word(item: PlannedRepeat) -> str:
            status, unread = read_status(self.case_dir(item) / "status.json")
            return str(status.get("status", "interrupted" if unread else "pending"))

        return [(item, word(item)) for item in self.plan.repeats]

    def todo(self, *, only_failed: bool = False) -> list[PlannedRepeat]:
        """What is left to launch, in the order of the plan.

        Everything that did not end, or with `only_failed` what ended in failure, was measured
        without its reference because that failed, or has a record that is damaged since. A
        reference or parity launch that is not ok is
        launched again when something that needs it is. While a micro batch is to be found, the
        searches alone: the rest of the plan waits for them.
        """
        statuses = self.statuses()
        lost = {i.case_id for i, word in statuses if i.role == "reference" and word in FAILED}

        def wanted(item: PlannedRepeat, word: str) -> bool:
            if item.role == "reference" or (item.role == "parity" and not only_failed):
                return False
            if only_failed:
                return word in FAILED or (
                    word == "ok" and (item.reference_id in lost or self.is_damaged(item))
                )
            return word == "pending" or word in _NOT_FINISHED

        asked = {item for item, word in statuses if wanted(item, word)}
        waiting = (i for i in asked if i.role == "measure" and i.case_id == i.search_id)
        if any(waiting):
            return [item for item in self.plan.repeats if item in asked and item.role == "search"]
        roles: tuple[Role, ...] = ("parity", "reference")  # parity launches need references too
        for role in roles:
            needed = {i.parity_id if role == "parity" else i.reference_id for i in asked}
            asked |= {
                item
                for item, word in statuses
                if item.role == role and word != "ok" and item.case_id in needed
            }
        return [item for item in self.plan.repeats if item in asked]

    def is_damaged(self, item: PlannedRepeat) -> bool:
        """Whether a record that ended ok lacks the end of a rank: a merge has no numbers of it."""
        if item.role != "measure":
            return False
        directory, size = self.case_dir(item), self.plan.cases[item.case_id].world.size
        found = read_repeat(directory, item.case_id, item.repeat, size)
        return sum(rank.end is not None for rank in found.ranks.values()) < size

    def begin(self, item: PlannedRepeat, attempt: int) -> Path:
        """A fresh directory for an attempt at a repeat."""
        path = self.path / "running" / f"{item.case_id}-{item.repeat}-{attempt}"
        path.mkdir(parents=True)
        return path

    def finish(self, item: PlannedRepeat, attempt: Path, status: Mapping[str, Any]) -> None:
        """Write status.json and move the attempt to its place, where it replaces an older one."""
        write_atomic(attempt / "status.json", json.dumps(status, indent=1))
        self.place(item, attempt)

    def place(self, item: PlannedRepeat, attempt: Path) -> None:
        """Move the directory of a repeat that ended to its place."""
        place = self.case_dir(item)
        place.parent.mkdir(parents=True, exist_ok=True)
        old = place.with_name(f"{place.name}.old")
        if place.exists():
            place.rename(old)  # a kill between these two renames is mended by `recover`
        attempt.rename(place)
        shutil.rmtree(old, ignore_errors=True)

    def forget(self, item: PlannedRepeat) -> None:
        """Remove all that lies beside an item, at once: what a kill leaves is cleared."""
        gone = self.path / "running" / f"{item.case_id}-gone"
        gone.parent.mkdir(exist_ok=True)
        self.case_dir(item).parent.rename(gone)
        shutil.rmtree(gone)

    def recover(self) -> None:
        """Clear what a killed driver left half done. Call it with the lock held."""
        shutil.rmtree(self.path / "running", ignore_errors=True)
        for unfinished in self.path.glob(".*.[0-9]*"):
            if _HALF_WRITTEN.fullmatch(unfinished.name):
                unfinished.unlink(missing_ok=True)
        for old in self.path.glob("*/*/*.old"):
            place = old.with_suffix("")
            if place.exists():
                shutil.rmtree(old)
            else:
                old.rename(place)


def fresh(name: str, parent: Path = RUNS) -> Path:
    """A directory below `parent`, named by the time, in which nothing is yet."""
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, count = parent / stem, 1
    while path.exists():
        count += 1
        path = parent / f"{stem}-{count}"
    return path


def _asked(plan: Plan) -> set[str]:
    """The cases that a suite asked for: as they were before a size was found."""
    roles = ("measure", "probe", "search")
    return {i.case_id for i in plan.repeats if i.role in roles and i.search_id is None}


def found_of(status: Mapping[str, Any]) -> Found:
    """What a search's status.json says of its size."""
    size = status.get("found")
    if type(size) is int:
        return Found(size)
    return Found(None, f"its search for a micro batch is {status['status']}: {status.get('cause')}")
