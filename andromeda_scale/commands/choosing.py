"""Where a run goes: a directory that was named, an earlier run, or a fresh one. No torch."""

from __future__ import annotations

from pathlib import Path

from andromeda_scale.contracts.planned import Plan
from andromeda_scale.errors import UserError
from andromeda_scale.launch.run_dir import NOT_ENDED, RunDir, fresh
from andromeda_scale.suite import paths


def choose(
    plan: Plan, parent: Path, run_dir: Path | None, *, new: bool = False, only_failed: bool = False
) -> tuple[Path, bool]:
    """(where this plan runs, whether that takes up an earlier run).

    A given `run_dir`; else the newest run of the same suite and cases under `parent` if it is
    unfinished (or, with `only_failed`, in any state); else a fresh directory named by the time.
    Raises UserError, before anything is written.
    """
    if run_dir is not None:
        exists = paths.exists(run_dir / "plan.json")
        if exists and new:
            raise UserError(
                f"--run-dir {run_dir}: holds a run already; leave out --new to go on with it, "
                "or name another directory"
            )
        if only_failed and not exists:
            raise UserError(f"--run-dir {run_dir}: holds no run; leave out --only to start one")
        return run_dir, exists
    earlier = None if new else _newest(plan, parent)
    if earlier is not None and (only_failed or _unfinished(earlier)):
        return parent / earlier.path.name, True
    if only_failed:
        raise UserError(
            f"--only failed: no run of {plan.suite_name} with these cases lies under {parent}/; "
            "name its directory with --run-dir, or leave out --only"
        )
    return fresh(plan.suite_name, parent), False


def place(suite_name: str, run_dir: Path | None) -> Path:
    """Where a new run goes: the given directory, or a fresh one named by the time."""
    return run_dir or fresh(suite_name)


def _newest(plan: Plan, parent: Path) -> RunDir | None:
    """The newest run of the same suite and cases under `parent`."""
    candidates = parent.glob(f"{plan.suite_name}-*/plan.json")
    for file in sorted(candidates, key=lambda f: f.stat().st_mtime, reverse=True):
        try:
            run = RunDir.open(file.parent)
        except UserError:
            continue  # damaged, or of another version: never resumed, never touched
        if run.plan.suite_name == plan.suite_name and run.holds(plan):
            return run
    return None


def _unfinished(run: RunDir) -> bool:
    return any(
        item.skip is None and item.role in ("measure", "probe") and word in NOT_ENDED
        for item, word in run.statuses()
    )
