"""The footnotes of the scaling table: what its numbers mean, and what was not measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from andromeda_scale.analysis.blame import MIN_SHARE, MIN_STEPS, NO_MAJORITY, NOBODY
from andromeda_scale.analysis.stats import MIN_BOOTSTRAP, MIN_LAUNCHES
from andromeda_scale.metrics.formats import milliseconds, percent, rate, scientific
from andromeda_scale.report import device_notes
from andromeda_scale.report.rows import Row, failure, has, has_base, is_base
from andromeda_scale.report.rows import case_name as _name

MAX_BASES = 8  # each is marked in its row, with its value


def footnotes(rows: Sequence[Row], axes: Sequence[str]) -> list[str]:
    """One line each; only what the rows shown need."""
    measured = [row for row in rows if has(row, "tokens_per_s")]
    failures = {row["mark"]: failure(row) for row in rows if "mark" in row}
    notes = [f"[{mark}] {text}" for mark, text in failures.items()]
    if measured:
        notes += [_what(measured, axes), _bases(measured, axes)]
        notes += [*_unequal_bases(measured, axes), _launches(measured)]
        notes += _precision(measured, axes)
        notes += _explanations(measured, axes)
    notes += [
        f"{_name(row, axes)} is not compared with {row['not_compared']}"
        for row in rows
        if has(row, "not_compared")
    ]
    notes += [
        f"{_name(row, axes)}: launches on unlike systems are left out"
        for row in rows
        if row["mixed"]
    ]
    planted = dict.fromkeys(row["faults"] for row in rows if has(row, "faults"))
    if planted and "faults" not in axes:
        notes.append(f"planted in every row: {'; '.join(planted)}")
    return notes


def what_rows_are(rows: Sequence[Row], axes: Sequence[str]) -> list[str]:
    """Failures by their marks, and the settings that all measured rows share."""
    failures = {row["mark"]: failure(row) for row in rows if "mark" in row}
    measured = [row for row in rows if has(row, "tokens_per_s")]
    notes = [f"[{mark}] {text}" for mark, text in failures.items()]
    return [*notes, _what(measured, axes)] if measured else notes


def _what(rows: Sequence[Row], axes: Sequence[str]) -> str:
    """Settings that all rows share."""
    names = {
        "model": "model {}",
        "mode": "mode {}",
        "precision": "{}",
        "seq_len": "seq_len {}",
        "micro_batch_size": "micro_batch_size {}",
        "grad_accum": "grad_accum {}",
        "threads_per_rank": "threads per rank {}",
        "device_name": "{}",
        "software": "{}",
    }
    parts = []
    for name, text in names.items():
        values = dict.fromkeys(row[name] for row in rows if has(row, name))
        if name not in axes and len(values) == 1:
            parts.append(text.format(*values))
        elif name in ("device_name", "software") and len(values) > 1:
            parts.append(f"{len(values)} different values of {name}")
    return "all rows: " + "; ".join(parts)


def _bases(rows: Sequence[Row], axes: Sequence[str]) -> str:
    if not any(has_base(row) for row in rows):
        return "one world of each strategy and setting: there is no speed-up, and no efficiency"
    regimes = dict.fromkeys(row["regime"] for row in rows)
    work = {
        "weak": "weak scaling: the same work per rank",
        "strong": "strong scaling: the same global batch",
    }
    found = [row for row in rows if is_base(row)]
    bases = "; ".join(
        f"{_name(row, axes)}: {rate(row['tokens_per_s_per_gpu'])}" for row in found[:MAX_BASES]
    )
    if len(found) > MAX_BASES:
        bases += f"; and {len(found) - MAX_BASES} more, marked base"
    return (
        f"speedup and efficiency ({'; '.join(work[regime] for regime in regimes)}) are against "
        f"the base, the smallest measured world of the same strategy and settings, in tokens/s "
        f"per rank: {bases}"
    )


def _unequal_bases(rows: Sequence[Row], axes: Sequence[str]) -> list[str]:
    """Efficiencies of rows whose base is larger than that of others that do the same work: what the
    strategy lost below its base is in none of them."""
    smallest = {row["case_id"]: row["world_size"] for row in rows}
    found = [
        row
        for row in rows
        if has(row, "efficiency_common")
        and not is_base(row)
        and row["base_world_size"] > smallest.get(row["common_base_case_id"], math.inf)
    ]
    if not found:
        return []
    each = "; ".join(
        f"{_name(row, axes)}: {percent(row['efficiency_common'])}" for row in found[:MAX_BASES]
    )
    more = f"; and {len(found) - MAX_BASES} more" if len(found) > MAX_BASES else ""
    return [
        "efficiencies against bases of unequal worlds do not compare strategies; against the best "
        f"of any strategy at the smallest world: {each}{more}"
    ]


def _launches(rows: Sequence[Row]) -> str:
    counts = sorted({int(row["num_launches"]) for row in rows})
    num = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    launches = "launch" if counts == [1] else "launches"
    text = f"{num} {launches} a row, combined by geometric mean"
    if counts[-1] >= MIN_LAUNCHES:
        text += "; [low, high] is a 95 % t interval on the logs of the launches"
        if counts[-1] >= MIN_BOOTSTRAP:
            text += f", from {MIN_BOOTSTRAP} a bootstrap-t of launches and blocks of their steps"
    if counts[0] < MIN_LAUNCHES:
        text += f"; under {MIN_LAUNCHES} launches there is no interval between launches"
    return text


def _precision(rows: Sequence[Row], axes: Sequence[str]) -> list[str]:
    """How well the least known row is known, and what would make it better known."""
    known = [row for row in rows if has(row, "half_width")]
    if not known:
        return []
    worst = max(known, key=lambda row: float(row["half_width"]))
    text = f"widest interval of tokens/s: +-{percent(worst['half_width'])}, {_name(worst, axes)}"
    if len(known) < len(rows):
        text += f" ({len(known)} of {len(rows)} rows have one)"
    if worst["half_width"] <= worst["wanted_precision"]:
        return [text]
    ways = []
    if has(worst, "launches_needed"):
        ways.append(f"{worst['launches_needed']} launches of as many steps")
    if has(worst, "steps_needed"):
        ways.append(f"{worst['steps_needed']} steps in as many launches")
    wanted = percent(worst["wanted_precision"])
    return [f"{text}; {' or '.join(ways) or 'no number of launches'} would give +-{wanted}"]


def _explanations(rows: Sequence[Row], axes: Sequence[str]) -> list[str]:
    counted = ("num_steps", "num_steps_most")  # tables of an older version have the first alone
    steps = {int(row[name]) for row in rows for name in counted if has(row, name)}
    notes = [
        "step: median over steps of the max over ranks, +- median absolute deviation over steps "
        f"within a launch ({_span(steps)} steps each)"
    ]
    cut = [_name(row, axes) for row in rows if "max_steps" in row["warmup_ended_by"].split(", ")]
    if cut:
        notes.append(
            f"warm-up was cut at its upper bound before times were steady: {'; '.join(cut)}"
        )
    breaks = [
        f"{_name(row, axes)}: {row['graph_breaks']}"
        for row in rows
        if (has(row, "graph_breaks") and row["graph_breaks"] > 0)
    ]
    if breaks:
        notes.append(f"torch.compile broke the graph, times a rank: {'; '.join(breaks)}")
    notes += _of_profile([row for row in rows if has(row, "comm_exposed_s")], axes)
    notes += _searched(rows, axes)
    if any(has(row, "peak_memory_bytes") for row in rows):
        notes.append("peak memory: of the fullest rank rN in the timed window " + _memory(rows))
        notes += _estimates(rows)
    notes += device_notes.of_rows(rows, axes)
    notes += _parity(rows, axes)
    conventions = dict.fromkeys(row["flop_convention"] for row in rows if has(row, "mfu"))
    if conventions:
        notes.append(f"MFU by FLOP convention {', '.join(conventions)}")
    if any(has(row, "mfu_of_mamf") for row in rows):
        notes.append(
            "of mamf: a rank's FLOP/s over those of the best matrix product that andromeda-scale "
            "probe measured on this device in this precision"
        )
    return notes


def _searched(rows: Sequence[Row], axes: Sequence[str]) -> list[str]:
    """The micro batches that were found, and what was tried."""
    found = [row for row in rows if has(row, "micro_batch_tried")]
    if not found:
        return []
    margin = max(float(row["micro_batch_margin"]) for row in found)
    each = "; ".join(
        f"{_name(row, axes)}: {row['micro_batch_found']} (tried {row['micro_batch_tried']})"
        for row in found
    )
    # A trial that crashed or was late does not run either.
    left = f"left {margin:.0%} of every rank's memory free (oom: refused, or less was left)"
    text = f"auto: the largest micro batch whose trial {left}: {each}"
    sizes = [row for row in found if has(row, "micro_batch_found")]
    if any(row["micro_batch_found"] != row["micro_batch_size"] for row in sizes):
        text += "; all worlds of a row have its smallest (auto_worlds)"
    return [text]


def _parity(rows: Sequence[Row], axes: Sequence[str]) -> list[str]:
    """What was compared, a line for each kind; then the rows without it, by the reason."""
    compared: dict[str, list[Row]] = {}
    unverified: dict[str, list[str]] = {}
    for row in rows:
        if row["parity"] == "ok":
            compared.setdefault(str(row["parity_kind"]), []).append(row)
        elif row["parity"] == "unavailable":
            unverified.setdefault(str(row.get("parity_cause", "")), []).append(_name(row, axes))
    notes = [_agreement(kind, those) for kind, those in compared.items()]
    return notes + [
        f"parity unverified: {'; '.join(who)}: {why}" for why, who in unverified.items()
    ]


_COMPARED_WITH = {
    "full": "of the single-process reference",
    "shallow": "of the single-process reference, both on at most two layers of the same widths",
    "cross": "of each other",
}


def _agreement(kind: str, rows: Sequence[Row]) -> str:
    """How near the first steps of all these rows were to what they were compared with."""
    columns = {"losses": "parity_loss_difference", "gradient norms": "parity_norm_difference"}
    worst = {what: [row[name] for row in rows if has(row, name)] for what, name in columns.items()}
    parts = [f"{what} within {scientific(max(found))}" for what, found in worst.items() if found]
    steps = _span({int(row["parity_steps"]) for row in rows if has(row, "parity_steps")})
    return f"parity {kind}: {', '.join(parts)} {_COMPARED_WITH[kind]}, {steps} steps"


def _of_profile(rows: Sequence[Row], axes: Sequence[str]) -> list[str]:
    """What the columns measured in phase profile mean, and who is waited for."""
    if not rows:
        return []
    steps = dict.fromkeys(int(row["num_profile_steps"]) for row in rows)
    slowdowns = {f"{row['profile_slowdown']:.2f}" for row in rows}
    return [
        f"exposed: communication that no compute hides, mean over ranks, from {_span(steps)} "
        f"separate profiled steps a launch, {_span(slowdowns)} times as long as timed ones; in "
        "brackets the share of the profiled step",
        *_ablation(rows, axes),
        *_blame(rows, axes),
    ]


def _ablation(rows: Sequence[Row], axes: Sequence[str]) -> list[str]:
    """The other method's answer, where it was asked."""
    found = "; ".join(
        f"{_name(row, axes)}: {milliseconds(row['ablation_s'])} +- "
        f"{milliseconds(row['ablation_error_s'])} ms{_contention(row)}"
        for row in rows
        if has(row, "ablation_s")
    )
    return [f"exposed by ablation, steps less steps without communication: {found}"] * bool(found)


