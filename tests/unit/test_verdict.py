"""Which of many deaths names the repeat's end."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from andromeda_scale.contracts.planned import RankSpec
from andromeda_scale.launch.messages import Abort, NodeEnd, RankEnd
from andromeda_scale.launch.ranks import LocalRank, stack_head
from andromeda_scale.launch.verdict import Verdict, judge, killed_by_kernel

# Last words of ranks whose peer left, as gloo, NCCL and the store say them.
PEER_LEFT = [
    "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer "
    "[127.0.0.1]:38532",
    "RuntimeError: [enforce fail at pair.cc:446] Read error [::1]:2311: Connection reset by peer",
    "DistBackendError: ncclRemoteError: A call failed possibly due to a network error or a remote "
    "process exiting prematurely.",
    "DistNetworkError: failed to recv, got 0 bytes",
    "DistNetworkError: The client socket has failed to connect (Connection refused)",
    "DistBackendError: NCCL communicator was aborted on rank 1.",
    "RuntimeError: Application timeout caused pair closure",
    "DistStoreError: wait timeout after 300000ms, keys: /a/0/group",
]


def end(rank: int, status: str | None = "ok", at: float = 0.0, **more: Any) -> RankEnd:
    given = {"rank": rank, "host": f"node{rank // 2}", "status": status, "code": 0}
    return RankEnd.model_validate({**given, "ended_unix_s": at, **more})


def verdict(*ends: RankEnd, abort: str | None = None) -> Verdict:
    """Of ranks, two a node."""
    hosts = sorted({e.host for e in ends})
    nodes = [
        NodeEnd(agent=i, host=host, ranks=tuple(e for e in ends if e.host == host))
        for i, host in enumerate(hosts)
    ]
    reason = (
        Abort.model_validate({"reason": abort, "cause": f"({abort})", "agent": 0})
        if abort
        else None
    )
    return judge(nodes, reason, len(ends))


def test_all_ranks_with_a_complete_end_are_ok_whatever_their_exit_code() -> None:
    assert verdict(end(0), end(1, code=-6)).status == "ok"


def test_a_rank_without_an_end_line_is_a_crash_despite_exit_status_0() -> None:
    found = verdict(end(0), end(1, None, code=0))
    assert (found.status, found.rank) == ("crashed", 1)
    assert found.cause == "left with exit status 0 and no end record"


def test_of_deaths_on_hosts_whose_clocks_differ_the_one_first_told_is_named() -> None:
    ahead = end(0, None, code=-11, at=7200.0)  # agent 0's clock; its abort came first
    behind = end(2, None, code=-6, at=100.0)
    assert verdict(ahead, end(1), behind, end(3), abort="rank").rank == 0
    assert verdict(ahead, end(1), behind, end(3)).rank == 2  # nothing but clocks to go by


def test_of_deaths_on_one_node_no_wall_clock_says_which_was_first(tmp_path: Path) -> None:
    records = [tmp_path / f"rank-{rank}.jsonl" for rank in (0, 1)]
    first, second = (
        LocalRank(rank, rank, RankSpec.model_construct(rank=rank, record_path=str(record)))
        for rank, record in enumerate(records)
    )
    line = {"kind": "end", "status": "crashed", "cause": "ValueError", "end_s": time.monotonic()}
    records[0].write_text(json.dumps(line) + "\n")
    hour_ahead_s = time.time() + 3600.0  # the disk's server's, or this node's before it was set
    os.utime(records[0], (hour_ahead_s, hour_ahead_s))
    second.left(-11)
    first.left(1)
    assert verdict(first.end("node0", 0.0), second.end("node0", 0.0)).rank == 0


def test_a_rank_that_nobody_reports_is_a_crash() -> None:
    found = judge([NodeEnd(agent=0, host="a", ranks=(end(0),))], None, 3)
    assert (found.status, found.rank) == ("crashed", 1)
    assert found.cause == "no complete end record of rank 1, 2"


@pytest.mark.parametrize("complaint", PEER_LEFT)
def test_a_complaint_about_a_peer_is_never_the_cause_even_if_it_came_first(complaint: str) -> None:
    found = verdict(
        end(0, "crashed", at=1.0, cause=complaint),
        end(1),
        end(2, "crashed", at=1.2, cause="ValueError: bad shape", phase="warmup"),
        end(3, None, at=1.1, code=-9, ended_by_agent=True),
    )
    assert (found.status, found.rank, found.host) == ("crashed", 2, "node1")
    assert (found.cause, found.phase) == ("ValueError: bad shape", "warmup")


def test_where_all_complain_about_peers_the_first_is_named() -> None:
    found = verdict(
        end(0, "crashed", at=2.0, cause=PEER_LEFT[0]), end(1, "crashed", at=1.0, cause=PEER_LEFT[1])
    )
    assert (found.status, found.rank) == ("crashed", 1)


def test_the_first_death_over_all_nodes_names_the_cause() -> None:
    found = verdict(
        end(0, "crashed", at=3.0, cause="ValueError: later"),
        end(1),
        end(2),
        end(3, None, at=2.0, code=-11),
    )
    assert (found.rank, found.cause) == (3, "killed by SIGSEGV")


def test_out_of_memory_outranks_an_earlier_death() -> None:
    found = verdict(
        end(0, "crashed", at=1.0, cause="ValueError: first"),
        end(1, "oom", at=2.0, cause="tried to allocate 1 GiB"),
        abort="rank",
    )
    assert (found.status, found.rank) == ("oom", 1)


@pytest.mark.parametrize("status", ["unavailable", "invalid", "diverged"])
def test_a_rank_that_says_why_it_ended_gives_the_repeat_its_status(status: str) -> None:
    found = verdict(
        end(0, status, at=1.0, cause="because"),
        end(1, None, at=1.5, code=-9, ended_by_agent=True),
        abort="rank",
    )
    assert (found.status, found.rank, found.cause) == (status, 0, "because")


def test_a_timeout_names_the_ranks_that_had_come_least_far() -> None:
    late = {"code": -9, "ended_by_agent": True, "total_steps": 50}
    found = verdict(
        end(0, None, phase="measure", step=7, **late),
        end(1, None, phase="measure", step=6, **late),
        end(2, None, phase="profile", step=1, **late),
        end(3, None, phase="measure", step=6, **late),
        abort="timeout",
    )
    # Two had come equally far, and nothing says which of them the others waited for.
    assert (found.status, found.rank, found.host, found.phase) == ("timeout", None, None, "measure")
    assert found.cause == "(timeout); rank 1, 3 were late, after step 6 of 50 in measure"


HEADER = "Current thread 0x00007f19e593cb80 (most recent call first):"
WAITS = '  File "/x/torch/distributed/distributed_c10d.py", line 3170 in all_reduce'
SLEEPS = '  File "/x/data.py", line 7 in wait'


@pytest.mark.parametrize(
    ("stacks", "rank"),
    [
        ([WAITS, SLEEPS, WAITS], 1),
        ([WAITS, WAITS, WAITS], None),
        ([SLEEPS, SLEEPS, WAITS], None),
        ([WAITS, None, WAITS], None),  # wrote no stack: nothing is known of it
    ],
)
def test_of_equally_late_ranks_the_one_whose_stack_alone_waits_for_no_other_is_named(
    stacks: list[str | None], rank: int | None
) -> None:
    late = {"code": -9, "ended_by_agent": True, "phase": "measure", "step": 6, "total_steps": 50}
    ends = [
        end(r, None, stderr_tail=(HEADER, stack) if stack else (), **late)
        for r, stack in enumerate(stacks)
    ]
    found = verdict(*ends, abort="heartbeat")
    assert (found.status, found.rank) == ("timeout", rank)
    assert found.host == (None if rank is None else f"node{rank // 2}")


def test_a_stack_is_kept_from_its_innermost_frame(tmp_path: Path) -> None:
    frames = [f'  File "/x.py", line {i} in f{i}' for i in range(90)]
    file = tmp_path / "rank-0.stderr"
    file.write_text("\n".join(["warning", "Thread 0x1 (most recent call first):", *frames, HEADER]))
    assert stack_head(file) == (HEADER,)
    file.write_text("\n".join(["warning", HEADER, *frames]))
    assert stack_head(file) == (HEADER, *frames[:19])
    file.write_text("warning")
    assert stack_head(file) == ()


def test_a_rank_that_finished_is_not_late() -> None:
    found = verdict(
        end(0, "ok", phase="profile", step=0),
        end(1, None, phase="profile", step=3, total_steps=5, code=-9, ended_by_agent=True),
        abort="heartbeat",
    )
    assert (found.status, found.rank) == ("timeout", 1)


@pytest.mark.parametrize("reason", ["interrupted", "node_failed"])
def test_an_interrupt_or_a_lost_node_explains_every_death(reason: str) -> None:
    found = verdict(end(0, "oom", at=1.0), end(1, None, code=-9), abort=reason)
    assert (found.status, found.rank, found.cause) == (reason, None, f"({reason})")


def test_a_cause_names_no_more_ranks_than_can_be_read() -> None:
    ends = [end(r, None, code=-9, ended_by_agent=True) for r in range(1000)]
    cause = verdict(*ends, abort="timeout").cause
    assert cause is not None
    assert cause.startswith("(timeout); rank 0, 1, 2, 3, 4, 5, 6, 7 and 992 more were late")


def test_only_an_unexplained_sigkill_is_the_kernels_out_of_memory() -> None:
    killed = end(0, None, code=-9)
    assert (killed_by_kernel(killed).status, verdict(killed_by_kernel(killed)).status) == (
        "oom",
        "oom",
    )
    for other in (
        end(0, None, code=-9, ended_by_agent=True),
        end(0, None, code=-11),
        end(0, "crashed", code=-9),
    ):
        assert killed_by_kernel(other) == other


@pytest.mark.parametrize(("odd", "rank", "host"), [([3], 3, "node1"), ([1, 3], None, None)])
def test_what_all_ranks_find_alike_is_blamed_on_whose_it_is_not_on_who_left_first(
    odd: list[int], rank: int | None, host: str | None
) -> None:
    ends = [end(r, "diverged", at=float(r), cause="nan", odd_ranks=odd) for r in range(4)]
    found = verdict(*ends, abort="rank")
    assert (found.status, found.rank, found.host) == ("diverged", rank, host)
