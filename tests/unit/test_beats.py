"""The shared table that says how far each rank is."""

from __future__ import annotations

import os
import time

from andromeda_scale.launch.beats import BeatTable


def test_a_slot_says_nothing_before_its_ranks_first_beat() -> None:
    table = BeatTable(2)
    table.writer(0)("warmup", 3, 20)
    assert table.read(1) is None
    table.close()


def test_the_last_beat_of_each_slot_is_read_with_its_time() -> None:
    table = BeatTable(2)
    before_s = time.monotonic()
    for step in range(5):
        table.writer(0)("measure", step, 50)
        table.writer(1)("profile", 10 * step, 60)
    first, second = table.read(0), table.read(1)
    assert first is not None
    assert second is not None
    assert (first.phase, first.step, first.total_steps) == ("measure", 4, 50)
    assert (second.phase, second.step, second.total_steps) == ("profile", 40, 60)
    assert before_s <= first.time_s <= time.monotonic()
    table.close()


def test_a_cleared_slot_forgets_the_rank_of_the_launch_before() -> None:
    table = BeatTable(1)
    table.writer(0)("inspect", 1, 1)
    table.clear(0)
    assert table.read(0) is None
    table.close()


def test_a_forked_ranks_beats_reach_its_agent_even_if_it_is_killed() -> None:
    table = BeatTable(1)
    pid = os.fork()
    if pid == 0:
        table.writer(0)("measure", 7, 9)
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    beat = table.read(0)
    assert beat is not None
    assert (beat.phase, beat.step) == ("measure", 7)
    table.close()
