"""Where a step's seconds go, and what each class costs of an efficiency. No torch.

Factors after the POP model: T is the longest rank of each step, T1 = T - min D, T2 = T1 - min H,
T3 = T2 - min X (minima over ranks, of data, host, exposed transfer), C compute. All are summed over
steps before they are divided. Their product is mean C / T; with the scaling of C between two worlds
it is the efficiency.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from andromeda_scale.analysis.results import rows_of, typed_rows

# What the communication collector writes per step and rank. The classes of a step are disjoint.
CLASSES = ("compute_s", "exposed_wait_s", "exposed_transfer_s", "data_s", "host_s")
PARTS = ("forward_s", "backward_s", "optimizer_s")  # of the program; they contain communication
SERIES = ("step_s", *CLASSES, "comm_total_s", "comm_exposed_s", "comm_overlapped_s")
ADDED = ("charged_s", "optimizer_compute_s")  # series that older records lack

FACTORS = ("data_eff", "host_eff", "transfer_eff", "serialisation_eff", "load_balance")
LOW, HIGH = 0.0, 1.01  # a factor outside is no share of anything: the classes overlap
AGREEMENT = 0.01  # between an efficiency and the product that explains it

COLUMNS: dict[str, str] = {
    "compute_scaling": "float64",
    "explained_efficiency": "float64",
    "profile_efficiency": "float64",
}


def additive(series: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Means over ranks and steps of every class, from (ranks, steps) seconds by name of SERIES.

    compute + exposed_wait + exposed_transfer + data + host + end_skew = profile_step, where
    profile_step is the mean over steps of the longest rank of that step. Then what FACTORS are
    made of.
    """
    longest = series["step_s"].max(axis=0)
    profile_step_s = float(longest.mean())
    names = [name for name in (*SERIES, "optimizer_compute_s") if name in series]
    means = {name: float(series[name].mean()) for name in names if name != "step_s"}
    found = means | {
        "profile_step_s": profile_step_s,
        "end_skew_s": float((longest - series["step_s"]).mean()),
        "comm_exposed_share": means["comm_exposed_s"] / profile_step_s,
        "least_data_s": float(series["data_s"].min(axis=0).mean()),
        "least_host_s": float(series["host_s"].min(axis=0).mean()),
        "least_transfer_s": float(series["exposed_transfer_s"].min(axis=0).mean()),
        "most_compute_s": float(series["compute_s"].max(axis=0).mean()),
    }
    return found | factors(found)


def factors(row: Mapping[str, Any]) -> dict[str, float]:
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


def out_of_range(series: Mapping[str, np.ndarray]) -> str:
    """The factors that no sound trace can have; empty if all are in range."""
    found = additive(series)
    return ", ".join(
        f"{name} is {found[name]:.4g}, outside {LOW:g}..{HIGH:g}"
        for name in FACTORS
        if not LOW <= found[name] <= HIGH
    )


def add_reasons(cases: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """`cases`, scaled already, with COLUMNS for each row that has a base; and what does not fit.

    explained_efficiency = product(n) / product(n0) * compute_scaling. It must be the efficiency of
    the profiled steps by the step's own clock, which no trace has touched.
    """
    rows: dict[str, dict[str, Any]] = {row["case_id"]: row for row in rows_of(cases)}
    found, problems = [], []
    for case_id, row in rows.items():
        base = rows.get(row["base_case_id"])
        reasons = {} if base is None or base is row else _reasons(row, base)
        explained, own = (reasons.get(name, math.nan) for name in list(COLUMNS)[1:])
        if abs(explained - own) > AGREEMENT * own:
            problems.append(
                f"{case_id}: its factors explain an efficiency of {explained:.1%}, but its "
                f"profiled steps by their own clock have {own:.1%}"
            )
        found.append(reasons)
    columns = typed_rows(found, COLUMNS)
    return pd.concat([cases, columns.set_index(cases.index)], axis=1), problems


def _reasons(row: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, float]:
    """Values of COLUMNS of one row against its base."""
    work = [_work(one, str(row["regime"])) for one in (row, base)]
    computing = [one["world_size"] * one["compute_s"] for one in (row, base)]
    clocked = [one["world_size"] * one["profile_clock_step_s"] for one in (row, base)]
    product = [math.prod(one[name] for name in FACTORS) for one in (row, base)]
    scaling = _ratio(work[0], computing[0]) / _ratio(work[1], computing[1])
    return {
        "compute_scaling": scaling,
        "explained_efficiency": _ratio(product[0], product[1]) * scaling,
        "profile_efficiency": _ratio(work[0], clocked[0]) / _ratio(work[1], clocked[1]),
    }


def _work(row: Mapping[str, Any], regime: str) -> float:
    """What a step does: its tokens; under strong scaling the same at every world."""
    return 1.0 if regime == "strong" else float(row["tokens_per_s"] * row["window_step_s"])


def against(row: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, float]:
    """Each factor of a row over that of its base: with compute_scaling they multiply to the
    explained efficiency."""
    return {f"{name}_vs_base": _ratio(row[name], base[name]) for name in FACTORS}


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan
