"""Close the repeat that an agent was in when it was killed. No torch."""

from __future__ import annotations

import socket
import time

from andromeda_scale.contracts.planned import PlannedRepeat
from andromeda_scale.contracts.records import SCHEMA_VERSION
from andromeda_scale.launch import searching
from andromeda_scale.launch.messages import Event
from andromeda_scale.launch.node_files import write_node_file
from andromeda_scale.launch.run_dir import RunDir
from andromeda_scale.launch.time_left import kind
from andromeda_scale.launch.verdict import Verdict


def close_lost(run_dir: RunDir, item: PlannedRepeat, cause: str) -> Event | None:
    """Close an item's attempt as node_failed with the lines its ranks left, and clear the rest.

    Returns the event of its end; None if there is no attempt: it had not begun, or had ended, or it
    is a search, of which only the trial under way is lost and counts as one that does not run.
    """
    if item.role == "search":
        for trial in searching.under_way(run_dir, item):
            close_lost(run_dir, trial, cause)
        run_dir.recover()
        return None
    stem = f"{item.case_id}-{item.repeat}-"
    attempts = [p for p in run_dir.path.glob("running/*") if p.name.startswith(stem)]
    if not attempts:
        return None
    attempt = attempts[0]
    if not (attempt / "node-0.jsonl").exists():
        write_node_file(attempt, 0, sorted(attempt.glob("rank-*.jsonl")), None)
    name = {"case_id": item.case_id, "repeat": item.repeat, "role": item.role}
    verdict = Verdict(status="node_failed", host=socket.gethostname(), cause=cause)
    end = {**name, **verdict.model_dump(mode="json")}
    run_dir.finish(item, attempt, {"v": SCHEMA_VERSION, **end, "ended_unix_s": time.time()})
    run_dir.recover()
    of_kind = kind(item, run_dir.plan.cases[item.case_id])
    return {"event": "end", **end, "seconds": 0.0, "kind": of_kind}
