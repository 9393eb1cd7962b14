"""Where a step's seconds go, and what each class costs of an efficiency. No torch.

Factors after the POP model: T is the longest rank of each step, T1 = T - min D, T2 = T1 - min H,
T3 = T2 - min X (minima over ranks, of data, host, exposed transfer), C compute. All are summed over
steps before they are divided. Their product is mean C / T; with the scaling of C between two worlds
it is the efficiency.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from andromeda_scale.analysis.results import rows_of, typed_rows
from andromeda_scale.analysis.stats import log_ratio_interval

# What the communication collector writes per step and rank. The classes of a step are disjoint.
CLASSES = ("compute_s", "exposed_wait_s", "exposed_transfer_s", "data_s", "host_s")
IN_A_STEP = (*CLASSES, "end_skew_s")  # these add up to it
SHARED = (*IN_A_STEP, "comm_exposed_s")  # of which a share of the step is told
PARTS = ("forward_s", "backward_s", "optimizer_s")  # of the program; they contain communication
SERIES = ("step_s", *CLASSES, "comm_total_s", "comm_exposed_s", "comm_overlapped_s")
ADDED = ("charged_s", "optimizer_compute_s")  # series that older records lack

FACTORS = ("data_eff", "host_eff", "transfer_eff", "serialisation_eff", "load_balance")
LOW, HIGH = 0.0, 1.01  # a factor outside is no share of anything: the classes overlap
AGREEMENT = 0.01  # between an efficiency and the product that explains it

# Each over that of the base, with an interval over launches.
REASONS = (
    *(f"{name}_vs_base" for name in FACTORS),
    "compute_scaling",
    "explained_efficiency",
    "profile_efficiency",
)
COLUMNS: dict[str, str] = {
    f"{name}{end}": "float64" for name in REASONS for end in ("", "_low", "_high")
}


def additive(series: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Means over ranks and steps of every class, from (ranks, steps) seconds by name of SERIES.

    compute + exposed_wait + exposed_transfer + data + host + end_skew = profile_step, where
    profile_step is the mean over steps of the longest rank of that step. Then what FACTORS are
    made of, shares of the step, and FACTORS.
    """
    seconds = {name: float(x.mean()) for name, x in _by_step(series).items()}
    return seconds | _ratios(seconds)