def _contention(row: Row) -> str:
    if not has(row, "contention_s"):
        return ""
    return f" ({milliseconds(row['contention_s'])} ms of it compute that communication slows)"


def _blame(rows: Sequence[Row], axes: Sequence[str]) -> list[str]:
    """Whom the others wait for, why, and where that could not be judged."""
    shared = [row for row in rows if has(row, "imbalance")]
    if not shared:
        return []
    blamed = "".join(f"; {_name(row, axes)}: {_blamed(row)}" for row in shared if _is_blamed(row))
    notes = [
        "imbalance: max / mean - 1 of compute over ranks; rN: the rank that the others wait for, "
        "named where more than half of the launches, or else the steps of all together, find it "
        f"late by over {MIN_SHARE:.0%} of the step and the null floor in the median or mean of at "
        f"least {MIN_STEPS} steps, beyond chance{blamed}"
    ]
    unjudged: dict[str, list[str]] = {}
    for row in shared:
        if not _is_blamed(row) and row["nobody_blamed"] not in ("", NOBODY, NO_MAJORITY):
            unjudged.setdefault(str(row["nobody_blamed"]), []).append(_name(row, axes))
    notes += [f"nobody can be blamed: {'; '.join(who)}: {why}" for why, who in unjudged.items()]
    if not all(has(row, "blame_floor_s") for row in shared):
        notes.append(
            "no null floor stored for these ranks: a delay of this machine's own may be blamed "
            "on a rank; `andromeda-scale selftest` measures and stores it"
        )
    return notes


