"""The schema of planted truths: `faults` of a suite. What they do is in `planting.py`. No torch.

A fault happens in every step of a repeat, warm-up included, or in one step, counted from 0. Faults
of one kind on one rank add up. Launches that others are compared with have none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from andromeda_scale.suite.schema import MAX_RANKS, MAX_STEPS, Schema, Seconds
from andromeda_scale.suite.world import World

Rank = Annotated[int, Field(ge=0, lt=MAX_RANKS)]
Step = Annotated[int, Field(ge=0, lt=MAX_STEPS)]


class _Late(Schema):
    rank: Rank
    delay_s: Seconds
    # Of all steps, those that a hash of the suite's seed and the step chooses.
    share: Annotated[float, Field(gt=0, le=1)] = 1.0


class SlowCompute(_Late):
    """Real operations on the training thread (CUDA: a kernel that spins) at the start of a step."""

    kind: Literal["compute"]


class SlowHost(_Late):
    """A sleep of the training thread at the start of a step, when the device has no work left."""

    kind: Literal["host"]


class SlowData(Schema):
    """Every micro-batch takes so much longer to read; `data.prefetch` may hide it."""

    kind: Literal["data"]
    delay_s: Seconds
    rank: Rank | None = None  # null: every rank


class UnevenBatch(Schema):
    """The rank's micro-batches have round(ratio * train.micro_batch_size) sequences."""

    kind: Literal["batch"]
    rank: Rank
    ratio: Annotated[float, Field(gt=0, le=1000)]


class HeldMemory(Schema):
    """A tensor on the rank's device, written to, and kept from the end of setup on."""

    kind: Literal["memory"]
    rank: Rank
    mib: Annotated[int, Field(gt=0, le=2**24)]


class SlowLink(Schema):
    """Every TCP connection between ranks sends at most so much, each direction on its own.

    The kernel paces packets, with bursts of some 64 KB: found on loopback by all-reduces of two
    ranks, 2.4 MB and more at 10 to 200 MB/s within 3 %, 1 MB within 10 %; faster or smaller is not
    held to its rate.
    """

    kind: Literal["link"]
    mbytes_per_s: Annotated[float, Field(ge=0.01, le=1e6)]  # of 1e6 bytes


class _Once(Schema):
    rank: Rank
    step: Step


class OutOfMemory(_Once):
    """The rank asks for more memory than its device has."""

    kind: Literal["oom"]


class Hang(_Once):
    """The rank never returns."""

    kind: Literal["hang"]


class Crash(_Once):
    """The rank is ended by a signal."""

    kind: Literal["crash"]
    signal: Literal["SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGKILL", "SIGTERM"] = (
        "SIGSEGV"
    )


class NotANumber(_Once):
    """Every parameter that the rank holds becomes NaN."""

    kind: Literal["nan"]


Fault = Annotated[
    SlowCompute
    | SlowHost
    | SlowData
    | UnevenBatch
    | HeldMemory
    | SlowLink
    | OutOfMemory
    | Hang
    | Crash
    | NotANumber,
    Field(discriminator="kind"),
]
Once = OutOfMemory | Hang | Crash | NotANumber
Faults = Sequence[Fault]


def uneven(faults: Faults, micro_batch_size: int) -> dict[int, int]:
    """Sequences of a micro-batch, at least 1, by rank that has not micro_batch_size of them."""
    found = [fault for fault in faults if isinstance(fault, UnevenBatch)]
    return {f.rank: max(1, round(f.ratio * micro_batch_size)) for f in found}


def changes_memory(faults: Faults) -> int | None:
    """The index of a fault that makes one rank hold more or less than the others."""
    found = (i for i, f in enumerate(faults) if isinstance(f, HeldMemory | UnevenBatch))
    return next(found, None)


def falls_on(step: int, share: float, seed: int, index: int) -> bool:
    """Whether fault `index` of a suite happens in a step: in `share` of all, drawn by hash."""
    digest = hashlib.sha256(f"{seed}/{index}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def conflict(faults: Faults, parity: str, steps: int) -> str | None:
    """ "key: problem; remedy" of faults that cannot be planted; None if they can.

    steps: those that every repeat has.
    """
    for index, fault in enumerate(faults):
        if isinstance(fault, UnevenBatch) and any(
            isinstance(f, UnevenBatch) and f.rank == fault.rank for f in faults[:index]
        ):
            return f"faults[{index}].rank: {fault.rank} has an uneven batch already; use one ratio"
        if isinstance(fault, UnevenBatch) and parity != "off":
            return (
                f"parity: {parity} compares batches that every rank shares alike, and "
                f"faults[{index}] makes them uneven; use parity: off"
            )
        if isinstance(fault, Once) and fault.step >= steps:
            return (
                f"faults[{index}].step: {fault.step} may never come, a repeat is sure of {steps} "
                "(measure: warmup.min_steps + steps + profile_steps); "
                + (f"use at most {steps - 1}" if steps else "raise measure.steps")
            )
    return None


def world_skip(faults: Faults, world: World) -> str | None:
    """Why a world cannot have these faults: "key: problem; remedy"."""
    ranks = [f.rank for f in faults if not isinstance(f, SlowLink) and f.rank is not None]
    if ranks and max(ranks) >= world.size:
        return f"faults: a world of {world.size} has no rank {max(ranks)}; use a larger world"
    if world.size == 1 and any(isinstance(f, SlowLink) for f in faults):
        return "faults: a world of 1 has no link; use a larger world"
    return None


def batch_skip(faults: Faults, micro_batch_size: int) -> str | None:
    """Why an uneven batch of this size would be none: "key: problem; remedy". 1 asks for none."""
    sizes = uneven(faults, micro_batch_size)
    for fault in (f for f in faults if isinstance(f, UnevenBatch) and f.ratio != 1):
        if sizes[fault.rank] == micro_batch_size:
            return (
                f"faults: {fault.ratio:g} times {micro_batch_size} sequences, in whole ones, are "
                f"{micro_batch_size}, as on every rank; use a larger train.micro_batch_size"
            )
    return None


def refusal(faults: Faults, device: str) -> str | None:
    """Why these faults cannot be planted on this kind of device: "key: problem; remedy"."""
    if device == "cuda" and any(isinstance(f, SlowLink) for f in faults):
        return (
            "faults: link paces TCP sockets, and NCCL's data goes over NVLink, PCIe or "
            "InfiniBand; use device: cpu"
        )
    return None
