"""The rows of `andromeda-scale selftest`: what is planted, and what must be found of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Literal

import numpy as np

from andromeda_scale.analysis.blame import MIN_STEPS
from andromeda_scale.faults import SlowLink, falls_on, refusal
from andromeda_scale.selftest_evidence import (
    FAIL,
    PASS,
    UNAVAILABLE,
    Finding,
    Launch,
    counted,
    deviation,
    judge,
    mebibytes,
    megabytes_per_s,
    milliseconds,
    ratio,
)

MIN_DELAY_S, MAX_DELAY_S = 0.05, 0.2
NULLS = 3.0  # a delay is so many times what is blamed where nothing is planted
HELD_MIB, RATIO, SHARE, AHEAD = 512, 1.5, 0.3, 2
LINK_MBYTES_PER_S = (10.0, 200.0)  # where the kernel's pacing holds its rate
WARMUP, STEPS, PROFILED = 3, 2, 24
RUNS_OF_NOBODY = 20  # of which one may blame somebody
NULL = "nothing"


@dataclass(frozen=True)
class Place:
    """Where truths are planted: ranks on one node, each with a core or a GPU of its own."""

    device: Literal["cpu", "cuda"]
    world: int

    @property
    def late(self) -> int:
        """The rank on which things are planted."""
        return self.world - 1

    def lacks(self, ranks: int) -> str:
        """Why something that needs so many ranks is not planted; empty if it can be."""
        unit = "core" if self.device == "cpu" else "GPU"
        if self.world >= ranks:
            return ""
        return f"{UNAVAILABLE}: needs {ranks} ranks with a {unit} each, {self.world} here"


@dataclass(frozen=True)
class Null:
    """What launches showed in which nothing was planted."""

    late_s: float  # the most by which any rank was late: the floor of blame
    noise_s: float  # by how much waiting differs between launches
    step_s: float  # profiled
    wire_bytes: float  # of a rank and step

    @classmethod
    def of(cls, found: Sequence[Launch], waits: Sequence[float]) -> Null:
        """From unplanted launches, and the waiting in each: 0 where one rank is alone."""
        return cls(
            late_s=max((one.of("late_s") for one in found if one.has("late_s")), default=0.0),
            noise_s=deviation(waits),
            step_s=float(np.median([one.of("profile_step_s") for one in found])),
            wire_bytes=max(one.of("comm_wire_bytes") for one in found),
        )

    @property
    def delay_s(self) -> float:
        """A delay that can be found, in whole milliseconds."""
        needed = max(MIN_DELAY_S, NULLS * self.late_s, 10 * self.noise_s)
        return float(np.ceil(needed * 1e3) / 1e3)

    @property
    def too_noisy(self) -> str:
        """Why no delay can be; empty if one can."""
        if self.delay_s <= MAX_DELAY_S:
            return ""
        late, noise = milliseconds(self.late_s), milliseconds(self.noise_s)
        return f"{UNAVAILABLE}: too noisy (null {late}, launches differ by {noise})"


Launches = Mapping[str, Sequence[Launch]]


@dataclass(frozen=True)
class Row:
    """One truth: cases by name, each some changes (dotted keys) of `base`, and what is found.

    The cases of other rows are there to compare with: NULL is the unplanted one.
    """

    planted: str
    cases: Mapping[str, Mapping[str, Any]]
    num_launches: int
    judge: Callable[[Launches], list[Finding]]
    unavailable: str = ""  # why it is not planted


def base(place: Place) -> dict[str, Any]:
    """A suite of short steps whose one all-reduce no backward hides."""
    model, train = {
        "cpu": ("llama-tiny", {"seq_len": 32, "micro_batch_size": 1}),
        "cuda": ("cs336-small", {"seq_len": 256, "micro_batch_size": 1}),
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
        _late(place, null, "compute", many),
        _late(place, null, "host", few),
        _two_late(place, null, few),
        _transient(place, null, few),
        _uneven(place, few),
        _link(place, null, few),
        *(_data(place, null, ahead, few) for ahead in (0, AHEAD)),
    ]
    return [
        _nobody(place, many),
        *(replace(row, unavailable=row.unavailable or null.too_noisy) for row in timed),
        _memory(place, few),
    ]


def _nobody(place: Place, launches: int) -> Row:
    def found(all_: Launches) -> list[Finding]:
        mine = all_[NULL]
        hits = sum(_names_any(one) for one in mine)
        verdict = PASS if hits <= len(mine) // RUNS_OF_NOBODY else FAIL
        if hits == 1 and len(mine) < RUNS_OF_NOBODY:
            verdict = f"{UNAVAILABLE}: {RUNS_OF_NOBODY} launches would decide"
        said = f"{hits} of {len(mine)}"
        return [Finding(NULL, "launches that blame a rank", "0", said, "", verdict)]

    return Row(NULL, {NULL: {}}, launches, found, place.lacks(2))


def _late(place: Place, null: Null, cause: str, launches: int) -> Row:
    rank, delay = place.late, null.delay_s
    does = {"compute": "computes", "host": "sleeps"}[cause]
    planted = f"rank {rank} {does} {milliseconds(delay)} longer"

    def found(all_: Launches) -> list[Finding]:
        mine, plain = all_[cause], all_[NULL]
        # What follows from d for launches without it.
        computed = [_imbalance_with(one, rank, delay) for one in plain]
        unplanted = [one.of("imbalance") for one in plain]
        return [
            _named(planted, mine, plain, delay, (str(rank), cause, "persistent")),
            judge(
                planted, "waiting, early less late ranks", [delay],
                [one.waiting(rank) for one in mine], [one.waiting(rank) for one in plain],
                text=milliseconds,
            ),
            judge(
                planted, "imbalance", computed if cause == "compute" else unplanted,
                [one.of("imbalance") for one in mine],
                text=ratio, scale=float(np.median(computed)),
            ),
        ]  # fmt: skip

    fault = {"kind": cause, "rank": rank, "delay_s": delay}
    return Row(planted, {cause: {"faults": [fault]}}, launches, found, place.lacks(2))


def _two_late(place: Place, null: Null, launches: int) -> Row:
    """The later one by 1.2 times: a rank that waits longer than it keeps others is not late."""
    first, second = place.late - 1, place.late
    delays = {first: 2 * null.delay_s, second: 2.4 * null.delay_s}
    planted = "; ".join(f"rank {r} computes {milliseconds(d)} longer" for r, d in delays.items())

    def found(all_: Launches) -> list[Finding]:
        wanted = (f"{second}, {first}", "compute", "persistent")
        return [_named(planted, all_["two"], all_[NULL], null.delay_s, wanted)]

    faults = [{"kind": "compute", "rank": r, "delay_s": d} for r, d in delays.items()]
    return Row(planted, {"two": {"faults": faults}}, launches, found, place.lacks(3))


def _transient(place: Place, null: Null, launches: int) -> Row:
    rank, delay = place.late, round(null.delay_s / SHARE, 3)  # null.delay_s on the mean
    planted = f"rank {rank} computes {milliseconds(delay)} longer in {SHARE:.0%} of steps"

    def found(all_: Launches) -> list[Finding]:
        wanted = (str(rank), "compute", "transient")
        return [_named(planted, all_["transient"], all_[NULL], null.delay_s, wanted)]

    fault = {"kind": "compute", "rank": rank, "delay_s": delay, "share": SHARE}
    profiled = range(WARMUP + STEPS, WARMUP + STEPS + 2 * PROFILED)
    # Of the seeds, the first by which that share falls into the steps that are looked at.
    seed = next(
        seed
        for seed in count()
        if sum(falls_on(step, SHARE, seed, 0) for step in profiled) == round(SHARE * len(profiled))
    )
    changes = {"faults": [fault], "measure.profile_steps": 2 * PROFILED, "seed": seed}
    return Row(planted, {"transient": changes}, launches, found, place.lacks(2))


def _uneven(place: Place, launches: int) -> Row:
    """On the last rank and on the first in turn, so that unequal cores cancel."""
    # So much work that what takes the same time whatever the batch is 1 % of it.
    size, seq_len = {"cpu": (16, 64), "cuda": (16, 512)}[place.device]
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
        pairs = list(zip(*(all_[name] for name in cases), strict=False))
        counts = [one.of("tokens_per_s") * one.of("window_s") for pair in pairs for one in pair]
        hits = sum(abs(count - tokens) < 0.5 for count in counts)
        return [
            judge(
                planted, "imbalance", [RATIO * size * place.world / sequences - 1],
                [float(np.mean([one.of("imbalance") for one in pair])) for pair in pairs],
                text=ratio,
            ),
            counted(planted, f"tokens/s of {tokens:.0f} tokens", hits, len(counts), timed=False),
        ]  # fmt: skip

    return Row(planted, cases, launches, found, place.lacks(2))


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


def _data(place: Place, null: Null, ahead: int, launches: int) -> Row:
    """Read ahead, a batch is waited for as long as reading takes longer than the rest of a step."""
    # Steps differ by more than a few percent: what is to be seen beside one is longer.
    delay = round(2 * null.delay_s + null.step_s if ahead else null.delay_s, 3)
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
    if ahead:
        changes["data.prefetch"] = ahead
    return Row(planted, {name: changes}, launches, found)


def _names_any(launch: Launch) -> bool:
    return launch.text("blamed_ranks") != ""


def _named(
    planted: str,
    mine: Sequence[Launch],
    plain: Sequence[Launch],
    delay_s: float,
    wanted: tuple[str, str, str],
) -> Finding:
    """Whether every launch blames these ranks, in this order, for this cause and in this way."""
    keys = ("blamed_ranks", "blame_cause", "blame_kind")
    hits = sum(tuple(one.text(key) for key in keys) == wanted for one in mine)
    said = counted(planted, f"blamed: rank {', '.join(wanted)}", hits, len(mine))
    floor = max(one.of("late_s") for one in plain)
    if delay_s < NULLS * floor:  # noisier by now than when the delay was chosen
        return replace(said, verdict=f"{UNAVAILABLE}: too noisy (null {milliseconds(floor)})")
    return said


def _imbalance_with(launch: Launch, rank: int, delay_s: float) -> float:
    """What the imbalance of an unplanted launch becomes with a delay in a rank's compute."""
    compute = launch.ranks["compute_s"].to_numpy(dtype=float).copy()
    compute[rank] += delay_s
    return float(compute.max() / compute.mean() - 1)