def _is_blamed(row: Row) -> bool:
    return has(row, "blamed_rank")


def _blamed(row: Row) -> str:
    more = f" (all: {row['blamed_ranks']})" if "," in row["blamed_ranks"] else ""
    state = {
        "blamed_clock_mhz": "{:.0f} MHz",
        "blamed_temperature_c": "{:.0f} C",
        "blamed_power_w": "{:.0f} W",
    }
    known = [text.format(row[name]) for name, text in state.items() if has(row, name)]
    device = ", ".join(part for part in (row["blamed_device"], *known) if part)
    return (
        f"rank {row['blamed_rank']} on {row['blamed_host']} ({device}){more}, "
        f"{milliseconds(row['blame_s'])} ms a step, {row['blame_kind']}, {row['blame_cause']}"
    )


def _memory(rows: Sequence[Row]) -> str:
    kinds = {
        "cpu": "(CPU: resident set of the process)",
        "cuda": "(CUDA: allocated by torch)",
    }
    return " ".join(kinds[kind] for kind in dict.fromkeys(str(row["device"]) for row in rows))


def _estimates(rows: Sequence[Row]) -> list[str]:
    """How the plan's estimates compare with what torch's allocator held at most."""
    errors = sorted(row["estimate_error"] for row in rows if has(row, "estimate_error"))
    if not errors:
        return []
    span = f"{errors[0]:+.1%} .. {errors[-1]:+.1%}"
    return [f"estimated memory within {span} of the measured peak that torch allocated"]


def _span(values: Iterable[Any]) -> str:
    found = sorted(set(values))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"
