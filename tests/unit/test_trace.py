"""Reading a trace: steps, compute and collectives out of the profiler's events.

The events are written out here by hand in the form Kineto gives them, but for nccl_step.json: of
one DDP step of andromeda-150m on two H200 (torch 2.11), rank 0, its ranges, collectives and some
kernels. Real ones of gloo are read in tests/dist/test_communication.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from torch._C._autograd import DeviceType

from andromeda_scale.collectors.executions import canonical_op, join_gloo, join_nccl, sizes_needed
from andromeda_scale.collectors.intervals import Intervals, intervals
from andromeda_scale.collectors.trace import Events, TraceError, device_windows, read_timeline
from andromeda_scale.cost.comm import bus_factor

GROUPS = {"0": (0, 1)}


@dataclass
class Event:
    """One event with the methods of torch's _KinetoEvent that are read."""

    label: str
    start: int
    end: int
    thread: int = 1
    device: bool = False
    annotation: bool = False
    correlation: int = 0

    def name(self) -> str:
        return self.label

    def start_ns(self) -> int:
        return self.start

    def duration_ns(self) -> int:
        return self.end - self.start

    def start_thread_id(self) -> int:
        return self.thread

    def device_type(self) -> DeviceType:
        return DeviceType.CUDA if self.device else DeviceType.CPU

    def is_user_annotation(self) -> bool:
        return self.annotation

    def correlation_id(self) -> int:
        return self.correlation

    def shapes(self) -> list[list[int]]:
        return [[4]]


def on_cpu(*events: Event) -> Events:
    return Events(events, device=False)


def on_cuda(*events: Event) -> Events:
    return Events(events, device=True)


def rows(x: Intervals) -> list[list[int]]:
    result: list[list[int]] = x.tolist()
    return result


def test_compute_is_operators_of_the_training_thread_without_collectives_inside() -> None:
    timeline = read_timeline(
        on_cpu(
            Event("andromeda::step", 0, 100),
            Event("aten::linear", 10, 30),
            Event("aten::mm", 12, 28),  # inside: counted once
            Event("aten::vector_norm", 40, 60),  # of a DTensor: it awaits a collective inside
            Event("_c10d_functional::wait_tensor", 45, 55),
            Event("fsdp::split_with_sizes_copy", 60, 65),
            Event("autograd::engine::evaluate_function: hook", 70, 90),  # blocks: no work
            Event("aten::add", 70, 90, thread=2),  # a worker thread of the backend
        )
    )
    assert rows(timeline.compute) == [[10, 30], [40, 45], [55, 65]]
    assert rows(timeline.steps) == [[0, 100]]


def test_compiled_graphs_are_compute() -> None:
    timeline = read_timeline(
        on_cpu(Event("andromeda::step", 0, 9), Event("## Call CompiledFxGraph fx ##", 2, 5))
    )
    assert rows(timeline.compute) == [[2, 5]]


def test_parts_add_up_over_the_micro_batches_of_their_step() -> None:
    timeline = read_timeline(
        on_cpu(
            Event("andromeda::step", 0, 50),
            Event("andromeda::data", 0, 5),
            Event("andromeda::forward", 5, 15),
            Event("andromeda::forward", 20, 32),
            Event("andromeda::step", 60, 90),
            Event("andromeda::forward", 60, 70),
            Event("andromeda::update", 80, 90),
        )
    )
    assert timeline.parts["forward_s"].tolist() == [22, 10]
    assert timeline.parts["data_s"].tolist() == [5, 0]
    assert timeline.parts["optimizer_s"].tolist() == [0, 10]
    assert rows(timeline.data) == [[0, 5]]
    assert rows(timeline.update) == [[80, 90]]


def test_a_step_on_a_cpu_lasts_until_the_next_begins() -> None:
    timeline = read_timeline(
        on_cpu(Event("andromeda::step", 0, 50), Event("andromeda::step", 60, 90))
    )
    assert rows(timeline.steps) == [[0, 60], [60, 90]]
    assert rows(timeline.host) == [[0, 50], [60, 90]]


def test_a_trace_without_steps_is_an_error() -> None:
    with pytest.raises(TraceError, match="andromeda::step"):
        read_timeline(on_cpu(Event("aten::mm", 0, 1)))


