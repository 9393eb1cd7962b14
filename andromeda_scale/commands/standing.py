"""What `report` says of a run that has not ended, and of tables on disk that are not of now."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from andromeda_scale.commands.stopping import resume_of
from andromeda_scale.launch import lock
from andromeda_scale.launch.run_dir import NOT_ENDED, RunDir

if TYPE_CHECKING:
    from andromeda_scale.analysis.results import Results


def standing(run_dir: Path) -> str:
    """That a run is under way or left unfinished, and what its table is of; empty: neither.

    To be asked before its records are read: what ends meanwhile is in the table and not counted.
    """
    from andromeda_scale.merge import has_records

    if not has_records(run_dir):  # a copy of the tables alone
        return ""
    run = RunDir.open(run_dir)
    held = lock.is_held(run_dir)
    counts = Counter(word for item, word in run.statuses() if item.skip is None)
    left = sum(counts[word] for word in NOT_ENDED)
    if not left:
        return ""
    said = f"{counts.total() - left} of {counts.total()} launches ended; the table is of those"
    if held:
        return f"under way: {said}"
    return f"left unfinished, its driver is gone: {said}; go on with: {resume_of(run_dir)}"


def stale(run_dir: Path, results: Results) -> str:
    """That the tables which a run wrote are not those of its records now; empty: they are, there
    is none, or its driver will write them."""
    from andromeda_scale.commands.sweep import texts

    def differs(name: str, text: str) -> bool:
        try:
            return (run_dir / name).read_bytes() != text.encode()
        except OSError:  # not there, or not ours to see
            return False

    if lock.is_held(run_dir):
        return ""
    old = [name for name, text in texts(results).items() if differs(name, text)]
    if not old:
        return ""
    return (
        f"{run_dir}: {', '.join(old)} are older than what is shown: report writes none of them, "
        f"{resume_of(run_dir)} does"
    )
