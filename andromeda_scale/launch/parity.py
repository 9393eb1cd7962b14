"""What a launch is compared with, and what an earlier launch already decided of it. No torch."""

from __future__ import annotations

import json
import sys
from typing import Any

from andromeda_scale.contracts import parity
from andromeda_scale.contracts.planned import PlannedRepeat, Role
from andromeda_scale.launch.ranks import complete_lines
from andromeda_scale.launch.run_dir import RunDir
from andromeda_scale.launch.verdict import Verdict


def reference_of(run_dir: RunDir, item: PlannedRepeat) -> parity.First | None:
    """The first losses and norms of an item's reference; None if it has none or it failed."""
    other = _find(run_dir, "reference", item.reference_id)
    if other is None or (run_dir.status(other) or {}).get("status") != "ok":
        return None
    files = sorted(run_dir.case_dir(other).glob("node-*.jsonl"))
    lines = [json.loads(line) for file in files for line in complete_lines(file)]
    try:
        return parity.first([[line["values"] for line in lines if line.get("kind") == "phase"]])
    except ValueError as error:
        print(f"{item.reference_id}: {error}", file=sys.stderr)
        return None


def foregone(run_dir: RunDir, item: PlannedRepeat) -> Verdict | None:
    """How an item ends without being launched; None if it is to be launched.

    A case whose parity launch diverged is diverged too, and a parity launch without its reference
    would compare nothing.
    """
    if item.role == "parity" and reference_of(run_dir, item) is None:
        reference = _find(run_dir, "reference", item.reference_id)
        return Verdict(status="unavailable", cause=f"its reference {_ending(run_dir, reference)}")
    launch = _find(run_dir, "parity", item.parity_id)
    status = run_dir.status(launch) if launch is not None else None
    if status is not None and status["status"] == "diverged":
        return Verdict(status="diverged", cause=f"on the shallow model: {status.get('cause')}")
    return None


def _find(run_dir: RunDir, role: Role, case_id: str | None) -> PlannedRepeat | None:
    if case_id is None:
        return None
    items = (i for i in run_dir.plan.repeats if i.role == role and i.case_id == case_id)
    return next(items, None)


def _ending(run_dir: RunDir, item: PlannedRepeat | None) -> str:
    status: dict[str, Any] = (run_dir.status(item) if item is not None else None) or {}
    cause = f": {status['cause']}" if status.get("cause") else ""
    return f"is {status.get('status', 'not there')}{cause}"