def test_a_device_step_lasts_until_the_last_kernel_it_launched() -> None:
    host = intervals([0, 10], [10, 20])
    windows = device_windows(host, np.array([1, 9, 11]), intervals([5, 12, 30], [12, 30, 45]))
    assert rows(windows) == [[0, 30], [30, 45]]


def test_a_step_without_late_kernels_ends_where_the_host_ends_it() -> None:
    windows = device_windows(intervals([0, 15], [10, 20]), np.array([1]), intervals([2], [4]))
    assert rows(windows) == [[0, 10], [15, 20]]


def cuda_events() -> tuple[Event, ...]:
    """Two steps whose kernels lag behind the host; NCCL overlaps the second matrix product."""
    return (
        Event("andromeda::step", 0, 10, annotation=True),
        Event("cudaLaunchKernel", 2, 3, correlation=901),
        Event("andromeda::step", 10, 20, annotation=True),
        Event("cudaLaunchKernel", 11, 12, correlation=902),
        Event("nccl:all_reduce", 13, 16, annotation=True),
        Event("cudaLaunchKernelExC", 14, 15, correlation=903),
        Event("andromeda::step", 5, 60, device=True, annotation=True),
        Event("nccl:all_reduce", 35, 60, device=True, annotation=True),
        Event("gemm", 5, 30, device=True, correlation=901),
        Event("gemm", 30, 40, device=True, correlation=902),
        Event("ncclDevKernel_AllReduce_Sum_f32_RING_LL(x)", 35, 60, device=True, correlation=903),
    )  # fmt: skip


def test_cuda_compute_is_kernels_that_are_no_collectives() -> None:
    timeline = read_timeline(on_cuda(*cuda_events()))
    assert rows(timeline.compute) == [[5, 40]]
    assert rows(timeline.host) == [[0, 10], [10, 20]]
    assert rows(timeline.steps) == [[0, 30], [30, 60]]


def entry(seq: int, created: int, name: str = "gloo:all_reduce") -> dict[str, object]:
    return {
        "collective_seq_id": seq,
        "input_dtypes": ["Float"],
        "input_sizes": [[4]],
        "output_sizes": [[4]],
        "process_group": ["0", "default_pg"],
        "profiling_name": name,
        "record_id": seq,
        "time_created_ns": created,
    }


def nccl_entry(seq: int, created: int) -> dict[str, object]:
    return entry(seq, created, "nccl:all_reduce") | {"input_dtypes": ["BFloat16"]}


def test_an_nccl_kernel_takes_group_sequence_and_size_from_the_flight_recorder() -> None:
    (found,) = join_nccl(on_cuda(*cuda_events()), [nccl_entry(12, 14)], GROUPS)
    assert (found.group, found.ranks, found.seq, found.op) == ("0", (0, 1), 12, "all_reduce")
    assert (found.issued_ns, found.start_ns, found.end_ns) == (13, 35, 60)
    assert found.c10d_op == "nccl:all_reduce"
    assert found.backend_op == "ncclDevKernel_AllReduce_Sum_f32_RING_LL"
    assert found.size_bytes == 8
    assert not found.scalar


def test_kernels_of_one_nccl_collective_are_one_execution() -> None:
    second = Event("ncclDevKernel_AllReduce", 62, 70, device=True, correlation=904)
    events = on_cuda(*cuda_events(), Event("cuLaunchKernelEx", 15, 16, correlation=904), second)
    (found,) = join_nccl(events, [nccl_entry(12, 14)], GROUPS)
    assert (found.start_ns, found.end_ns) == (35, 70)


def test_an_nccl_collective_without_kernels_did_not_execute() -> None:
    alone = Event("nccl:all_reduce", 13, 16, annotation=True)
    assert join_nccl(on_cuda(alone), [nccl_entry(1, 14)], GROUPS) == []


