"""The search for one case's micro batch: trials until the largest that runs is known. No torch.

A trial is a launch in fresh processes: a rank that runs out of memory leaves its collectives, and
so the other ranks, in no known state. That one rank does not fit is then how the launch ended.
Trials lie in the search's directory by their size; a search that was stopped goes on after them.
"""

from __future__ import annotations

from typing import Any

from andromeda_scale.contracts.planned import PlannedRepeat
from andromeda_scale.contracts.records import read_repeat
from andromeda_scale.launch.run_dir import RunDir
from andromeda_scale.launch.verdict import Verdict
from andromeda_scale.suite import micro_batch
from andromeda_scale.suite.config import Case

# Another size would end alike, or be asked for again.
_NOT_OF_THE_SIZE = ("interrupted", "unavailable", "invalid", "skipped")
# A rank or a node that was lost: of its size, as a host short of memory kills too, or by chance.
_LOST = ("crashed", "node_failed")


def next_trial(run_dir: RunDir, item: PlannedRepeat, case: Case) -> PlannedRepeat | None:
    """The launch to make next; None when the search is over."""
    ran = _ran(run_dir, item)
    used = {size: _used(run_dir, _trial(item, size), case) for size in ran}
    told = {size: share for size, share in used.items() if share is not None}
    size = micro_batch.next_size(micro_batch.sizes(case), case.train.micro_batch_size, ran, told)
    return None if size is None else _trial(item, size)


def begin(run_dir: RunDir, item: PlannedRepeat) -> None:
    """Forget the trials of a search that failed and is asked for again; all others go on."""
    status = run_dir.status(item)
    if status is not None and status["status"] not in ("interrupted", "skipped"):
        run_dir.forget(item)


def is_doubtful(trial: Verdict) -> bool:
    """Whether a trial says of its size only if it ends so twice."""
    return trial.status in _LOST


def ends(trial: Verdict) -> Verdict | None:
    """How a search ends by how one of its trials did; None: it goes on."""
    if trial.status not in _NOT_OF_THE_SIZE:
        return None
    return trial


def outcome(run_dir: RunDir, item: PlannedRepeat, case: Case) -> Verdict:
    """How a search ended whose trials have: ok with a size, else as its smallest trial did."""
    sizes, ran = micro_batch.sizes(case), _ran(run_dir, item)
    if micro_batch.largest_that_ran(sizes, ran) is not None:
        return Verdict(status="ok")
    last = run_dir.status(_trial(item, sizes[0])) or {}
    known = {key: last.get(key) for key in ("status", "rank", "host", "phase", "cause")}
    memory = "not enough memory for " if known["status"] == "oom" else ""
    return Verdict.model_validate(
        known | {"cause": f"{memory}micro_batch_size {sizes[0]}: {known['cause']}"}
    )


def summary(run_dir: RunDir, item: PlannedRepeat, case: Case) -> dict[str, Any]:
    """What a search adds to its status: the size found, the margin, every size with its status."""
    statuses = _statuses(run_dir, item)
    return {
        "found": micro_batch.largest_that_ran(micro_batch.sizes(case), _ran(run_dir, item)),
        "margin": micro_batch.MARGIN,
        "tried": [
            {"size": size, "status": status["status"], "cause": status.get("cause")}
            for size, status in sorted(statuses.items())
        ],
    }


def under_way(run_dir: RunDir, item: PlannedRepeat) -> list[PlannedRepeat]:
    """Trials of a search that have begun and not ended."""
    names = (path.name for path in run_dir.path.glob("running/*"))
    stem = f"{item.case_id}-"
    sizes = (name.removeprefix(stem).partition("-")[0] for name in names if name.startswith(stem))
    return [_trial(item, int(size)) for size in sizes if size.isdecimal()]


def _trial(item: PlannedRepeat, size: int) -> PlannedRepeat:
    return item.model_copy(update={"role": "trial", "repeat": size})


def _statuses(run_dir: RunDir, item: PlannedRepeat) -> dict[int, dict[str, Any]]:
    """status.json of every trial that ended, by size."""
    folder = run_dir.case_dir(item).parent
    sizes = [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]
    found = {size: run_dir.status(_trial(item, size)) for size in sizes if size}
    return {size: status for size, status in found.items() if status is not None}


def _ran(run_dir: RunDir, item: PlannedRepeat) -> dict[int, bool]:
    """By size, whether it runs; a trial that tells nothing of it is made again."""
    return {
        size: status["status"] == "ok"
        for size, status in _statuses(run_dir, item).items()
        if status["status"] not in _NOT_OF_THE_SIZE
    }


def _used(run_dir: RunDir, trial: PlannedRepeat, case: Case) -> float | None:
    """The share of its memory that the fullest rank of a trial used; None: some rank cannot tell.

    One that was refused memory, or ended by another's failure, does not know what it needed.
    """
    record = read_repeat(run_dir.case_dir(trial), trial.case_id, trial.repeat, case.world.size)
    shares = []
    for rank in record.ranks.values():
        room = rank.values("warmup", "room") or (rank.end or {}).get("detail") or {}
        used, capacity = room.get("used_bytes"), room.get("capacity_bytes")
        if isinstance(used, int) and isinstance(capacity, int) and capacity > 0:
            shares.append(used / capacity)
    return max(shares) if shares and len(shares) == case.world.size else None
