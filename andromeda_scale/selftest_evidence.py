"""What launches of a selftest showed, and how a number is judged against what was planted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from andromeda_scale.analysis.results import Results
from andromeda_scale.config import Case
from andromeda_scale.planned import PlannedRepeat
from andromeda_scale.records import read_repeat

TOLERANCE = 0.10  # of what must be found
PASS, FAIL, UNAVAILABLE = "pass", "fail", "unavailable"


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    planted: str
    claim: str
    expected: str
    found: str
    within: str
    verdict: str  # pass; fail; or "unavailable: why"
    timed: bool = True  # whether a busy machine changes it

    @property
    def failed(self) -> bool:
        return self.verdict.startswith(FAIL)


@dataclass(frozen=True)
class Launch:
    """One launch that ended ok: its row of repeats.parquet, its ranks' rows in rank order."""

    row: dict[str, Any]
    ranks: pd.DataFrame
    collectives: list[dict[str, Any]]  # as rank 0 recorded them

    def text(self, name: str) -> str:
        return str(self.row[name])

    def of(self, name: str) -> float:
        """A number of the launch; NaN where it is empty."""
        value = self.row.get(name)
        return float("nan") if value is None or pd.isna(value) else float(value)

    def waiting(self, late: int) -> float:
        """Exposed waiting of the other ranks, on the mean, less that of the late one."""
        waits = self.ranks["exposed_wait_s"].to_numpy(dtype=float)
        return float(np.delete(waits, late).mean() - waits[late])

    def has(self, name: str) -> bool:
        return not pd.isna(self.row.get(name))

    @property
    def sent_bytes(self) -> float:
        """What the collectives of a step send in all; 0 of a rank alone."""
        return sum(float(one["bytes_per_step"]) for one in self.collectives)

    @property
    def busbw_mbytes_per_s(self) -> float:
        """Of the collective that sends most; NaN without one."""
        largest = max(self.collectives, key=lambda one: float(one["bytes_per_step"]), default=None)
        return float("nan") if largest is None else 1e3 * float(largest["busbw_gbps"] or "nan")

    def above(self, name: str, rank: int) -> float:
        """By how much a rank's number exceeds the mean of the others', if there are others."""
        values = self.ranks[name].to_numpy(dtype=float)
        others = np.delete(values, rank)
        return float(values[rank] - (others.mean() if len(others) else 0.0))


def launches(run_dir: Path, results: Results, case: Case) -> tuple[list[Launch], list[str]]:
    """(the launches of a case that ended ok, in their order; how the others ended)."""
    found, ended = [], []
    rows = results.repeats[results.repeats["case_id"] == case.case_id].to_dict("records")
    for row in rows:
        if row["status"] != "ok":
            ended.append(f"{row['status']}: {row['cause']}")
            continue
        item = PlannedRepeat(case_id=case.case_id, repeat=row["repeat"])
        record = read_repeat(run_dir / item.folder, item.case_id, item.repeat, case.world.size)
        sent = record.ranks[0].values("profile", "communication").get("collectives", [])
        frame = results.ranks
        mine = (frame["case_id"] == item.case_id) & (frame["repeat"] == item.repeat)
        ranks = frame[mine].sort_values("rank")
        found.append(Launch({str(key): value for key, value in row.items()}, ranks, sent))
    return found, ended


def deviation(values: Sequence[float]) -> float:
    """The farthest that any launch is from the median of its like: the noise between launches."""
    return float(np.abs(np.array(values) - np.median(values)).max())


def judge(
    planted: str,
    claim: str,
    expected: Sequence[float],
    values: Sequence[float],
    null: Sequence[float] = (0.0,),
    *,
    text: Callable[[float], str],
    scale: float | None = None,
    tolerance: float = TOLERANCE,
    timed: bool = True,
) -> Finding:
    """Whether the median over launches, less that of the unplanted ones, is what is expected.

    expected: one number, or what follows from each unplanted launch; the median counts. `scale` is
    what the tolerance is a share of, by default what is expected. Undecidable where launches that
    should be alike differ by more than the tolerance.
    """
    wanted, without = float(np.median(expected)), float(np.median(null))
    value = float(np.median(values)) - without
    allowed = tolerance * abs(wanted if scale is None else scale)
    noise = max(map(deviation, (expected, values, null)))
    verdict = PASS if abs(value - wanted) <= allowed else FAIL
    if not noise <= allowed:
        null_s = f"null {text(without)}, launches differ by {text(noise)}"
        verdict = f"{UNAVAILABLE}: too noisy ({null_s})"
    said = text(wanted), text(value), text(allowed)
    return Finding(planted, claim, *said, verdict, timed=timed)


def counted(planted: str, claim: str, hits: int, of: int, *, timed: bool = True) -> Finding:
    """Something that must be so in every launch."""
    verdict = PASS if hits == of else FAIL
    return Finding(planted, claim, f"{of} of {of}", f"{hits} of {of}", "", verdict, timed=timed)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def megabytes_per_s(value: float) -> str:
    return f"{value:.1f} MB/s"


def mebibytes(value: float) -> str:
    return f"{value / 2**20:.1f} MiB"


def ratio(value: float) -> str:
    return f"{value:.3f}"
