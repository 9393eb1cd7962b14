"""What communication costs a rank, from the profiler and the flight recorder (phase `profile`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from andromeda_scale.collectors.base import Context
from andromeda_scale.records import Phase


class Communication:
    """Total, exposed, waiting and transfer seconds of every step, and bytes by collective.

    Values of `profile`, seconds, one number per step of this rank:
        step_s, compute_s, comm_total_s, comm_exposed_s, comm_overlapped_s, exposed_wait_s,
        exposed_transfer_s, data_s, host_s
    where compute + exposed_wait + exposed_transfer + data + host = step, and
        collectives: [{op, backend_op, dtype, ranks, count_per_step, bytes_per_step,
                       wire_bytes_per_step, total_s, transfer_s, busbw_gbps}]
    or {"error": reason} when the trace cannot be trusted.
    """

    where: ClassVar[Literal["rank"]] = "rank"
    phases: frozenset[Phase] = frozenset({"profile"})

    def start(self, phase: Phase, context: Context) -> None:
        raise NotImplementedError

    def stop(self, phase: Phase) -> Mapping[str, Any]:
        raise NotImplementedError
