"""A sweep as an array of jobs: one case a task, in a run of its own, then one run of them all.

    RUN/tasks/<index>/      the run of one case; its index counts the cases' ids in sorted order

Every task makes the same plan and takes its case. No torch.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from andromeda_scale.contracts.planned import Plan, PlannedRepeat
from andromeda_scale.errors import UserError
from andromeda_scale.launch.run_dir import RunDir

TASKS = "tasks"


def case_ids(plan: Plan) -> list[str]:
    """The measured cases of a plan, in the order that numbers an array's tasks."""
    return sorted({item.case_id for item in plan.repeats if item.role == "measure"})


def one_case(plan: Plan, path: Path, env: Mapping[str, str]) -> tuple[Plan, Path]:
    """(the part of a plan that is this task's, where it runs). Raises UserError."""
    index, ids = env.get("SLURM_ARRAY_TASK_ID", ""), case_ids(plan)
    if not index.isdecimal() or int(index) >= len(ids):
        raise UserError(
            f"SLURM_ARRAY_TASK_ID={index!r}: is none of the {len(ids)} cases of this suite; "
            "submit it anew"
        )
    mine = ids[int(index)]
    items = {i for i in plan.repeats if i.role in ("measure", "search") and i.case_id == mine}
    for role in ("parity", "reference"):  # parity launches need references too
        needed = {i.parity_id if role == "parity" else i.reference_id for i in items}
        items |= {i for i in plan.repeats if i.role == role and i.case_id in needed}
    repeats = tuple(item for item in plan.repeats if item in items)
    cases = {item.case_id: plan.cases[item.case_id] for item in repeats}
    return plan.model_copy(update={"repeats": repeats, "cases": cases}), path / TASKS / index


def gather(run: RunDir) -> None:
    """Take into `run` what its tasks have ended; a case that no task ran stays pending."""
    with run.lock():
        run.recover()
        tasks = list(_readable(sorted((run.path / TASKS).glob("*/plan.json"))))
        _take_all(run, tasks, searches=True)
        run.settle()  # the rest is planned by what searches found
        _take_all(run, tasks, searches=False)


def _readable(plans: Sequence[Path]) -> Iterator[RunDir]:
    """The runs of these plans; one that is damaged costs its case alone."""
    for plan in plans:
        try:
            yield RunDir.open(plan.parent)
        except UserError as error:
            print(f"problem: {error}; its case is left as it is", file=sys.stderr)


def _take_all(run: RunDir, tasks: Sequence[RunDir], *, searches: bool) -> None:
    wanted = {(item.role, item.case_id, item.repeat): item for item in run.plan.repeats}
    for task in tasks:
        for item, word in task.statuses():
            mine = wanted.get((item.role, item.case_id, item.repeat))
            if (item.role == "search") is searches and mine is not None and word != "pending":
                _take(run, mine, task.case_dir(item))


def _take(run: RunDir, item: PlannedRepeat, source: Path) -> None:
    """Put a copy of an ended repeat into its place, whole; hard links, where the disk has them."""
    attempt = run.begin(item, 0)
    for file in source.iterdir():
        if file.is_file():
            try:
                os.link(file, attempt / file.name)
            except OSError:
                shutil.copy(file, attempt / file.name)
    run.place(item, attempt)
