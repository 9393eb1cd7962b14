"""Planted truths in real ranks: each has the effect it says, and is found where it was planted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from group import Line, end, phase_values, tiny_case

import andromeda_scale

RunCase = Callable[..., list[list[Line]]]

MIB = 2**20
HELD_MIB = 256
RATE = 40.0  # MB/s
WIDE = {
    "family": "llama",
    "vocab_size": 256,
    "d_model": 192,
    "d_ff": 384,
    "num_layers": 2,
    "num_heads": 4,
}  # 3 MB of gradients


def ok(lines: list[Line], phase: str) -> dict[str, Any]:
    assert end(lines)["status"] == "ok", end(lines)
    return phase_values(lines, phase)


@pytest.fixture(scope="module")
def uneven(run_case: RunCase) -> list[list[Line]]:
    """Rank 1 has 1.5 times the batch, HELD_MIB more, and a link of RATE to the other."""
    case = tiny_case(
        "ddp",
        model=WIDE,
        parity="off",
        collect=("communication", "memory"),
        measure={"steps": 2, "profile_steps": 5},
        faults=[
            {"kind": "batch", "rank": 1, "ratio": 1.5},
            {"kind": "memory", "rank": 1, "mib": HELD_MIB},
            {"kind": "link", "mbytes_per_s": RATE},
        ],
    )
    return run_case(case, 2)


def test_an_uneven_rank_counts_its_own_tokens(uneven: list[list[Line]]) -> None:
    tokens = [ok(lines, "measure")["step_time"]["tokens"] for lines in uneven]
    assert tokens == [2 * 2 * 16, 2 * 3 * 16]
    assert {phase_values(lines, "setup")["data"]["global_tokens"] for lines in uneven} == {5 * 16}


def test_held_memory_is_that_ranks_from_setup_on(uneven: list[list[Line]]) -> None:
    for phase in ("setup", "measure"):
        rss = [ok(lines, phase)["memory"]["host"]["rss_bytes"] for lines in uneven]
        assert abs(rss[1] - rss[0] - HELD_MIB * MIB) < 0.1 * HELD_MIB * MIB


def test_a_paced_link_holds_every_all_reduce_to_its_rate(uneven: list[list[Line]]) -> None:
    for lines in uneven:
        kinds = ok(lines, "profile")["communication"]["collectives"]
        (reduced,) = [k for k in kinds if k["op"] == "all_reduce" and not k["scalar"]]
        assert reduced["bytes_per_step"] > 2 * MIB
        assert 0.7 * RATE < 1e3 * reduced["busbw_gbps"] < 1.15 * RATE


@pytest.mark.parametrize(
    "strategy",
    ["ddp", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("fsdp2", "zero2"))],
)
def test_uneven_batches_train_as_one_process_on_the_same_global_batch(
    strategy: str, run_case: RunCase
) -> None:
    """SGD without clipping shows the gradient's size, which Adam would hide."""
    train = {"optimizer": {"name": "sgd"}, "learning_rate": 0.5, "grad_clip": None, "grad_accum": 2}
    planted = [{"kind": "batch", "rank": 1, "ratio": 1.5}]
    losses = []
    for case, ranks in (
        (tiny_case(strategy, train=train, parity="off", faults=planted), 2),
        (tiny_case("single", train=train | {"micro_batch_size": 5}, parity="off"), 1),
    ):
        found = [ok(lines, "warmup")["losses"] for lines in run_case(case, ranks)]
        sums = np.sum([one["loss_sum"] for one in found], axis=0)
        losses.append(sums / np.sum([one["tokens"] for one in found], axis=0))
    assert losses[0][0] - losses[0][-1] > 0.05  # it learns
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-5)


@pytest.mark.parametrize(("ahead", "seen_s"), [(0, 0.06), (2, 0.0)])
def test_slow_data_costs_its_delay_unless_it_is_read_ahead(
    ahead: int, seen_s: float, run_case: RunCase
) -> None:
    """Steps of more than 0.1 s hide 0.06 s, if somebody reads meanwhile."""
    case = tiny_case(
        "ddp",
        data={"source": "random", "prefetch": ahead},
        collect=("communication",),
        measure={"steps": 1, "profile_steps": 9},
        faults=[
            {"kind": "data", "delay_s": 0.06},
            *({"kind": "host", "rank": rank, "delay_s": 0.1} for rank in range(2)),
        ],
    )
    for lines in run_case(case, 2):
        found = np.median(ok(lines, "profile")["communication"]["data_s"])
        assert seen_s <= found < seen_s + 0.02


@pytest.mark.parametrize("strategy", ["fsdp2", "zero3"])
def test_a_planted_nan_is_seen_by_every_strategy(strategy: str, run_case: RunCase) -> None:
    case = tiny_case(strategy, faults=[{"kind": "nan", "rank": 1, "step": 5}])
    for lines in run_case(case, 2):
        assert (end(lines)["status"], end(lines)["phase"]) == ("diverged", "measure")
        assert "step 5" in end(lines)["cause"]


def test_what_ends_a_rank_is_found_with_status_rank_and_phase(tmp_path: Any) -> None:
    """Step 6 of 5 in warm-up and 3 measured: the ranks' own agents say what came of it."""
    kinds = {"oom": "oom", "hang": "timeout", "crash": "crashed", "nan": "diverged"}
    suite = {
        "question": "What ends a rank?",
        "model": {"base": "llama-tiny", "num_layers": 1},
        "data": {"source": "random"},
        "train": {"seq_len": 32},
        "world": 2,
        "device": "cpu",
        "parity": "off",
        "collect": [],
        "measure": {
            "warmup": {"min_steps": 5, "max_steps": 5},
            "steps": 3,
            "repeats": 1,
            "profile_steps": 0,
        },
        "limits": {"timeout_s": 60, "heartbeat_s": 4},
        "axes": {"faults": [[{"kind": kind, "rank": 1, "step": 6}] for kind in kinds]},
    }
    run = andromeda_scale.run(suite, run_dir=tmp_path / "run", quiet=True)
    repeats, cases = run.table("repeats").set_index("case_id"), run.table("cases")
    said = {}
    for row in cases.itertuples():
        end_of = repeats.loc[row.case_id]
        (kind,) = [kind for kind in kinds if f'"kind": "{kind}"' in row.other]
        said[kind] = (end_of["status"], end_of["rank"], end_of["phase"])
    said["nan"] = ("diverged", 1, said["nan"][2])  # every rank sees it; the cause says whose it is
    assert said == {kind: (status, 1, "measure") for kind, status in kinds.items()}
    causes = dict(zip(repeats["status"], repeats["cause"], strict=True))
    assert causes["diverged"] == "loss nan at step 6 is not finite: that of rank 1"
    assert causes["crashed"] == "killed by SIGSEGV"
