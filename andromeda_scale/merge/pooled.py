"""The numbers of a case over its pooled launches, each by its own rule. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from andromeda_scale.analysis.breakdown import FACTORS, IN_A_STEP, PARTS, factors
from andromeda_scale.analysis.precision import half_width
from andromeda_scale.analysis.resampling import Series
from andromeda_scale.analysis.scaling import Launches
from andromeda_scale.analysis.stats import MIN_LAUNCHES, Sample, log_interval, mean_interval
from andromeda_scale.merge import blame, energy
from andromeda_scale.merge.repeats import OF_CASES
from andromeda_scale.metrics import METRICS

Row = dict[str, Any]

# Beside throughput and what is made of it: numbers with an interval over launches.
BOUNDED = (
    "step_time_s",
    "profile_step_s",
    *IN_A_STEP,
    *(f"{name[:-2]}_share" for name in IN_A_STEP),
    *PARTS,
    *FACTORS,
    "optimizer_compute_s",
    "data_part_s",
    "residual_s",
    "comm_total_s",
    "comm_exposed_s",
    "comm_overlapped_s",
    "comm_exposed_share",
    "imbalance",
    "joules_per_token",
    "power_w",
)


def numbers(pooled: list[Row], launches: Launches) -> Row:
    """METRICS over the pooled launches, each by its own rule; nothing without a launch."""
    if not pooled:
        return {}
    counts = [launch["num_steps"] for launch in pooled]
    row: Row = {"num_steps": min(counts), "num_steps_most": max(counts)}
    row["num_profile_steps"] = first(pooled, "num_profile_steps")
    row["graph_breaks"] = max(
        (launch["graph_breaks"] for launch in pooled if "graph_breaks" in launch), default=None
    )
    for name, metric in METRICS.items():
        values = np.array([launch.get(name, math.nan) for launch in pooled], dtype=float)
        values = values[~np.isnan(values)]
        if name in OF_CASES or not len(values):
            continue
        if metric.launches == "geometric mean":
            row[name] = math.exp(float(np.log(values).mean())) if (values > 0).all() else 0.0
        else:
            row[name] = float(values.max() if metric.launches == "max" else values.mean())
    row |= _ends(pooled, launches.tokens_per_s.steps)
    row |= _ablation_error(pooled)
    interval = log_interval(launches.tokens_per_s)
    _, low, high = interval
    row["half_width"] = half_width(interval)
    share = row["tokens_per_s_per_gpu"] / row["tokens_per_s"]
    row |= {"tokens_per_s_low": low, "tokens_per_s_high": high}
    row |= {"tokens_per_s_per_gpu_low": low * share, "tokens_per_s_per_gpu_high": high * share}
    for end, rate in (("", row["tokens_per_s"]), ("_low", high), ("_high", low)):
        row[f"rank_hours_per_gtoken{end}"] = 1e9 / (rate * share) / 3600
    fullest = max(pooled, key=lambda one: float(one.get("peak_memory_bytes", -1.0)))
    row |= {name: fullest.get(name) for name in ("peak_memory_rank", "peak_memory_host")}
    fullest = max(pooled, key=lambda one: float(one.get("peak_allocated_bytes", -1.0)))
    row["peak_allocated_rank"] = fullest.get("peak_allocated_rank")
    for name in ("throttled", "memory_pressure", *energy.COLUMNS):
        row[name] = "; ".join(dict.fromkeys(one[name] for one in pooled if one.get(name)))
    if "profile_step_s" in row:  # sums are divided, ratios are not averaged
        row |= _about(factors(row), row)
    row["exposed_method"] = first(pooled, "exposed_method")
    judged = [launch["blame"] for launch in pooled if "blame" in launch]
    return row | (blame.case_columns(judged) if judged else {})


def _ends(pooled: list[Row], timed: Mapping[int, Series]) -> Row:
    """Intervals over launches of BOUNDED, each about the mean that METRICS names, as far as such a
    value can be: a time is not negative, a share or factor not above 1.

    `timed`: steps of the window by repeat, of which the step time is made; profiled steps are with
    their launch.
    """
    found: Row = {}
    for name in BOUNDED:
        known = {one["repeat"]: one for one in pooled if one.get(name, math.nan) == one.get(name)}
        values = {repeat: one[name] for repeat, one in known.items()}
        steps = {repeat: one.get("by_step", {}).get(name, ()) for repeat, one in known.items()}
        positive = all(value > 0 for value in values.values())
        as_factors = METRICS[name].launches == "geometric mean" and positive
        interval = log_interval if as_factors else mean_interval
        sample = Sample(values, timed if name == "step_time_s" else steps)
        centre, low, high = interval(sample)
        if name != "residual_s":  # of what was added up, which may be too much
            low = min(max(low, 0.0), centre) if low == low else low
        if name.endswith("_share") or name in FACTORS:
            high = max(min(high, 1.0), centre) if high == high else high
        found[f"{name}_low"], found[f"{name}_high"] = low, high
    return found


def _about(found: Row, row: Row) -> Row:
    """FACTORS of summed seconds with their ends, as far from them as those of the launches' factors
    are from their mean, which `row` holds: one long launch has more of the sums than of that."""
    ends: Row = {}
    for name, factor in found.items():
        if row.get(name, 0.0) > 0 and not math.isclose(factor, row[name]):
            scale = factor / row[name]
            ends |= {f"{name}_{end}": row[f"{name}_{end}"] * scale for end in ("low", "high")}
    return found | ends


def _ablation_error(pooled: list[Row]) -> Row:
    """Half of the interval of ablation_s over launches, which differ by more than the blocks of
    one tell; nothing under MIN_LAUNCHES, where those of the launches stand."""
    values = [one["ablation_s"] for one in pooled if one.get("ablation_s") is not None]
    if len(values) < MIN_LAUNCHES:
        return {}
    _, low, high = mean_interval(values)
    return {"ablation_error_s": (high - low) / 2}


def first(rows: list[Row], key: str) -> Any:
    """The first value there is; None without any."""
    return next((row[key] for row in rows if row.get(key) not in (None, "")), None)
