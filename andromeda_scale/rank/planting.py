"""Does in a rank what a suite's `faults` say: every effect is real, and bears no name of ours."""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from andromeda_scale.rank.failures import UnavailableHere
from andromeda_scale.rank.sockets import connections
from andromeda_scale.suite import faults
from andromeda_scale.suite.faults import (
    Crash,
    Fault,
    Hang,
    HeldMemory,
    NotANumber,
    Once,
    OutOfMemory,
    SlowCompute,
    SlowData,
    SlowHost,
    SlowLink,
)

if TYPE_CHECKING:
    from torch import Tensor

    from andromeda_scale.contracts.planned import RankSpec
    from andromeda_scale.data.batches import Ids, Source
    from andromeda_scale.rank.runtime import Runtime

MIB = 2**20
_BEYOND_EVERY_ADDRESS = 2**56  # bytes: no allocator overcommits what no process can address
_SO_MAX_PACING_RATE = 47  # socket(7); Python has no name for it
# (rows of a product, seconds before the end up to which it is used): some 5, 0.3 and 0.04 ms each,
# so that Python and the profiler between them take a few percent of a delay, and its end is sharp.
_PRODUCTS = ((512, 12e-3), (192, 1e-3), (96, 0.0))


class SlowSource:
    """A source of batches in which every read takes `delay_s` longer."""

    def __init__(self, source: Source, delay_s: float) -> None:
        self.global_tokens = source.global_tokens
        self._source = source
        self._delay_s = delay_s

    def micro_batch(self, step: int, index: int) -> tuple[Ids, Ids]:
        time.sleep(self._delay_s)
        return self._source.micro_batch(step, index)


def slowed(source: Source, spec: RankSpec) -> Source:
    """The source as this rank's faults make it."""
    found = [f for f in spec.case.faults if isinstance(f, SlowData) and f.rank in (None, spec.rank)]
    return SlowSource(source, sum(f.delay_s for f in found)) if found else source


class Planted:
    """The faults of one rank. `parameters` gives its local tensors.

    Build it when setup is complete: memory is held and links are slow from then on. Raises
    UnavailableHere for what cannot be planted.
    """

    def __init__(
        self,
        spec: RankSpec,
        rt: Runtime,
        parameters: Callable[[], Sequence[Tensor]],
        gather: Callable[[Any], list[Any]],
    ) -> None:
        planted = spec.case.faults
        if reason := faults.refusal(planted, rt.device.type):
            raise UnavailableHere(reason)
        mine = [(i, f) for i, f in enumerate(planted) if getattr(f, "rank", None) == spec.rank]
        self._at_steps = [(i, f) for i, f in mine if isinstance(f, SlowCompute | SlowHost | Once)]
        self._seed = spec.case.seed
        self._parameters = parameters
        self._device = rt.device
        size = sum(f.mib for _, f in mine if isinstance(f, HeldMemory)) * MIB
        self._held = torch.ones(size, dtype=torch.uint8, device=rt.device)
        rates = [f.mbytes_per_s for f in planted if isinstance(f, SlowLink)]
        if rates:
            pace(min(rates) * 1e6, gather, spec.store_port)
        spins = any(isinstance(f, SlowCompute) for _, f in self._at_steps)
        self._compute = _compute_on(rt.device) if spins else None

    def before_forward(self, step: int) -> None:
        """What happens on the training thread at the start of a step's first forward."""
        for index, fault in self._at_steps:
            if isinstance(fault, SlowCompute | SlowHost):
                if faults.falls_on(step, fault.share, self._seed, index):
                    self._delay(fault)
            elif fault.step == step:
                self._strike(fault)

    def _delay(self, fault: SlowCompute | SlowHost) -> None:
        if isinstance(fault, SlowCompute):
            assert self._compute is not None
            self._compute(fault.delay_s)
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # a queue of work would hide the sleep
        time.sleep(fault.delay_s)

    def _strike(self, fault: Fault) -> None:
        match fault:
            case OutOfMemory():
                size = _more_than_there_is(self._device)
                torch.ones(size, dtype=torch.uint8, device=self._device)
            case Hang():
                while True:
                    time.sleep(3600)
            case Crash():
                os.kill(os.getpid(), signal.Signals[fault.signal])
            case NotANumber():
                with torch.no_grad():
                    for tensor in self._parameters():
                        tensor.fill_(float("nan"))


def _more_than_there_is(device: torch.device) -> int:
    """Bytes that no allocator of this device can give."""
    if device.type == "cuda":
        return 2 * torch.cuda.mem_get_info(device)[1]
    return _BEYOND_EVERY_ADDRESS


def _compute_on(device: torch.device) -> Callable[[float], None]:
    """A function that computes for so many seconds on the device."""
    return _Spin(device) if device.type == "cuda" else _products


def _products(seconds: float) -> None:
    """Matrix products on this thread until the time is up."""
    end = time.perf_counter() + seconds
    for size, before_s in _PRODUCTS:
        a, out = torch.ones(size, size), torch.empty(size, size)
        while time.perf_counter() < end - before_s:
            torch.mm(a, a, out=out)


class _Spin:
    """A kernel that counts cycles of the device's clock, at the rate that the last one showed.

    Under load a clock falls below what it is at first: every kernel is timed by events, and the
    next follows it.
    """

    _CYCLES = 20_000_000  # some 10 ms

    def __init__(self, device: torch.device) -> None:
        make: Any = torch.cuda.Event
        with torch.cuda.device(device):
            self._before, self._after = make(enable_timing=True), make(enable_timing=True)
            for _ in range(5):  # clocks rise under load
                self._run(self._CYCLES)
            self._after.synchronize()
            self._follow()

    def __call__(self, seconds: float) -> None:
        if self._after.query():  # it does not wait
            self._follow()
            self._run(round(seconds * self._cycles_per_s))
        else:
            self._spin(round(seconds * self._cycles_per_s))

    def _run(self, cycles: int) -> None:
        self._before.record()
        self._spin(cycles)
        self._after.record()
        self._cycles = cycles

    def _follow(self) -> None:
        self._cycles_per_s = self._cycles / (self._before.elapsed_time(self._after) / 1e3)

    @staticmethod
    def _spin(cycles: int) -> None:
        torch.cuda._sleep(cycles)


def pace(bytes_per_s: float, gather: Callable[[Any], list[Any]], store_port: int) -> None:
    """Let the kernel hold every TCP connection between ranks to a rate, in each direction.

    A connection is one between ranks when another rank has its other end; the control store's,
    known by its port, is left alone. Raises UnavailableHere.
    """
    mine = [found for found in connections() if store_port not in (found[1][1], found[2][1])]
    everyone = gather([(here, there) for _, here, there in mine])
    others = {(there, here) for ends in everyone for here, there in ends}
    paced = [one for one, here, there in mine if (here, there) in others]
    try:
        for one in paced:
            rate = struct.pack("=Q", round(bytes_per_s))
            one.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, rate)
    except OSError as error:
        raise UnavailableHere(f"faults: link: this kernel paces no socket ({error})") from error
    finally:
        for one, _, _ in mine:
            one.close()  # of the copy; the connection stays
    if not paced:
        raise UnavailableHere("faults: link: no TCP connection between the ranks was found")
