"""What the search for a case's micro batch found, from its status.json. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from andromeda_scale.contracts.planned import Plan, PlannedRepeat
from andromeda_scale.contracts.records import read_status
from andromeda_scale.merge.values import integer, number

COLUMNS: dict[str, str] = {
    "search_id": "str",  # of the case as it was asked; empty: the size was given
    "micro_batch_asked": "str",  # auto, auto_worlds; empty: the size was given
    # Every size that was tried, with how it ended; empty: none was.
    "micro_batch_tried": "str",
    "micro_batch_found": "Int64",  # under auto_worlds the worlds of a row may have a smaller one
    "micro_batch_margin": "float64",  # share of memory that the largest had to leave free
}


def of_case(run_dir: Path, plan: Plan, item: PlannedRepeat, problems: list[str]) -> dict[str, Any]:
    """COLUMNS of a case whose micro batch was to be found; empty where it was given."""
    asked = plan.cases.get(item.search_id or item.case_id)
    if item.search_id is None:  # it was given, or the case was skipped before a search
        if asked is None or asked.auto is None:
            return {}
        return {"search_id": item.case_id, "micro_batch_asked": asked.auto}
    search = PlannedRepeat(case_id=item.search_id, repeat=0, role="search")
    status, unread = read_status(run_dir / search.folder / "status.json")
    if unread:
        problems.append(f"{search.folder}/{unread}")
    tried = status.get("tried")
    sizes = [one for one in tried if isinstance(one, dict)] if isinstance(tried, list) else []
    problems += [
        f"{search.folder}: micro_batch_size {one.get('size')} was taken not to run: "
        f"{one.get('status')} ({one.get('cause')}), which says nothing of memory"
        for one in sizes
        if one.get("status") not in ("ok", "oom", "interrupted")
    ]
    return {
        "search_id": item.search_id,
        "micro_batch_asked": asked.auto if asked else "auto",
        "micro_batch_tried": ", ".join(f"{one.get('size')} {one.get('status')}" for one in sizes),
        "micro_batch_found": integer(status, "found"),
        "micro_batch_margin": number(status, "margin"),
    }