@pytest.mark.parametrize(
    ("more", "entries", "names"),
    [
        # A group of collectives is launched where it ends, after the ranges of its members.
        (
            [
                Event("ncclDevKernel_Generic", 70, 80, device=True, correlation=905),
                Event("cuLaunchKernelEx", 17, 18, correlation=905),
            ],
            [nccl_entry(12, 14)],
            "ncclDevKernel_Generic was launched outside every nccl",
        ),
        ([], [], "TORCH_FR_BUFFER_SIZE"),
        ([], [nccl_entry(12, 14), nccl_entry(13, 15)], "did not see 1 collectives"),
        ([], [nccl_entry(12, 10**9)], "was not issued when"),
        (
            [Event("nccl:all_reduce", 14, 18, annotation=True, thread=2)],
            [nccl_entry(12, 14), nccl_entry(13, 15)],
            "two threads",
        ),
    ],
)
def test_what_nccl_ran_and_does_not_join_is_named(
    more: list[Event], entries: list[dict[str, object]], names: str
) -> None:
    with pytest.raises(TraceError, match=names):
        join_nccl(on_cuda(*cuda_events(), *more), entries, GROUPS)


def test_a_recorded_step_on_gpus_joins_and_reduces_every_gradient_once() -> None:
    recorded = json.loads(Path(__file__).with_name("nccl_step.json").read_text())
    events = on_cuda(
        *(
            Event(name, start, start + length, 1, bool(device), bool(annotation), correlation)
            for name, start, length, device, correlation, annotation in recorded["events"]
        )
    )
    found = join_nccl(events, recorded["entries"], GROUPS)
    assert sum(e.size_bytes for e in found) == 4 * 155_261_568  # float32 gradients of the model
    assert [e.seq for e in found] == list(range(found[0].seq, found[0].seq + 12))
    assert all(e.issued_ns < e.start_ns < e.end_ns for e in found)
    (window,) = read_timeline(events).steps.tolist()
    assert window[0] < min(e.start_ns for e in found)
    assert max(e.end_ns for e in found) < window[1]


def test_gloo_events_join_in_the_order_of_issue() -> None:
    events = on_cpu(
        Event("c10d::_reduce_scatter_base_", 0, 5),
        Event("c10d::allreduce_", 10, 15),
        Event("gloo:all_reduce", 30, 40, thread=3),
        Event("gloo:all_reduce", 12, 35, thread=2),
    )
    first, second = join_gloo(events, [entry(1, 2), entry(2, 11)], GROUPS)
    assert (first.seq, first.start_ns, first.op) == (1, 12, "reduce_scatter")
    assert (second.seq, second.start_ns, second.op) == (2, 30, "all_reduce")
    assert first.backend_op == "gloo:all_reduce"
    assert first.size_bytes == 16


@pytest.mark.parametrize(
    ("events", "entries", "names"),
    [
        ([Event("gloo:all_reduce", 9, 10)], [], "TORCH_FR_BUFFER_SIZE"),
        ([], [entry(1, 0, "gloo:broadcast")], "gloo:broadcast"),
        ([Event("gloo:all_reduce", 9, 10)], [entry(1, 10**9)], "before it was issued"),
    ],
)
def test_what_does_not_join_is_named(
    events: list[Event], entries: list[dict[str, object]], names: str
) -> None:
    with pytest.raises(TraceError, match=names):
        join_gloo(on_cpu(*events), entries, GROUPS)


def test_sizes_are_needed_where_groups_of_other_ranks_exist() -> None:
    assert not sizes_needed({"0": (0, 1), "1": (0, 1)})
    assert sizes_needed({"0": (0, 1, 2, 3), "1": (0, 1)})


@pytest.mark.parametrize(
    ("name", "op"),
    [
        ("c10d::_allgather_base_", "all_gather"),
        ("c10d::_reduce_scatter_base_", "reduce_scatter"),
        ("gloo:all_reduce", "all_reduce"),
        ("allreduce_coalesced", "all_reduce"),
        ("c10d::alltoall_base_", "all_to_all"),
        ("c10d::broadcast_", "broadcast"),
        ("c10d::barrier", "barrier"),
    ],
)
def test_collectives_have_one_name_over_backends(name: str, op: str) -> None:
    assert canonical_op(name) == op


# nccl-tests, doc/PERFORMANCE.md: 2(n-1)/n, (n-1)/n, (n-1)/n, 1.
@pytest.mark.parametrize(
    ("op", "factor"),
    [("all_reduce", 1.75), ("all_gather", 0.875), ("reduce_scatter", 0.875), ("broadcast", 1.0)],
)
def test_bus_factors_of_eight_ranks(op: str, factor: float) -> None:
    assert bus_factor(op, 8) == factor
