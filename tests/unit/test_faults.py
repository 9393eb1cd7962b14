"""`faults` of a suite: what is read, what is refused, and what a plan makes of it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from merging import case_row
from planning import EIGHT_GPUS, measured, plan, skips
from refusals import empty_folder_where_nothing_may_start, refuse_suite
from run_files import make_case, rank_lines, write_plan, write_repeat

from andromeda_scale.data.batches import Batches, Ids
from andromeda_scale.data.prefetch import Prefetched
from andromeda_scale.suite import faults, settings
from andromeda_scale.suite.config import Case, Data
from andromeda_scale.suite.faults import SlowCompute, UnevenBatch

__all__ = ["empty_folder_where_nothing_may_start"]

LATE = {"kind": "compute", "rank": 1, "delay_s": 0.03}
UNEVEN = {"kind": "batch", "rank": 1, "ratio": 1.5}


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (
            "{kind: slow, rank: 0}",
            "faults[0]: 'slow' is not known (x.yaml); use compute, host, data, batch, memory, "
            "link, oom, hang, crash, nan",
        ),
        (
            "{rank: 0}",
            "faults[0]: {'rank': 0} has no kind (x.yaml); add kind: ...",
        ),
        (
            "{kind: host, rank: 0, delay_s: 0.0}",
            "faults[0].delay_s: 0.0 is not a positive number (x.yaml); use more than 0",
        ),
        (
            "{kind: host, rank: 0, delay_s: 0.1, share: 1.5}",
            "faults[0].share: 1.5 is above the limit 1 (x.yaml); use at most 1",
        ),
        ("{kind: memory, rank: 0}", "faults[0].mib: is missing (x.yaml); add mib: ..."),
        (
            "{kind: crash, rank: 0, step: 1, signal: SIGCHLD}",
            "faults[0].signal: 'SIGCHLD' is not known (x.yaml); use SIGSEGV, SIGABRT, SIGBUS, "
            "SIGFPE, SIGILL, SIGKILL or SIGTERM",
        ),
        (
            "{kind: nan, rank: 0, step: 90}",
            "faults[0].step: 90 may never come, a repeat is sure of 90 (measure: warmup.min_steps "
            "+ steps + profile_steps) (x.yaml); use at most 89",
        ),
        (
            "{kind: batch, rank: 0, ratio: 2.0}",
            "parity: full compares batches that every rank shares alike, and faults[0] makes them "
            "uneven (x.yaml); use parity: off",
        ),
        (
            "{kind: host, rank: 3, delay_s: 0.1}",
            "faults: a world of 1 has no rank 3 (x.yaml); use a larger world (none of 1 cases can "
            "run here, `andromeda-scale plan` shows why)",
        ),
        ("{kind: host, rank: 0, delay: 0.1}", "faults[0].delay"),
    ],
)
def test_a_fault_that_cannot_be_is_refused_by_key_value_and_remedy(fault: str, line: str) -> None:
    found = refuse_suite("world: [1]", f"world: [1]\nfaults: [{fault}]")
    assert found.startswith(line) if line.endswith("delay") else found == line


def test_a_world_without_the_rank_is_skipped_with_the_reason() -> None:
    found = skips(plan(faults=[LATE]))
    assert found["2"] is None
    assert found["1"] == "faults: a world of 1 has no rank 1; use a larger world"
    link = skips(plan(faults=[{"kind": "link", "mbytes_per_s": 50.0}]))
    assert link == {"2": None, "1": "faults: a world of 1 has no link; use a larger world"}


@pytest.mark.parametrize(
    ("size", "ratio", "planted"), [(2, 1.2, False), (1, 0.4, False), (2, 1.5, True), (2, 1.0, True)]
)
def test_an_uneven_batch_that_would_be_even_is_skipped(
    size: int, ratio: float, planted: bool
) -> None:
    fault = {"kind": "batch", "rank": 1, "ratio": ratio}
    train = {"seq_len": 16, "micro_batch_size": size}
    (why,) = skips(plan(world=[2], faults=[fault], parity="off", train=train)).values()
    if planted:
        assert why is None
    else:
        assert f"{ratio:g} times {size} sequences, in whole ones, are {size}, as on" in str(why)


def test_a_link_is_paced_on_cpus_alone() -> None:
    link = {"faults": [{"kind": "link", "mbytes_per_s": 50.0}], "world": [2]}
    assert "NCCL" in str(skips(plan(EIGHT_GPUS, **link))["2"])
    assert skips(plan(EIGHT_GPUS, **link, device="cpu"))["2"] is None


def test_faults_are_part_of_what_a_case_is_and_can_be_an_axis() -> None:
    made = plan(world=[2], axes={"faults": [[], [LATE]]}, parity="off")
    plain, late = (case for case, _ in measured(made))
    assert plain.case_id == measured(plan(world=[2], parity="off"))[0][0].case_id
    assert late.case_id != plain.case_id
    assert late.faults == (SlowCompute(**LATE),)
    assert Case.model_validate_json(late.model_dump_json()) == late  # as plan.json holds it


@pytest.mark.parametrize("parity", ["full", "shallow"])
def test_launches_that_others_are_compared_with_have_no_faults(parity: str) -> None:
    made = plan(world=[2], faults=[LATE], data={"source": "random", "prefetch": 2}, parity=parity)
    helpers = [made.cases[item.case_id] for item in made.repeats if item.role != "measure"]
    assert len(helpers) == {"full": 1, "shallow": 2}[parity]
    assert all(case.faults == () and case.data.prefetch == 0 for case in helpers)


def test_uneven_batches_are_counted_as_they_are(tmp_path: Path) -> None:
    """2 and 3 sequences of 16 tokens in 4 steps: 320 tokens, in 4 x 0.1 s."""
    case = make_case("ddp", 2, parity="off", faults=(UnevenBatch(**UNEVEN),))
    assert case.global_batch_size == 5
    write_plan(tmp_path, [case], repeats=1)
    lines = [rank_lines(0, [0.1] * 4, tokens=128), rank_lines(1, [0.1] * 4, tokens=192)]
    write_repeat(tmp_path, case, 0, [*lines[0], *lines[1]])
    row = case_row(tmp_path)
    assert (row["status"], row["global_batch_size"]) == ("ok", 5)
    assert row["tokens_per_s"] == pytest.approx(800)
    assert settings.others(row)["faults"] == "batch rank=1 ratio=1.5"


def _batches(rank: int = 0, **changes: Any) -> Batches:
    given = {"seq_len": 8, "micro_batch_size": 2, "grad_accum": 2, "world_size": 3, "seed": 0}
    return Batches(Data(source="random"), vocab_size=256, rank=rank, **{**given, **changes})


def test_uneven_ranks_share_one_global_batch_without_overlap() -> None:
    uneven = faults.uneven([UnevenBatch(kind="batch", rank=1, ratio=1.5)], 2)
    assert uneven == {1: 3}
    whole = _batches(micro_batch_size=14, grad_accum=1, world_size=1)
    ranks = [_batches(rank, uneven=uneven) for rank in range(3)]
    assert {one.global_tokens for one in (whole, *ranks)} == {14 * 8}
    assert [one.micro_batch(0, 0)[0].size for one in ranks] == [16, 24, 16]
    parts = [one.micro_batch(5, index)[0] for index in range(2) for one in ranks]
    assert np.array_equal(np.concatenate(parts), whole.micro_batch(5, 0)[0])
    assert ranks[1].fingerprint(2) == whole.fingerprint(2)


def test_a_share_of_steps_is_drawn_by_seed_and_is_the_same_again() -> None:
    drawn = [faults.falls_on(step, 0.3, seed=1, index=0) for step in range(2000)]
    assert 540 < sum(drawn) < 660  # 600 +- 3 standard deviations of a binomial
    assert drawn == [faults.falls_on(step, 0.3, seed=1, index=0) for step in range(2000)]
    assert drawn != [faults.falls_on(step, 0.3, seed=2, index=0) for step in range(2000)]
    assert all(faults.falls_on(step, 1.0, seed=1, index=0) for step in range(100))


class _Reader:
    """A source that notes what it read, and waits before each read until it may."""

    def __init__(self) -> None:
        self.global_tokens = 1
        self.read: list[tuple[int, int]] = []
        self.may = threading.Semaphore(0)

    def micro_batch(self, step: int, index: int) -> tuple[Ids, Ids]:
        assert self.may.acquire(timeout=10)
        self.read.append((step, index))
        return np.array([step]), np.array([index])


def test_prefetched_batches_are_the_same_in_any_order_of_asking() -> None:
    plain = _batches()
    ahead = Prefetched(_batches(), 3, grad_accum=2)
    for key in [(0, 0), (0, 1), (1, 0), (1, 1), (7, 0), (7, 1), (2, 1), (3, 0)]:
        expected, found = plain.micro_batch(*key), ahead.micro_batch(*key)
        assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))
    assert ahead.global_tokens == plain.global_tokens


def test_prefetch_reads_so_many_ahead_and_no_more() -> None:
    reader = _Reader()
    ahead = Prefetched(reader, 2, grad_accum=2)
    for _ in range(100):
        reader.may.release()
    ahead.micro_batch(0, 0)
    ahead.micro_batch(0, 1)  # two more were asked for with each
    ahead._reader.shutdown(wait=True)
    assert reader.read == [(0, 0), (0, 1), (1, 0), (1, 1)]
