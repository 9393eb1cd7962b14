"""The rows of a selftest: what is planted, and what must be found of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from andromeda_scale.analysis.blame import MIN_STEPS
from andromeda_scale.selftest import late
from andromeda_scale.selftest.evidence import (
    TOLERANCE,
    UNAVAILABLE,
    Finding,
    Launch,
    bounded,
    counted,
    judge,
    mebibytes,
    megabytes_per_s,
    milliseconds,
    ratio,
)
from andromeda_scale.selftest.place import NULL, Launches, Null, Place, Row
from andromeda_scale.suite.faults import SlowLink, refusal

HELD_MIB, RATIO, AHEAD = 512, 1.5, 2
LINK_MBYTES_PER_S = (10.0, 200.0)  # where the kernel's pacing holds its rate
WARMUP, STEPS, PROFILED, FEW = 3, 2, 24, 8
EVEN = "silent ddp"  # on a CPU of LONG
LONG = {"cpu": (16, 64), "cuda": (32, 512)}  # sequences, tokens of a step much longer than base's


def base(place: Place) -> dict[str, Any]:
    """A suite of short steps whose one all-reduce no backward hides."""
    model, train = {
        "cpu": ("llama-tiny", {"seq_len": 32, "micro_batch_size": 1}),
        # So much work for so few kernels that the host, even under the profiler, is ahead of it.
        "cuda": (
            {"base": "cs336-small", "num_layers": 4},
            {"seq_len": 512, "micro_batch_size": 16},
        ),
    }[place.device]
    return {
        "question": "What do the instruments say of what was planted?",
        "model": model,
        "data": {"source": "random"},
        "train": train,
        "strategy": {"name": "ddp", "bucket_cap_mb": 10_000.0},
        "world": place.world,
        "device": place.device,
        "parity": "off",
        "collect": ["communication", "memory"],
        "measure": {
            "warmup": {"min_steps": WARMUP, "max_steps": WARMUP},
            "steps": STEPS,
            "profile_steps": PROFILED,
        },
        "limits": {"timeout_s": 120.0, "heartbeat_s": 60.0},
    }


def rows(place: Place, null: Null, quick: bool) -> list[Row]:
    """Every row; the first is the unplanted one, which the others are compared with."""
    few, many = (2, 3) if quick else (3, 10)
    timed = [
        late.always(place, null, "compute", many),
        late.always(place, null, "host", few),
        late.two(place, null, few),
        late.sometimes(place, null, few, first=WARMUP + STEPS, profiled=2 * PROFILED),
        _uneven(place, few),
        _link(place, null, few),
        *(_data(place, null, ahead, few) for ahead in (0, AHEAD)),
    ]
    return [
        late.nobody(place, many if quick else late.RUNS_OF_NOBODY),
        *(replace(row, unavailable=row.unavailable or null.too_noisy) for row in timed),
        _memory(place, few),
        _silent(place, ("ddp",) if quick else ("ddp", "fsdp2", "zero1", "zero2"), few),
    ]


def _uneven(place: Place, launches: int) -> Row:
    """On the last rank and on the first in turn, so that unequal cores cancel."""
    # So much work that what takes the same time whatever the batch is 1 % of it.
    size, seq_len = LONG[place.device]
    planted = f"one rank with {RATIO} times the batch"
    faults = {f"batch {r}": [{"kind": "batch", "rank": r, "ratio": RATIO}] for r in (place.late, 0)}
    cases = {
        name: {
            "faults": fault,
            "train.micro_batch_size": size,
            "train.seq_len": seq_len,
            "train.mode": "forward_backward",  # no update
            "measure.profile_steps": MIN_STEPS,
        }
        for name, fault in faults.items()
    }
    sequences = (place.world - 1 + RATIO) * size
    tokens = STEPS * sequences * seq_len

    def found(all_: Launches) -> list[Finding]:
        mine = [one for name in cases for one in all_[name]]
        counts = [one.of("tokens_per_s") * one.of("window_s") for one in mine]
        hits = sum(abs(count - tokens) < 0.5 for count in counts)
        # What follows for even launches: of equal ranks the closed form, otherwise noise about it.
        even, closed = all_.get(EVEN, ()), RATIO * size * place.world / sequences - 1
        expected = [_imbalance_with(one, rank) for one in even for rank in range(place.world)]
        return [
            judge(
                planted, "imbalance", expected or [closed],
                [one.of("imbalance") for one in mine], text=ratio,
            ),
            counted(planted, f"tokens/s of {tokens:.0f} tokens", hits, len(counts), timed=False),
        ]  # fmt: skip

    return Row(planted, cases, launches, found, place.lacks(2))


def _imbalance_with(launch: Launch, rank: int) -> float:
    """What an even launch's imbalance becomes where a rank computes RATIO times as long."""
    compute = launch.ranks["compute_s"].to_numpy(dtype=float).copy()
    compute[rank] *= RATIO
    return float(compute.max() / compute.mean() - 1)


