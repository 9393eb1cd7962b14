"""What one device reaches alone: matrix products, memory, and the way to the host and back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from andromeda_scale.contracts.probed import (
    TRIALS,
    Point,
    ProbeSettings,
    matmul_shapes,
    repetition,
    too_long,
)
from andromeda_scale.rank import runtime
from andromeda_scale.rank.runtime import Runtime

_TF32_SINCE = (8, 0)  # compute capability
_TRIAD = 3.0  # any factor but 0 and 1
FASTEST, REST_S = 4, 1.0  # shapes of a sweep that are timed again, and the pause before each


def device_points(rt: Runtime, settings: ProbeSettings, room: int) -> Iterator[Point]:
    """All points of this rank's device; `room` are the bytes it may fill."""
    cuda = rt.device.type == "cuda"
    for threads in (None,) if cuda else settings.threads:
        if threads is not None:
            torch.set_num_threads(threads)
        for dtype in ("float32", *(("tf32",) if cuda else ()), "bfloat16", "float16"):
            yield from _matmul(rt, settings, dtype, threads, room)
        yield from _memory(rt, settings, threads, room)
    if cuda:
        yield from _transfer(rt, settings, room)


def _matmul(
    rt: Runtime, settings: ProbeSettings, dtype: str, threads: int | None, room: int
) -> Iterator[Point]:
    """One dtype over all shapes, the least work first."""
    about: dict[str, Any] = {"kind": "matmul", "op": "matmul", "dtype": dtype, "threads": threads}
    if dtype == "tf32" and torch.cuda.get_device_capability(rt.device) < _TF32_SINCE:
        yield Point(**about, left_out="unavailable: this device has no TF32")
        return
    kind: torch.dtype = torch.float32 if dtype == "tf32" else getattr(torch, dtype)
    call_s, work = 0.0, 0
    rates: dict[tuple[int, int, int], float] = {}
    for m, n, k in matmul_shapes(settings.matmul_sizes):
        here = {**about, "shape": (m, n, k)}
        why = too_long(call_s * m * n * k / work, settings) if work else None
        if why is None and (m * k + k * n + m * n) * kind.itemsize > room:
            why = "its operands do not fit"
        if why is not None:
            yield Point(**here, left_out=why)
            continue
        with _products("high" if dtype == "tf32" else "highest"):
            try:
                call_s, point = _timed(rt, settings, _product(rt, (m, n, k), kind), here)
            except RuntimeError as error:
                if "not implemented" not in str(error) and "not support" not in str(error):
                    raise
                yield Point(**about, left_out=f"unavailable: {str(error).splitlines()[0]}")
                return
        work = m * n * k
        rates[m, n, k] = work / call_s
        yield point
    if rt.device.type == "cuda":
        yield from _rested(rt, settings, dtype, sorted(rates, key=lambda x: -rates[x])[:FASTEST])


def _rested(
    rt: Runtime, settings: ProbeSettings, dtype: str, shapes: Sequence[tuple[int, int, int]]
) -> Iterator[Point]:
    """Shapes once more, each after a pause: a sweep heats a GPU to where its power is capped."""
    kind: torch.dtype = torch.float32 if dtype == "tf32" else getattr(torch, dtype)
    for shape in shapes:
        about: dict[str, Any] = {"kind": "matmul", "op": "matmul", "dtype": dtype, "shape": shape}
        about["rested"] = True
        call = _product(rt, shape, kind)
        time.sleep(REST_S)
        with _products("high" if dtype == "tf32" else "highest"):
            yield _timed(rt, settings, call, about)[1]


def _product(rt: Runtime, shape: tuple[int, int, int], dtype: torch.dtype) -> Callable[[], object]:
    """A matrix product into memory it has.

    Operands are normal random numbers: zeros need less power, and so run at higher clocks.
    """
    m, n, k = shape
    a, b = (torch.randn(edges, device=rt.device).to(dtype) for edges in ((m, k), (k, n)))
    out = torch.empty(m, n, device=rt.device, dtype=dtype)
    return lambda: torch.mm(a, b, out=out)


@contextmanager
def _products(precision: str) -> Iterator[None]:
    """float32 matrix products as they are ("highest"), or rounded to TF32 ("high")."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _memory(
    rt: Runtime, settings: ProbeSettings, threads: int | None, room: int
) -> Iterator[Point]:
    """Copy (2 arrays) and triad a = b + s c (3 arrays), after STREAM; bytes moved are counted."""
    for size in settings.memory_sizes:
        for op, arrays in (("copy", 2), ("triad", 3)):
            about: dict[str, Any] = {"kind": "memory", "op": op, "threads": threads}
            about["size_bytes"] = arrays * size
            if arrays * size > room:
                yield Point(**about, left_out=f"{arrays} arrays of {size} bytes do not fit")
                continue
            a, b, *c = (torch.ones(size // 4, device=rt.device) for _ in range(arrays))

            def move(a: Tensor = a, b: Tensor = b, c: list[Tensor] = c) -> object:
                return torch.add(b, c[0], alpha=_TRIAD, out=a) if c else a.copy_(b)

            yield _timed(rt, settings, move, about)[1]


def _transfer(rt: Runtime, settings: ProbeSettings, room: int) -> Iterator[Point]:
    """Between host and device, from memory that is pinned and from memory that is not."""
    size = max((s for s in settings.memory_sizes if s <= room), default=settings.memory_sizes[0])
    there = torch.ones(size // 4, device=rt.device)
    for pinned in (True, False):
        here = torch.ones(size // 4, pin_memory=pinned)
        for way, to, of in (("host_to_device", there, here), ("device_to_host", here, there)):
            about: dict[str, Any] = {"kind": "transfer", "size_bytes": size}
            about["op"] = way if pinned else f"{way}_pageable"

            def move(to: Tensor = to, of: Tensor = of) -> object:
                return to.copy_(of, non_blocking=True)

            yield _timed(rt, settings, move, about)[1]


def _timed(
    rt: Runtime, settings: ProbeSettings, call: Callable[[], object], about: dict[str, Any]
) -> tuple[float, Point]:
    """(seconds of one call, the point) of an operation that this rank does alone."""
    call()
    call_s = min(_block(rt, call, 1) for _ in range(TRIALS)) / 1e9
    calls, num_blocks = repetition(call_s, settings)
    blocks = tuple(_block(rt, call, calls) for _ in range(num_blocks))
    return call_s, Point(**about, calls=calls, block_ns=blocks)


def _block(rt: Runtime, call: Callable[[], object], calls: int) -> int:
    """Nanoseconds of some calls."""
    runtime.synchronize(rt.device)
    start_ns = time.perf_counter_ns()
    for _ in range(calls):
        call()
    runtime.synchronize(rt.device)
    return max(1, time.perf_counter_ns() - start_ns)
