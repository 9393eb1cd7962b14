"""Suite -> cases -> plan: what runs, what does not and why, in which order."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from andromeda_scale.config import Case, Suite
from andromeda_scale.errors import UserError
from andromeda_scale.expand import expand
from andromeda_scale.fits import estimate_memory
from andromeda_scale.machine import Machine, visible_devices
from andromeda_scale.plan import make_plan, require_runnable
from andromeda_scale.plan_table import print_plan
from andromeda_scale.planned import Plan, PlannedRepeat
from andromeda_scale.references import reference_of
from andromeda_scale.validation import validate

GIB = 1 << 30
TWO_CORES = Machine(cpu_cores=2, memory_bytes=16 * GIB)
EIGHT_GPUS = Machine(cpu_cores=64, gpus=[80 * GIB] * 8, memory_bytes=512 * GIB)
ONE_GPU = Machine(cpu_cores=8, gpus=[80 * GIB], memory_bytes=64 * GIB)


def suite(**keys: Any) -> Suite:
    base: dict[str, Any] = {
        "question": "Why?",
        "model": "andromeda-tiny",
        "data": {"source": "random"},
        "strategy": "ddp",
        "world": [1, 2],
    }
    return validate(Suite, base | keys, "x.yaml")


def plan(machine: Machine = TWO_CORES, **keys: Any) -> Plan:
    return make_plan(suite(**keys), "x", machine)


def measured(made: Plan) -> list[tuple[Case, PlannedRepeat]]:
    """Each case with its first item, without references."""
    first: dict[str, PlannedRepeat] = {}
    for item in made.repeats:
        if item.role == "measure":
            first.setdefault(item.case_id, item)
    return [(made.cases[case_id], item) for case_id, item in first.items()]


def skips(made: Plan) -> dict[str, str | None]:
    return {str(case.world): item.skip for case, item in measured(made)}


# Expansion


def test_cases_are_the_product_of_axes_and_worlds() -> None:
    points = expand(
        suite(axes={"strategy": ["ddp", "fsdp2"], "train.seq_len": [64, 128], "env.A": ["x", "y"]}),
        "x",
    )
    found = [
        (p.case.strategy.name, p.case.train.seq_len, p.case.env["A"], p.case.world.size)
        for p in points
    ]
    assert len(found) == len(set(found)) == 2 * 2 * 2 * 2
    assert found[:3] == [("ddp", 64, "x", 1), ("ddp", 64, "x", 2), ("ddp", 64, "y", 1)]


def test_a_list_in_env_is_an_axis() -> None:
    points = expand(suite(env={"A": ["x", "y"], "B": "z"}, world=[1]), "x")
    assert [p.case.env for p in points] == [{"B": "z", "A": "x"}, {"B": "z", "A": "y"}]


def test_a_model_may_be_a_mapping_or_a_file_with_changes() -> None:
    keys = {"vocab_size": 256, "d_model": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1}
    own = {"family": "andromeda", "name": "mine", "head_dim": 32, "alibi_num_heads": 1, **keys}
    points = expand(
        suite(world=[1], axes={"model": [own, {"base": "andromeda-tiny", "num_layers": 1}]}), "x"
    )
    assert [p.case.model_name for p in points] == ["mine", "andromeda-tiny+num_layers=1"]
    assert points[1].case.model["num_layers"] == 1
    assert points[0].case.model == {k: v for k, v in own.items() if k != "name"}


def test_an_axis_below_model_changes_every_model_of_an_axis_above() -> None:
    axes = {"model.num_layers": [1, 2], "model": ["andromeda-tiny", "llama-tiny"]}
    points = expand(suite(world=[1], axes=axes), "x")
    found = {(p.case.model["family"], p.case.model["num_layers"]) for p in points}
    assert found == {("andromeda", 1), ("andromeda", 2), ("llama", 1), ("llama", 2)}


def test_defaults_written_out_make_the_same_case() -> None:
    bare = expand(suite(world=[1], strategy="fsdp2"), "x")[0].case
    written = expand(
        suite(world=[1], strategy={"name": "fsdp2", "reshard_after_forward": True}), "x"
    )[0].case
    assert bare.case_id == written.case_id


def test_strong_scaling_keeps_the_global_batch_by_accumulation() -> None:
    points = expand(
        suite(
            world=[1, 2, 4],
            train={"micro_batch_size": 2},
            scaling={"strong": {"global_batch_size": 16}},
        ),
        "x",
    )
    trains = [p.case.train for p in points]
    assert [(t.micro_batch_size, t.grad_accum) for t in trains] == [(2, 8), (2, 4), (2, 2)]
    assert {p.case.global_batch_size for p in points} == {16}
    assert {p.case.regime for p in points} == {"strong"}


def test_strong_scaling_keeps_the_global_batch_by_the_micro_batch() -> None:
    scaling = {"strong": {"global_batch_size": 16, "shrink": "micro_batch"}}
    points = expand(suite(world=[1, 4], train={"grad_accum": 2}, scaling=scaling), "x")
    trains = [p.case.train for p in points]
    assert [(t.micro_batch_size, t.grad_accum) for t in trains] == [(8, 2), (2, 2)]


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"strategy": "fsdp3"}, "strategy: 'fsdp3' is no strategy (x); did you mean fsdp2?"),
        ({"collect": ["memry"]}, "collect: 'memry' is no collector (x); did you mean memory?"),
        ({"model": "andromeda-tny"}, "model: andromeda-tny: no shipped model of this name"),
        ({"axes": {"world": [1]}}, "axes.world: is no axis"),
        ({"axes": {"measure.repeats": [1, 2]}}, "axes.measure.repeats: is no axis"),
        (
            {"axes": {"train.seq_len": [64, 0]}},
            "train.seq_len: 0 is not a positive integer (x, at train.seq_len=0); use 1 or more",
        ),
        ({"axes": {"train.seqlen": [64]}}, "train.seqlen: unknown key"),
        ({"axes": {"seed.x": [64]}}, "seed.x: seed is 3, which holds no keys"),
        (
            {"strategy": {"name": "fsdp2", "reshard": True}},
            "strategy.reshard: unknown key (x); known here: reshard_after_forward",
        ),
        ({"model": {"d_model": 3}}, "model.family: is missing (x); use one of andromeda, llama, "),
        ({"model": {"family": "gpt"}}, "model.family: 'gpt' is no model family (x); "),
        ({"axes": {"seed": list(range(20_000))}}, "axes: span 40000 cases, more than 10000 (x); "),
        (
            {"model": {"base": "andromeda-tiny", "num_heads": 3}},
            "model.num_kv_heads: 2 does not divide num_heads 3",
        ),
    ],
)
def test_what_no_case_can_have_is_named(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as caught:
        expand(suite(seed=3, **keys), "x")
    assert text in str(caught.value)


def test_a_skipped_strong_case_shows_no_rounded_batch(capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(plan(EIGHT_GPUS, world=[4], scaling={"strong": {"global_batch_size": 6}}))
    row = next(line for line in capsys.readouterr().out.splitlines() if "skipped: global" in line)
    assert row.split("skipped")[0].split()[-3] == "-"


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
        f"needs about {needed / GIB:.2f} GiB per rank, has 16.00 GiB of host memory (mostly states"
    )
    assert "would need" not in item.skip  # one rank on a CPU: nothing shards, nothing offloads


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
    assert all("has 4.00 GiB of GPU memory" in str(skip) for skip in small_gpus.values())
    assert skips(plan(EIGHT_GPUS, limits={"memory_gib": 4.0}, **keys)) == small_gpus
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
    first, second, third = orders(0)
    assert first != second != third
    assert sorted(first) == sorted(second) == sorted(third)


def test_a_case_stays_a_row_when_it_is_skipped_and_is_there_once() -> None:
    made = plan(strategy="single")
    counts = Counter(item.case_id for item in made.repeats)
    assert sorted(counts.values()) == [1, 3]


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


# References


def test_a_reference_is_one_process_with_the_same_global_batch() -> None:
    made = plan(EIGHT_GPUS, world=[4], train={"micro_batch_size": 2, "grad_accum": 3})
    (case, item), *_ = measured(made)
    assert item.reference_id is not None
    reference = made.cases[item.reference_id]
    assert reference.strategy.name == "single"
    assert reference.world.size == 1
    assert reference.global_batch_size == case.global_batch_size == 24
    assert (reference.train.micro_batch_size, reference.train.grad_accum) == (2, 12)
    assert (reference.model, reference.data, reference.seed) == (case.model, case.data, case.seed)
    assert (reference.parity, reference.collect) == ("off", ())
    assert made.repeats[0].case_id == item.reference_id
    assert made.repeats[0].role == "reference"


def test_cases_with_the_same_batch_share_a_reference() -> None:
    made = plan(axes={"strategy": ["ddp", "fsdp2", "zero1"]}, measure={"steps": 7})
    ids = [item.case_id for item in made.repeats if item.role == "reference"]
    assert len(ids) == len(set(ids)) == 2  # one for each world's global batch
    used = {item.reference_id for _, item in measured(made)}
    assert used == set(ids)


def test_single_and_parity_off_need_no_reference() -> None:
    for made in (plan(strategy="single"), plan(parity="off")):
        assert {item.role for item in made.repeats} == {"measure"}
        assert {item.reference_id for item in made.repeats} == {None}


def test_single_under_another_driver_has_a_reference() -> None:
    made = plan(axes={"driver": ["native", "accelerate"]}, strategy="single", world=[1])
    (native, accelerated) = (item for _, item in measured(made))
    assert native.reference_id is None
    assert made.cases[str(accelerated.reference_id)].driver == "native"


def test_a_shallow_launch_stands_for_every_case_of_its_strategy_and_world() -> None:
    made = plan(
        parity="shallow",
        world=[2],
        axes={"strategy": ["ddp", "fsdp2", "single"], "measure.steps": [5, 6]},
        measure={"repeats": 2},
    )
    roles = [item.role for item in made.repeats if item.skip is None]
    assert roles == ["reference", "parity", "parity"] + ["measure"] * 2 * 4
    reference, ddp, fsdp2 = made.repeats[:3]
    model = {"family": "andromeda", "num_layers": 2}
    for item in (reference, ddp, fsdp2):
        case = made.cases[item.case_id]
        assert case.model.items() >= model.items()
        assert case.model["d_model"] == 128  # of andromeda-tiny
    assert ddp.reference_id == fsdp2.reference_id == reference.case_id
    assert made.cases[ddp.case_id].world.size == 2
    for case, item in measured(made):
        assert item.reference_id is None
        launch = {"ddp": ddp.case_id, "fsdp2": fsdp2.case_id, "single": None}[case.strategy.name]
        assert item.parity_id == launch


def test_a_model_too_large_for_one_process_has_a_shallow_reference() -> None:
    keys = {"model": "andromeda-7b", "world": [8], "strategy": "zero3"}
    train = {"seq_len": 1024, "precision": "bf16"}
    (note,) = (n for n in plan(EIGHT_GPUS, train=train, **keys).notes if "parity" in n)
    assert note.startswith(
        "parity of 1 case will be unavailable: the single-process reference needs"
    )
    assert note.endswith("GiB of GPU memory; parity: shallow would check it")
    made = plan(EIGHT_GPUS, train=train, parity="shallow", **keys)
    assert [(item.role, item.skip) for item in made.repeats[:3]] == [
        ("reference", None),
        ("parity", None),
        ("measure", None),
    ]


def test_cross_launches_nothing_for_parity() -> None:
    made = plan(parity="cross", axes={"strategy": ["ddp", "fsdp2"]})
    assert {item.role for item in made.repeats} == {"measure"}
    assert {(item.reference_id, item.parity_id) for item in made.repeats} == {(None, None)}


def test_a_model_without_a_shallow_form_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def shallow(self: Any, num_layers: int = 2) -> Any:
        raise ValueError("mine cannot be had with fewer layers")

    monkeypatch.setattr("andromeda_scale.models.andromeda.AndromedaConfig.shallow", shallow)
    with pytest.raises(UserError) as error:
        plan(parity="shallow", world=[1])
    assert str(error.value) == (
        "parity: shallow is not to be had: mine cannot be had with fewer layers (suite x); "
        "use parity: cross"
    )


def test_parity_launches_are_counted_apart(capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(plan(parity="shallow", world=[1, 2], measure={"repeats": 1}))
    text = capsys.readouterr().out
    assert "6 launches: 2 of cases, 2 parity references, 2 parity launches; 0 cases skipped" in text


def test_the_device_is_part_of_what_a_reference_is() -> None:
    case = expand(suite(world=[2]), "x")[0].case
    assert reference_of(case, "cpu").case_id != reference_of(case, "cuda").case_id


def test_a_reference_that_does_not_fit_is_skipped_and_still_named() -> None:
    made = plan(EIGHT_GPUS, model="andromeda-7b", world=[8], strategy="zero3",
                train={"seq_len": 1024, "precision": "bf16"})  # fmt: skip
    reference = made.repeats[0]
    assert reference.role == "reference"
    assert reference.skip is not None
    assert "GiB per rank" in reference.skip
    (_, item), *_ = measured(made)
    assert item.skip is None
    assert item.reference_id == reference.case_id


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
