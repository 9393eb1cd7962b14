"""The CPU allocator's trace, cut into the parts of a step by the worker's marks."""

from __future__ import annotations

import gc
import threading

import pytest
import torch

from andromeda_scale.collectors.allocations import Allocated, CpuAllocations
from andromeda_scale.rank.train_step import marked

pytestmark = pytest.mark.slow  # each looks through all that lives
MIB = 1 << 20


@pytest.fixture(scope="module")
def step() -> Allocated:
    """A forward passes 4 MiB through and keeps 1, a backward passes 2, an update none."""
    watched = CpuAllocations()
    watched.start()
    with marked("step"):
        with marked("forward"):
            passing = torch.ones(MIB)
            del passing
            kept = torch.ones(MIB // 4)
        with marked("backward"):
            passing = torch.ones(MIB // 2)
            del passing
        with marked("update"):
            kept.add_(1)
    return watched.stop(hidden=5)


def test_the_peak_of_a_part_is_what_was_held_in_it(step: Allocated) -> None:
    above = {name: peak - step.at_start for name, peak in step.parts.items()}
    slack = 1 << 12  # small tensors of torch's own
    assert above["forward"] == pytest.approx(4 * MIB, abs=slack)
    assert above["backward"] == pytest.approx(3 * MIB, abs=slack)
    assert above["update"] == pytest.approx(1 * MIB, abs=slack)
    assert above["step"] == above["forward"] == step.peak - step.at_start


def test_what_no_tensor_shows_is_in_all_of_them() -> None:
    gc.collect()  # what earlier tests left must not be freed in between
    watched = CpuAllocations()
    watched.start()
    alive = CpuAllocations.alive_bytes()
    found = watched.stop(hidden=7)
    assert found.at_start == pytest.approx(alive + 7, abs=1 << 12)


def test_what_is_older_than_the_watch_is_held_until_it_is_freed() -> None:
    watched = CpuAllocations()  # from here on the allocator counts
    earlier = [torch.ones(MIB)]
    watched.start()
    with marked("backward"):
        later = torch.ones(MIB // 2)
        earlier.clear()
    with marked("update"):
        later.add_(1)
    found = watched.stop()
    slack = 1 << 12
    assert found.parts["backward"] - found.at_start == pytest.approx(2 * MIB, abs=slack)
    assert found.parts["update"] - found.at_start == pytest.approx(-2 * MIB, abs=slack)


def test_what_a_thread_without_a_profiler_frees_is_freed() -> None:
    watched = CpuAllocations()
    watched.start()
    for _ in range(5):  # as gloo's threads do, which let go of what they sent after all others
        passing = [torch.ones(MIB)]
        other = threading.Thread(target=passing.clear)
        other.start()
        other.join()
    found = watched.stop()
    assert found.peak - found.at_start == pytest.approx(4 * MIB, abs=1 << 12)