def by_step(series: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """(steps,) of what `additive` says, whose mean that is, or nearly: of ratios the pseudo-values
    of the jackknife, n f - (n - 1) f without this step (Tukey 1958). Empty for one step; without a
    ratio that is none as soon as one step is left out."""
    seconds = _by_step(series)
    num = len(seconds["profile_step_s"])
    if num < 2:
        return {}
    others = {name: (x.sum() - x) / (num - 1) for name, x in seconds.items()}
    every = _ratios({name: float(x.mean()) for name, x in seconds.items()})
    with np.errstate(divide="ignore", invalid="ignore"):
        without = _ratios(others)
    values = {name: num * f - (num - 1) * without[name] for name, f in every.items()}
    return seconds | {name: x for name, x in values.items() if np.isfinite(x).all()}


def _by_step(series: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """(steps,) seconds of every class, as means over ranks, and of what FACTORS are made of."""
    longest = series["step_s"].max(axis=0)
    names = [name for name in (*SERIES, "optimizer_compute_s") if name in series]
    means = {name: series[name].mean(axis=0) for name in names if name != "step_s"}
    return means | {
        "profile_step_s": longest,
        "end_skew_s": (longest - series["step_s"]).mean(axis=0),
        "least_data_s": series["data_s"].min(axis=0),
        "least_host_s": series["host_s"].min(axis=0),
        "least_transfer_s": series["exposed_transfer_s"].min(axis=0),
        "most_compute_s": series["compute_s"].max(axis=0),
    }


def _ratios(seconds: Mapping[str, Any]) -> dict[str, Any]:
    shares = {f"{x[:-2]}_share": seconds[x] / seconds["profile_step_s"] for x in SHARED}
    return shares | factors(seconds)


def factors(row: Mapping[str, Any]) -> dict[str, Any]:
    """FACTORS from the seconds of `additive`, of a launch or averaged over several."""
    before_data = row["profile_step_s"]
    before_host = before_data - row["least_data_s"]
    before_transfer = before_host - row["least_host_s"]
    rest = before_transfer - row["least_transfer_s"]
    return {
        "data_eff": _ratio(before_host, before_data),
        "host_eff": _ratio(before_transfer, before_host),
        "transfer_eff": _ratio(rest, before_transfer),
        "serialisation_eff": _ratio(row["most_compute_s"], rest),
        "load_balance": _ratio(row["compute_s"], row["most_compute_s"]),
    }


def contradiction(series: Mapping[str, np.ndarray]) -> str:
    """What of (ranks, steps) seconds by name of SERIES no sound trace can say; empty if all can."""
    step_s, exposed_s = series["step_s"], series["comm_exposed_s"]
    if not step_s.min() > 0:
        return "a step took no time"
    if wrong := out_of_range(series):
        return wrong
    for what, some, whole in (
        ("classes of a step", CLASSES, step_s),
        ("exposed wait and transfer", ("exposed_wait_s", "exposed_transfer_s"), exposed_s),
        ("exposed and overlapped seconds", ("comm_exposed_s", "comm_overlapped_s"),
         series["comm_total_s"]),
    ):  # fmt: skip
        off = np.abs(sum(series[name] for name in some) - whole)
        if (off > AGREEMENT * step_s).any():
            rank, step = np.unravel_index(int(off.argmax()), off.shape)
            return (
                f"the {what} of rank {rank} in step {step} do not add up: {off.max():.3g} s apart"
            )
    return ""


def out_of_range(series: Mapping[str, np.ndarray]) -> str:
    """The factors that no sound trace can have; empty if all are in range."""
    found = additive(series)
    return ", ".join(
        f"{name} is {found[name]:.4g}, outside {LOW:g}..{HIGH:g}"
        for name in FACTORS
        if not LOW <= found[name] <= HIGH
    )


def add_reasons(
    cases: pd.DataFrame, launches: Mapping[str, Sequence[Mapping[str, Any]]]
) -> tuple[pd.DataFrame, list[str]]:
    """`cases`, scaled already, with COLUMNS for each row that has a base; and what does not fit.

    explained_efficiency = product(n) / product(n0) * compute_scaling. It must be the efficiency of
    the profiled steps by the step's own clock, which no trace has touched. `launches`: what each
    pooled launch of a case measured, which intervals are made from.
    """
    rows: dict[str, dict[str, Any]] = {row["case_id"]: row for row in rows_of(cases)}
    found, problems = [], []
    for case_id, row in rows.items():
        base = rows.get(row["base_case_id"])
        reasons: dict[str, float] = {}
        if base is row:
            reasons = {f"{name}_vs_base": _ratio(row[name], row[name]) for name in FACTORS}
        elif base is not None:
            both = (launches[case_id], launches[base["case_id"]])
            reasons = _against(row, base, *both)
        explained = reasons.get("explained_efficiency", math.nan)
        own = reasons.get("profile_efficiency", math.nan)
        if abs(explained - own) > AGREEMENT * own:
            problems.append(
                f"{case_id}: its factors explain an efficiency of {explained:.1%}, but its "
                f"profiled steps by their own clock have {own:.1%}"
            )
        found.append(reasons)
    columns = typed_rows(found, COLUMNS)
    return pd.concat([cases, columns.set_index(cases.index)], axis=1), problems


def _against(
    row: Mapping[str, Any],
    base: Mapping[str, Any],
    row_launches: Sequence[Mapping[str, Any]],
    base_launches: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
    """COLUMNS of one row. A centre is of seconds summed over launches; the ends are as far from it
    as those of the launches' ratios are from their geometric mean."""
    mine, other = (_amounts(one, one) for one in (row, base))
    of_mine = [_amounts(one, row) for one in row_launches]
    of_other = [_amounts(one, base) for one in base_launches]
    found = {}
    for name in REASONS:
        found[name] = centre = _ratio(mine[name], other[name])
        values = [[one[name] for one in some] for some in (of_mine, of_other)]
        if all(value > 0 for some in values for value in some):  # false for NaN
            middle, low, high = log_ratio_interval(*values)
            found |= {f"{name}_low": centre * low / middle, f"{name}_high": centre * high / middle}
    return found


def _amounts(one: Mapping[str, Any], case: Mapping[str, Any]) -> dict[str, float]:
    """What REASONS are ratios of, of a case or one of its launches."""
    strong = case["regime"] == "strong"  # a step's work is the same at every world; else its tokens
    missing = math.nan
    work = 1.0 if strong else one.get("tokens_per_s", missing) * one.get("window_step_s", missing)
    found = {f"{name}_vs_base": float(one.get(name, missing)) for name in FACTORS}
    product = math.prod(found.values())
    seconds = (one.get(name, missing) for name in ("compute_s", "profile_clock_step_s"))
    computing, clocked = (_ratio(work, case["world_size"] * some) for some in seconds)
    reasons = {"compute_scaling": computing, "explained_efficiency": product * computing}
    return found | reasons | {"profile_efficiency": clocked}


def _ratio(a: Any, b: Any) -> Any:
    return a / b if np.all(b) else math.nan
