"""What launches of a selftest showed, and how a number is judged against what was planted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from andromeda_scale.analysis.results import Results

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
    case: dict[str, Any]  # the row of results.parquet that pools it with others
    ranks: pd.DataFrame

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

    def above(self, name: str, rank: int) -> float:
        """By how much a rank's number exceeds the mean of the others', if there are others."""
        values = self.ranks[name].to_numpy(dtype=float)
        others = np.delete(values, rank)
        return float(values[rank] - (others.mean() if len(others) else 0.0))


def launches(results: Results, case_id: str) -> tuple[list[Launch], list[str]]:
    """(the launches of a case that ended ok, in their order; how the others ended)."""
    found, ended = [], []
    case = _records(results.cases, case_id)[0]
    rows = _records(results.repeats, case_id)
    for row in rows:
        if row["status"] != "ok":
            ended.append(f"{row['status']}: {row['cause']}")
            continue
        frame = results.ranks
        mine = (frame["case_id"] == case_id) & (frame["repeat"] == row["repeat"])
        ranks = frame[mine].sort_values("rank")
        found.append(Launch(row, case, ranks))
    return found, ended


def _records(table: pd.DataFrame, case_id: str) -> list[dict[str, Any]]:
    rows = table[table["case_id"] == case_id].to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]


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
    should be alike differ by more than the tolerance, unless it fails whichever of them count.
    """
    if not np.isfinite([*expected, *values, *null]).all():
        verdict = f"{FAIL}: a launch has no such number"
        return Finding(planted, claim, "", "", "", verdict, timed=False)
    wanted, without = float(np.median(expected)), float(np.median(null))
    value = float(np.median(values)) - without
    allowed = tolerance * abs(wanted if scale is None else scale)
    noises = [deviation(x) for x in (expected, values, null)]
    noise = max(noises)
    excess = abs(value - wanted) - allowed
    verdict = PASS if excess <= 0 else FAIL
    if noise > allowed and excess <= sum(noises):
        null_s = f"null {text(without)}, launches differ by {text(noise)}"
        verdict = f"{UNAVAILABLE}: too noisy ({null_s})"
    said = text(wanted), text(value), text(allowed)
    return Finding(planted, claim, *said, verdict, timed=timed)


def bounded(
    planted: str,
    claim: str,
    pairs: Sequence[tuple[float, float]],
    allowed: float,
    error: float,
    *,
    text: Callable[[float], str],
    both_sides: bool,
) -> Finding:
    """Whether a number is at most (or, with both_sides, within) `allowed` from another.

    pairs: (the number, the other) of each launch; error: half of the interval of their difference
    within a launch. Undecidable where it is beyond that by less than launches and errors differ.
    """
    if not np.isfinite([*np.ravel(pairs), allowed, error]).all():
        return Finding(
            planted, claim, "", "", "", f"{FAIL}: a launch has no such number", timed=False
        )
    values, others = np.array(pairs).T
    found = float(np.median(values - others))
    excess = (abs(found) if both_sides else found) - allowed
    noise = max(deviation((values - others).tolist()), error)
    verdict = PASS if excess <= 0 else FAIL
    if 0 < excess <= noise:
        verdict = f"{UNAVAILABLE}: too noisy (launches differ by {text(noise)})"
    at_most = "" if both_sides else "<= "
    said = f"{at_most}{text(float(np.median(others)))}", text(float(np.median(values)))
    return Finding(planted, claim, *said, text(allowed), verdict)


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
