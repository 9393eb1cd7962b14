"""What a page says beside tables and figures: failures, environment, how to reproduce. No torch."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any, NamedTuple

from andromeda_scale.metrics.formats import clean
from andromeda_scale.report.html.source import Source
from andromeda_scale.report.rows import label, world

MAX_FAILURES = 40  # in full; the others are in repeats.parquet
_SHARED = ("hardware.", "software.", "variables.", "device_name", "threads", "compile.")


class Failure(NamedTuple):
    """Launches that ended alike, the last words of the first of them."""

    status: str
    who: str
    cause: str
    stderr: str


def failures(source: Source) -> list[Failure]:
    """Every way in which launches of a case failed, skipped and pending ones left out."""
    names = {row["case_id"]: f"{label(row)} at world {world(row)}" for row in source.rows}
    frame = source.results.repeats
    frame = frame[~frame["status"].isin(["ok", "skipped", "pending"])]
    found: dict[tuple[str, str, str], list[dict[Any, Any]]] = {}
    for row in frame.to_dict("records"):
        found.setdefault((row["case_id"], row["status"], row["cause"]), []).append(row)
    return [
        Failure(
            status,
            f"{clean(names.get(case_id, case_id))}, launch "
            f"{', '.join(str(row['repeat']) for row in rows)}{_place(rows[0])}",
            clean(cause),
            _lines(rows[0].get("stderr_tail", "")),
        )
        for (case_id, status, cause), rows in found.items()
    ]


def _place(row: dict[Any, Any]) -> str:
    rank = f", rank {row['rank']}" if str(row["rank"]).isdigit() else ""
    host = f" on {clean(row['host'])}" if row["host"] else ""
    return rank + host + (f" in {clean(row['phase'])}" if row["phase"] else "")


def _lines(text: Any) -> str:
    """Text of several lines without control characters."""
    return "\n".join(clean(line) for line in str(text or "").splitlines())


def environment(source: Source) -> list[tuple[str, str]]:
    """What the ranks of all measured cases read back of hardware, software and variables: each
    value once, with how many cases had it where they differ."""
    values: dict[str, Counter[str]] = {}
    number = 0
    for row in source.measured:
        try:
            facts = json.loads(row["facts"] or "{}")
        except ValueError:
            continue
        number += 1
        for key, value in facts.items():
            if key.startswith(_SHARED[:3]) or key in _SHARED:
                values.setdefault(key, Counter())[str(value)] += 1
    return [
        (clean(key), clean(_counted(counts, number)))
        for key, counts in sorted(values.items())
        if not set(counts) <= {"none", "None"}
    ]


def _counted(counts: Counter[str], number: int) -> str:
    if len(counts) == 1 and counts.total() == number:
        return next(iter(counts))
    return "; ".join(f"{value} ({times} of {number} cases)" for value, times in counts.items())


def summary(source: Source) -> list[tuple[str, str]]:
    """The run in a few words."""
    cases, repeats = source.results.cases, source.results.repeats
    statuses = Counter(cases["status"])
    started = repeats["started_unix_s"].dropna()
    devices = dict.fromkeys(name for name in cases["device_name"] if name)
    worlds = sorted({int(row["world_size"]) for row in source.rows})
    found = [
        ("suite", source.results.suite_name),
        ("started", _time(float(started.min())) if len(started) else "not yet"),
        ("device", ", ".join(devices) or "not known"),
        ("ranks", ", ".join(map(str, worlds)) or "none"),
        ("cases", ", ".join(f"{n} {word}" for word, n in statuses.items()) or "none"),
        ("launches", f"{int((repeats['status'] == 'ok').sum())} ok of {len(repeats)}"),
    ]
    return [(name, clean(text)) for name, text in found]


def _time(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):  # a record can hold any number
        return "not known"


def software(source: Source) -> list[str]:
    """The sets of versions that the numbers were made with."""
    return [clean(text) for text in dict.fromkeys(source.results.cases["software"]) if text]
