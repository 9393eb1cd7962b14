"""How far a run is, what of it failed, and how long its launches take. No torch."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from andromeda_scale.commands.stopping import resume_of
from andromeda_scale.contracts.planned import Plan, PlannedRepeat
from andromeda_scale.launch.run_dir import FAILED, NOT_ENDED, RunDir
from andromeda_scale.launch.time_left import UNKNOWN, estimate, kind
from andromeda_scale.metrics.formats import clean
from andromeda_scale.planning.table import duration

_WITHOUT_CAUSE = {
    "invalid": "its record lacks the end of a rank",
    "interrupted": "it did not finish",
}


def progress(run_dir: Path, *, planned: bool = True) -> Iterator[str]:
    """Lines that say how far a run is; of one that need not be `planned` yet, none before."""
    if not planned and not (run_dir / "plan.json").exists():
        return
    run = RunDir.open(run_dir)
    held = run.holder() is not None
    # Reading every record would disturb who measures, and what it wrote is fresh.
    items = [
        (item, "invalid" if word == "ok" and not held and run.is_damaged(item) else word)
        for item, word in run.statuses()
        if item.skip is None
    ]
    counts = Counter(word for _, word in items)
    left = sum(counts[word] for word in NOT_ENDED)
    yield f"{run.plan.suite_name}: {len(items) - left} of {len(items)} launches ended"
    yield ", ".join(f"{n} {word}" for word, n in sorted(counts.items()))
    for item, word in items:
        if word in FAILED:
            status = run.status(item) or {}
            cause = status.get("cause") or _WITHOUT_CAUSE.get(word, "no cause recorded")
            yield clean(f"{word}: {item.case_id} repeat {item.repeat}: {cause}")
    if any(word in FAILED and word not in NOT_ENDED for word in counts):
        yield f"launch these again: {resume_of(run.path)} --only failed"
    of_running = "running" if held else "left unfinished, its driver is gone"
    yield from (f"{of_running}: {clean(name)}" for name in _running(run))
    if left:
        yield f"time left: {_time_left(run, items)}"


def _time_left(run: RunDir, items: Sequence[tuple[PlannedRepeat, str]]) -> str:
    left: Counter[str] = Counter()
    took: dict[str, list[float]] = {}
    for item, word in items:
        of_kind = kind(item, run.plan.cases[item.case_id])
        if word in NOT_ENDED:
            left[of_kind] += 1
        elif word == "ok" and (seconds := _seconds(run.status(item))) is not None:
            took.setdefault(of_kind, []).append(seconds)
    found = estimate(left, took)
    return f"about {duration(found.seconds)}{found.of_all}" if found.told else UNKNOWN


def earlier_seconds(plan: Plan, parent: Path) -> dict[str, list[float]]:
    """By case id, what launches of this plan's cases took that ended ok in runs under `parent` on
    hardware like this."""
    from andromeda_scale.hardware import environment

    here = environment.fingerprint(environment.collect())
    found: dict[str, list[float]] = {}
    for file in parent.glob("*/fingerprint.json"):
        measured_on = _json(file)
        if any(measured_on.get(key) != here[key] for key in environment.HARDWARE):
            continue
        for ended in _found(file.parent, "*/*/*/status.json"):
            case_id, status = ended.parent.parent.name, _json(ended)
            if ended.parents[2].name == "searches":
                continue
            seconds = _seconds(status)
            if case_id in plan.cases and status.get("status") == "ok" and seconds is not None:
                found.setdefault(case_id, []).append(seconds)
    return found


def _json(file: Path) -> dict[str, Any]:
    """An object from a file, empty where there is none to be read."""
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _running(run: RunDir) -> list[str]:
    """Launches under way as people name them; their directories are CASE-REPEAT-NUMBER."""
    names = [path.name for path in _found(run.path, "running/*") if path.is_dir()]
    return [re.sub(r"-(\d+)-(\d+)$", r" repeat \1 (launch \2)", name) for name in names]


def _found(run_dir: Path, pattern: str) -> list[Path]:
    """Paths of a run that may be going on, whose directories move while they are listed."""
    while True:
        try:
            return sorted(run_dir.glob(pattern))
        except FileNotFoundError:
            continue


def _seconds(status: Mapping[str, Any] | None) -> float | None:
    """What a launch took, of its status.json."""
    seconds: Any = (status or {}).get("seconds")
    return float(seconds) if type(seconds) in (int, float) and 0 <= seconds < 1e9 else None
