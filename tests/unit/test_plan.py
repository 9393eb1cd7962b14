"""Cases -> plan: what runs, what does not and why, in which order."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from planning import EIGHT_GPUS, GIB, ONE_GPU, TWO_CORES, measured, plan, skips

from andromeda_scale.contracts.planned import Plan
from andromeda_scale.errors import UserError
from andromeda_scale.hardware.machine import Machine, visible_devices
from andromeda_scale.merge import merge_run
from andromeda_scale.planning.fits import PROCESS, bytes_sent, estimate_memory
from andromeda_scale.planning.plan import require_runnable
from andromeda_scale.planning.table import print_plan
from andromeda_scale.suite.config import Measure

# Pruning


def test_single_runs_at_world_one_only() -> None:
    assert skips(plan(strategy="single")) == {"1": None, "2": "single runs on one rank only"}


def test_a_global_batch_that_does_not_divide_is_skipped_with_the_numbers() -> None:
    made = plan(EIGHT_GPUS, world=[1, 2, 4], scaling={"strong": {"global_batch_size": 6}})
    assert skips(made) == {
        "1": None,
        "2": None,
        "4": "global batch 6 does not divide into micro_batch_size 1 x 4 ranks",
    }


def test_more_ranks_than_cores_are_skipped_unless_threads_are_set() -> None:
    assert skips(plan(world=[2, 4]))["4"] == (
        "4 ranks on 2 cores would share cores (threads_per_rank allows it)"
    )
    allowed = plan(world=[2, 4], threads_per_rank=1)
    assert set(skips(allowed).values()) == {None}


def test_auto_takes_cuda_where_there_are_gpus_enough_and_skips_the_rest() -> None:
    made = plan(ONE_GPU, world=[1, 2])
    assert {str(case.world): item.device for case, item in measured(made)} == {
        "1": "cuda",
        "2": "cuda",
    }
    assert skips(made) == {
        "1": None,
        "2": "needs 2 GPUs per node, 1 here (fallback: cpu would use the CPU)",
    }
    assert {item.device for item in plan(TWO_CORES).repeats} == {"cpu"}
    assert {item.device for item in plan(EIGHT_GPUS).repeats} == {"cuda"}


def test_fallback_runs_what_lacks_gpus_on_the_cpu() -> None:
    made = plan(ONE_GPU, world=[1, 2], fallback="cpu")
    assert {str(case.world): item.device for case, item in measured(made)} == {
        "1": "cuda",
        "2": "cpu",
    }
    references = {item.case_id: item.device for item in made.repeats if item.role == "reference"}
    assert sorted(references.values()) == ["cpu", "cuda"]  # on the device of what they check


def test_cuda_without_gpus_is_refused_when_nothing_else_can_run() -> None:
    made = plan(TWO_CORES, device="cuda")
    with pytest.raises(UserError) as caught:
        require_runnable(made, lambda key: f"--set {key}=cuda")
    assert str(caught.value) == (
        "device: cuda cannot run: needs 1 GPU per node, 0 here (fallback: cpu would use the CPU) "
        "(--set device=cuda); use device: cpu, or fallback: cpu "
        "(none of 2 cases can run here, `andromeda-scale plan` shows why)"
    )
    require_runnable(plan(TWO_CORES, device="cuda", fallback="cpu"))


def test_the_machines_reason_is_told_before_the_strategys() -> None:
    made = plan(TWO_CORES, world=[4000, 400], axes={"strategy": ["single", "ddp"]})
    with pytest.raises(
        UserError, match=r"^world: 400 cannot run: 400 ranks on 2 cores .*\(suite x"
    ):
        require_runnable(made)
    with pytest.raises(UserError, match=r"^strategy: single cannot run: single runs on one rank"):
        require_runnable(plan(EIGHT_GPUS, strategy="single", world=[2]))
    with pytest.raises(UserError, match=r"^world: 2x1 cannot run: needs 2 nodes, 1 here"):
        require_runnable(plan(world=["2x1"]))
    with pytest.raises(UserError, match=r"^scaling\.strong\.global_batch_size: cannot run: global"):
        require_runnable(plan(world=[2], scaling={"strong": {"global_batch_size": 3}}))


def test_more_nodes_than_there_are_is_skipped() -> None:
    made = plan(world=["1", "2x1"])
    assert skips(made)["2x1"] == "needs 2 nodes, 1 here (start an agent on each)"
    two = Machine(cpu_cores=2, memory_bytes=GIB * 16, nodes=2)
    assert skips(plan(two, world=["1", "2x1"]))["2x1"] is None


def test_a_case_above_capacity_is_skipped_with_the_estimate() -> None:
    made = plan(TWO_CORES, model="andromeda-7b", world=[1])
    (case, item), *_ = measured(made)
    needed = estimate_memory(case, "cpu").total
    assert needed > 5.3e9 * 16  # fp32 with Adam: 16 bytes a parameter, 5.313 B parameters
    assert item.estimated_memory_bytes == needed
    assert item.skip is not None
    assert item.skip.startswith(
        f"needs about {(needed + PROCESS['cpu']) / GIB:.2f} GiB per rank, has 16.00 GiB of host "
        "memory (mostly states"
    )
    assert "would need" not in item.skip  # one rank on a CPU: nothing shards, nothing offloads


def test_on_a_cpu_the_process_itself_needs_memory_too() -> None:
    keys = {"strategy": "auto", "world": [1], "device": "cpu", "parity": "off"}
    small = plan(limits={"memory_gib": 0.0625}, **keys)
    for case, item in measured(small):
        if case.strategy.name in ("ddp", "single", "fsdp2", "zero3"):
            assert item.skip is not None
            assert "has 64 MiB of host memory" in item.skip
            assert "mostly the process itself, 300 MiB" in item.skip
    assert any(item.skip is None for _, item in measured(plan(limits={"memory_gib": 1}, **keys)))


def test_one_thread_is_no_plural() -> None:
    assert any(note.startswith("1 thread per rank at") for note in plan(world=[2]).notes)
    assert any(note.startswith("2 threads per rank at") for note in plan(world=[1]).notes)


def test_a_case_above_capacity_names_one_change_that_would_fit_and_fits() -> None:
    eight = Machine(16, gpus=[80 * GIB] * 8, memory_bytes=1024 * GIB)
    keys: dict[str, Any] = {
        "model": "llama-3.1-8b",
        "world": [8],
        "train": {"seq_len": 2048, "precision": "bf16"},
    }
    skip = skips(plan(eight, strategy="ddp", **keys))["8"]
    assert skip is not None
    assert "mostly states" in skip
    assert "strategy: fsdp2 would need" in skip
    assert skips(plan(eight, strategy="fsdp2", **keys))["8"] is None


def test_offloaded_states_must_fit_the_host() -> None:
    little = Machine(16, gpus=[80 * GIB] * 2, memory_bytes=64 * GIB)
    made = plan(
        little,
        strategy={"name": "zero2", "offload_optimizer": True},
        model="llama-3.1-8b",
        world=[2],
        train={"precision": "bf16"},
    )
    skip = skips(made)["2"]
    assert skip is not None
    assert "has 32.00 GiB of host memory (offloaded states" in skip


def test_capacity_is_the_gpu_or_a_share_of_the_host_or_what_the_suite_says() -> None:
    keys: dict[str, Any] = {"model": "andromeda-410m", "strategy": "ddp"}
    small_gpus = skips(plan(Machine(8, gpus=[4 * GIB] * 2, memory_bytes=999 * GIB), **keys))
    assert all(
        "has 2.25 GiB of GPU memory for tensors" in str(skip) for skip in small_gpus.values()
    )
    assert skips(plan(EIGHT_GPUS, limits={"memory_gib": 2.25}, **keys)) == small_gpus
    assert set(skips(plan(EIGHT_GPUS, **keys)).values()) == {None}
    shared = skips(plan(Machine(2, memory_bytes=10 * GIB), **keys))
    assert shared["1"] is None
    assert shared["2"] is not None
    assert "has 5.00 GiB of host memory" in shared["2"]


def test_threads_are_cores_over_the_largest_world_that_runs_at_every_size() -> None:
    eight = Machine(cpu_cores=8, memory_bytes=64 * GIB)
    assert {i.threads_per_rank for i in plan(eight, world=[1, 2, 4]).repeats} == {2}
    # 16 ranks do not run on 8 cores, so they take no threads from those that do.
    assert {i.threads_per_rank for i in plan(eight, world=[1, 2, 16]).repeats} == {4}
    assert {i.threads_per_rank for i in plan(eight, threads_per_rank=3).repeats} == {3}


# Order


def test_each_repeat_runs_every_case_once_after_the_references() -> None:
    made = plan(strategy="ddp", axes={"strategy": ["ddp", "fsdp2", "single"]})
    running = [item for item in made.repeats if item.skip is None]
    roles = [item.role for item in running]
    assert roles == sorted(roles, reverse=True)  # "reference" before "measure"
    repeats = [item.repeat for item in running if item.role == "measure"]
    assert repeats == sorted(repeats)
    for repeat in range(3):
        block = [i.case_id for i in running if i.role == "measure" and i.repeat == repeat]
        assert len(block) == len(set(block)) == 5


def test_the_order_within_a_repeat_changes_and_is_the_same_for_one_seed() -> None:
    def orders(seed: int) -> list[list[str]]:
        made = plan(axes={"train.seq_len": [16, 32, 48, 64]}, seed=seed)
        blocks: dict[int, list[str]] = {}
        for item in made.repeats:
            if item.role == "measure":
                # Ids depend on the seed, the order of the settings must not look alike.
                case = made.cases[item.case_id]
                blocks.setdefault(item.repeat, []).append(f"{case.train.seq_len} {case.world}")
        return list(blocks.values())

    assert orders(0) == orders(0)
    assert orders(0) != orders(1)
    first, second, third, *_ = orders(0)
    assert first != second != third
    assert sorted(first) == sorted(second) == sorted(third)


def test_a_case_stays_a_row_when_it_is_skipped_and_is_there_once() -> None:
    made = plan(strategy="single")
    counts = Counter(item.case_id for item in made.repeats)
    assert sorted(counts.values()) == [1, Measure().repeats]


def test_a_case_written_twice_is_kept_once_and_said() -> None:
    twice = ["fsdp2", {"name": "fsdp2", "reshard_after_forward": True}]
    made = plan(world=[1], axes={"strategy": twice})
    assert len(measured(made)) == 1
    (note,) = [note for note in made.notes if "kept once" in note]
    assert note.startswith(measured(made)[0][0].case_id)


def test_a_case_written_four_times_is_said_once() -> None:
    made = plan(world=[1, 1], axes={"seed": [5, 5]})
    assert [n.partition(" is ")[2] for n in made.notes if "kept once" in n] == [
        "there 4 times, kept once"
    ]


def test_an_estimate_beyond_int64_stays_a_number_of_the_tables() -> None:
    wide = {"base": "andromeda-tiny", "d_model": 2**31, "num_layers": 10**5}
    (item,) = plan(model=wide, world=[1]).repeats[-1:]
    assert item.skip is not None
    assert item.estimated_memory_bytes == 2**63 - 1


def test_the_largest_plan_that_is_taken_can_be_read_again() -> None:
    made = plan(
        TWO_CORES,
        world=[2],
        train={"grad_accum": 10**6},
        seed=2**63 - 1,
        limits={"timeout_s": 1e7, "memory_gib": 1e7},
    )
    assert made.cases[made.repeats[0].case_id].train.grad_accum == 2 * 10**6
    assert Plan.model_validate_json(made.model_dump_json()) == made


def test_of_two_cases_with_one_id_the_one_that_can_run_is_kept() -> None:
    # At 4 ranks 9 sequences do not divide, and leave the share that 8 give.
    made = plan(
        EIGHT_GPUS,
        world=[4],
        scaling={"strong": {"global_batch_size": 8}},
        axes={"scaling.strong.global_batch_size": [9, 8]},
    )
    assert skips(made) == {"4": None}
    assert any("global batch 9 does not divide" in note for note in made.notes)


def test_an_unknown_collector_is_unavailable_and_the_rest_goes_on(tmp_path: Path) -> None:
    made = plan(collect=["memry", "memory"], world=[1], strategy="single")
    said = ("collect: 'memry' is no collector (suite x): unavailable; did you mean memory?",)
    assert made.problems == said
    assert {case.collect for case in made.cases.values() if case.collect} == {("memory",)}
    (tmp_path / "plan.json").write_text(made.model_dump_json())
    assert tuple(merge_run(tmp_path).problems) == said


def test_a_plan_survives_json() -> None:
    made = plan(axes={"strategy": ["ddp", "single"]}, env={"A": ["1", "2"]})
    again = Plan.model_validate_json(made.model_dump_json())
    assert again == made
    assert list(again.cases) == [case.case_id for case in again.cases.values()]


def test_data_that_cannot_be_read_is_refused_by_the_plan() -> None:
    with pytest.raises(UserError, match=r"^data\.files: .*nowhere\.txt.* \(suite x\); "):
        plan(data={"source": "files", "files": ["nowhere.txt"]})


def test_a_plan_that_would_never_end_is_refused() -> None:
    with pytest.raises(UserError, match=r"^measure\.repeats: 10000 of 12 cases are more than"):
        plan(measure={"repeats": 10_000}, axes={"seed": list(range(6))})


# The machine


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("2,0", [2, 0]),
        ("0,7,1", [0]),  # CUDA stops at the first entry it does not know
        ("1,1", [1]),
        ("GPU-b", [1]),
        ("GPU-", []),  # ambiguous
    ],
)
def test_visible_devices_follow_cudas_rule(variable: str | None, expected: list[int]) -> None:
    assert visible_devices(variable, ["GPU-a1", "GPU-b2", "GPU-c3"]) == expected


def test_what_a_rank_sends_is_the_ring_of_its_strategy() -> None:
    made = {name: plan(strategy=name, world=[4]) for name in ("ddp", "fsdp2")}
    sent = {}
    for name, one in made.items():
        ((case, _),) = measured(one)
        sent[name] = bytes_sent(case, "cuda")
    ((case, _),) = measured(made["ddp"])
    estimate = estimate_memory(case, "cuda")
    assert estimate is not None
    parameters = estimate.states / 12  # float32, with Adam's moments
    assert sent["ddp"] == 2 * 3 / 4 * 4 * parameters  # an all-reduce of gradients
    assert sent["fsdp2"] is not None
    assert sent["fsdp2"] > sent["ddp"]  # its blocks are gathered twice
    ((forward, _),) = measured(plan(world=[2], train={"mode": "forward"}))
    assert bytes_sent(forward, "cpu") is None


def test_a_plan_cuts_no_cell_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    made = plan(world=[1, 2])
    for columns in (60, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        print_plan(made)
        said = " ".join(capsys.readouterr().out.split())
        assert "…" not in said
        assert all(case_id in said for case_id in made.cases)
        assert "sent/rank/step" in said