def _memory(place: Place, launches: int) -> Row:
    rank = place.late
    planted = f"rank {rank} holds {HELD_MIB} MiB more"

    def found(all_: Launches) -> list[Finding]:
        mine, plain = all_["memory"], all_[NULL]
        more = [one.above("peak_memory_bytes", rank) for one in mine]
        before = [one.above("peak_memory_bytes", rank) for one in plain]
        named = sum(one.of("peak_memory_rank") == rank for one in mine)
        return [
            judge(
                planted, "peak memory above the others'", [HELD_MIB * 2.0**20], more, before,
                text=mebibytes, tolerance=0.02, timed=False,
            ),
            counted(planted, f"the fullest rank is {rank}", named, len(mine), timed=False),
        ]  # fmt: skip

    fault = {"kind": "memory", "rank": rank, "mib": HELD_MIB}
    return Row(planted, {"memory": {"faults": [fault]}}, launches, found)


def _link(place: Place, null: Null, launches: int) -> Row:
    """A rate at which the step's one all-reduce takes about as long as two delays."""
    low, high = LINK_MBYTES_PER_S
    rate = round(min(max(null.wire_bytes / (2 * null.delay_s) / 1e6, low), high), 1)
    planted = f"every link at {rate:g} MB/s"

    def found(all_: Launches) -> list[Finding]:
        mine, plain = all_["link"], all_[NULL]

        def added(name: str) -> tuple[list[float], list[float]]:
            return [one.of(name) for one in mine], [one.of(name) for one in plain]

        steps, unplanted = added("profile_step_s")
        longer = [step - float(np.median(unplanted)) for step in steps]
        return [
            judge(
                planted, "bus bandwidth", [rate], [1e3 * float(mine[0].case["busbw_gbps"])],
                text=megabytes_per_s,
            ),
            judge(
                planted, "added step time as exposed transfer", longer,
                *added("exposed_transfer_s"), text=milliseconds,
            ),
            judge(
                planted, "added step time as waiting", [0.0], *added("exposed_wait_s"),
                text=milliseconds, scale=float(np.median(longer)),
            ),
        ]  # fmt: skip

    fault = {"kind": "link", "mbytes_per_s": rate}
    cannot = refusal((SlowLink(kind="link", mbytes_per_s=rate),), place.device)
    reason = place.lacks(2) or (f"{UNAVAILABLE}: {cannot}" if cannot else "")
    return Row(planted, {"link": {"faults": [fault]}}, launches, found, reason)


def _silent(place: Place, strategies: Sequence[str], launches: int) -> Row:
    """Of the same steps the profiler says what is exposed, and blocks without communication do.

    Communication slows compute beside it, so that leaving it out gains more: on a GPU by what the
    compute of profiled steps shows, on a CPU by what cannot be told from the threads' turns.
    """
    planted = "communication removed"
    collected: dict[str, Any] = {"collect": ["communication", "ablation"]}
    if place.device == "cpu":  # of short steps the profiler alone slows more than is looked for
        size, seq_len = LONG["cpu"]
        collected |= {"train.micro_batch_size": size, "train.seq_len": seq_len}
    cases: dict[str, dict[str, Any]] = {
        f"silent {name}": {"strategy": {"name": name}, **collected} for name in strategies
    }

    def found(all_: Launches) -> list[Finding]:
        findings = []
        for name, case in cases.items():
            mine = all_[name]
            pairs = [(one.of("comm_exposed_s"), one.of("ablation_s")) for one in mine]
            allowed = 0.02 * float(np.median([one.of("profile_step_s") for one in mine]))
            claim = f"exposed seconds of {case['strategy']['name']}"
            if place.device == "cuda":
                slower = [one.of("contention_s") for one in mine]
                pairs = [(x + more, y) for (x, y), more in zip(pairs, slower, strict=True)]
                allowed = max(allowed, TOLERANCE * float(np.median([x for _, x in pairs])))
                claim = f"{claim}, and compute slowed"
            error = float(np.median([one.of("ablation_error_s") for one in mine]))
            findings.append(
                bounded(
                    planted, claim, pairs, allowed, error, text=milliseconds,
                    both_sides=place.device == "cuda",
                )
            )  # fmt: skip
        return findings

    return Row(planted, cases, launches, found, place.lacks(2))


def _data(place: Place, null: Null, ahead: int, launches: int) -> Row:
    """Read ahead, a batch is waited for as long as reading takes longer than the rest of a step."""
    # Steps differ by more than a few percent: what is to be seen beside one is longer.
    delay = 2 * null.delay_s + null.step_s if ahead else null.delay_s
    if place.device == "cuda":  # the host reads while the device still works on what it was given
        delay = max(delay, 12 * null.step_s)
    delay = round(delay, 3)
    planted = (
        f"batches {milliseconds(delay)} slower, {f'{ahead} read ahead' if ahead else 'no prefetch'}"
    )
    name = f"data {ahead}"

    def found(all_: Launches) -> list[Finding]:
        mine, plain = all_[name], all_[NULL]
        steps = [one.of("profile_step_s") if ahead else 0.0 for one in plain]
        waited = [one.of("data_s") for one in mine]
        longer = [max(0.0, delay - step) for step in steps]
        before = [one.of("data_s") for one in plain]
        return [
            judge(
                planted, "waiting for data", longer, waited, before, text=milliseconds,
            )
        ]  # fmt: skip

    changes: dict[str, Any] = {"faults": [{"kind": "data", "delay_s": delay}]}
    changes["measure.profile_steps"] = FEW  # each lasts long
    if ahead:
        changes["data.prefetch"] = ahead
    return Row(planted, {name: changes}, launches, found)
