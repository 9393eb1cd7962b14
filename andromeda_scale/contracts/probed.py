"""What a probe measures, and the form of what it found: raw points, and ceilings kept of them.

No torch. A point is one operation at one size: `block_ns` are the times of equal blocks of `calls`
calls each, on one rank; the ranks of a point ran the same blocks, each after a barrier.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from andromeda_scale.suite.schema import MAX_RANKS, Schema

# A table holds int64, and a product of three edges must stay a float.
Count = Annotated[int, Field(gt=0, lt=2**62)]
Ranks = Annotated[int, Field(gt=0, le=MAX_RANKS)]
Kind = Literal["matmul", "memory", "transfer", "collective"]

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send")

MIN_BLOCK_S = 2e-3  # far above what a barrier leaves between ranks, and a clock's resolution
MIN_BLOCKS, MAX_BLOCKS = 5, 25
TRIALS = 3  # single calls after a first one, by which the blocks are planned
_MAX_CALLS = 1000  # in a block


class ProbeSettings(Schema):
    """How far and how long a probe measures."""

    quick: bool
    sizes: tuple[PositiveInt, ...]  # bytes of collectives, ascending
    matmul_sizes: tuple[PositiveInt, ...]  # edges, ascending
    memory_sizes: tuple[PositiveInt, ...]  # bytes of one array, ascending
    target_s: PositiveFloat  # for which the blocks of a point are repeated
    limit_s: PositiveFloat  # a point that would take longer is left out
    threads: tuple[PositiveInt, ...]  # intra-op CPU threads of the matrix products


class Point(Schema):
    """One point of one rank. `left_out` says why it was not measured; then there are no blocks.

    `size_bytes` is S of a collective (METRICS), and the bytes moved by one call of the others.
    """

    kind: Kind
    op: str  # a collective; matmul; copy or triad; host_to_device, ...
    dtype: str = "float32"
    size_bytes: Count | None = None
    shape: tuple[Count, Count, Count] | None = None  # m, n, k of a matmul
    threads: Count | None = None  # of a CPU
    group_size: Ranks = 1  # the first ranks of the world
    rested: bool = False  # measured after a pause, not in the middle of a sweep
    calls: Count | None = None
    block_ns: tuple[Count, ...] = ()
    left_out: str | None = None

    @model_validator(mode="after")
    def _of_some_size(self) -> Point:
        if self.block_ns and (self.shape if self.kind == "matmul" else self.size_bytes) is None:
            raise ValueError(f"a measured {self.kind} of no size")
        return self


class Ceiling(Schema):
    """What a point says of a machine, for results of other runs to be held against."""

    kind: Kind
    op: str
    dtype: str
    size_bytes: Count | None = None
    shape: str = ""  # of a matmul: m x n x k
    threads: Count | None = None
    group_size: Ranks
    group_nodes: Ranks
    time_s: PositiveFloat
    flops_per_s: PositiveFloat | None = None
    bytes_per_s: PositiveFloat | None = None
    busbw_gbps: NonNegativeFloat | None = None


class Probed(Schema):
    """The ceilings of one world: what calibration keeps under "<device>/<world>"."""

    world_size: PositiveInt
    device_name: str
    software: str
    host: str
    run_dir: str
    measured_unix_s: NonNegativeFloat
    quick: bool
    points: tuple[Ceiling, ...]


def settings(*, quick: bool, cuda: bool, threads: tuple[int, ...]) -> ProbeSettings:
    """The sweep of a probe; `quick` is a look at a few sizes."""
    return ProbeSettings(
        quick=quick,
        sizes=tuple(2**power for power in (range(10, 23, 4) if quick else range(10, 31, 2))),
        matmul_sizes=((1024, 4096) if cuda else (256, 512))
        if quick
        else ((1024, 2048, 4096, 8192, 16384) if cuda else (256, 512, 1024, 2048)),
        memory_sizes=(2**26,) if quick else (2**26, 2**28, 2**30),
        target_s=0.03 if quick else 0.4,
        limit_s=2.0 if quick else 30.0,
        threads=threads,
    )


def matmul_shapes(edges: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(m, n, k) by work: cubes, and cubes with one edge four times as long, within the largest."""
    shapes = {(n, n, n) for n in edges}
    for n in edges:
        if 4 * n <= max(edges):
            shapes |= {(4 * n, n, n), (n, 4 * n, n), (n, n, 4 * n), (4 * n, 4 * n, n)}
    return sorted(shapes, key=lambda shape: (math.prod(shape), shape))


def repetition(call_s: float, probe: ProbeSettings) -> tuple[int, int]:
    """(calls in a block, blocks) of a point whose one call takes `call_s`."""
    calls = min(_MAX_CALLS, max(1, math.ceil(MIN_BLOCK_S / max(call_s, 1e-9))))
    blocks = int(probe.target_s / (calls * max(call_s, 1e-9)))
    return calls, min(MAX_BLOCKS, max(MIN_BLOCKS, blocks))


def too_long(call_s: float, probe: ProbeSettings) -> str | None:
    """Why a point whose one call would take `call_s` is left out; None if it is not."""
    needed_s = (1 + TRIALS + MIN_BLOCKS) * call_s
    if needed_s <= probe.limit_s:
        return None
    return f"would take about {needed_s:.3g} s; a point has {probe.limit_s:g} s"
