"""What CUDA graphs keep, which the allocator does not count."""

from __future__ import annotations

from andromeda_scale.collectors.step_memory import graph_pool_bytes

GIB = 1 << 30


def test_what_is_free_in_private_pools_of_this_device_is_kept_by_graphs() -> None:
    def segment(
        pool: tuple[int, int], device: int, total: int, allocated: int
    ) -> dict[str, object]:
        sizes = {"total_size": total * GIB, "allocated_size": allocated * GIB}
        return {"segment_pool_id": pool, "device": device, **sizes}

    segments = [
        segment((0, 0), 0, 9, 4),  # the common pool
        segment((0, 1), 0, 5, 2),  # two of five are counted as allocated: still in use
        segment((1, 0), 0, 3, 0),
        segment((0, 1), 1, 7, 0),
    ]
    assert graph_pool_bytes(segments, 0) == (3 + 3) * GIB
