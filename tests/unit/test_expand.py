"""Suite -> cases: the product of axes and worlds."""

from __future__ import annotations

from typing import Any

import pytest
from planning import EIGHT_GPUS, plan, suite

from andromeda_scale.errors import UserError
from andromeda_scale.planning.expand import expand
from andromeda_scale.planning.table import print_plan


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


LLAMA: dict[str, Any] = {"family": "llama", "vocab_size": 256, "d_model": 64, "d_ff": 64}
LLAMA |= {"num_layers": 1, "num_heads": 2}


@pytest.mark.parametrize(
    ("model", "axis", "suffixes"),
    [
        ({"callable": "m:Tiny"}, {"model.kwargs.d": [32, 64]}, ["Tiny+d=32", "Tiny+d=64"]),
        ({"callable": "m:Tiny"}, {"model.kwargs": [{}, {"d": 64}]}, ["Tiny", "Tiny+d=64"]),
        (
            {"callable": "m:Tiny"},
            {"model.kwargs": [{"d": 64}, {"deep": 2}]},
            ["Tiny+d=64", "Tiny+deep=2"],
        ),
        (
            LLAMA,
            {"model.d_model": [64, 128], "model.tied_head": [False, True]},  # false: the default
            [f"llama+d_model={d}+tied_head={t}" for d in (64, 128) for t in (False, True)],
        ),
        (
            {"base": "llama-tiny", "name": "mine"},
            {"model.num_layers": [1, 2]},
            ["mine+num_layers=1", "mine+num_layers=2"],
        ),
        (
            "llama-tiny",
            {"model": [{"callable": "m:Tiny", "kwargs": {"d": d, "e": d}} for d in (1, 2)]},
            ["Tiny+d=1", "Tiny+d=2"],
        ),
    ],
)
def test_no_two_models_of_a_suite_have_one_name(
    model: Any, axis: dict[str, list[Any]], suffixes: list[str]
) -> None:
    points = expand(suite(model=model, axes=axis, world=[1]), "x")
    assert [p.case.model_name for p in points] == suffixes
    (alone,) = expand(suite(model=model, world=[1]), "x")
    assert alone.case.model_name in ("Tiny", "llama", "mine", "llama-tiny")


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
            {"strategy": {"name": "fsdp2", "units": True}},
            "strategy.units: unknown key (x); known here: blocks_per_unit, reshard",
        ),
        (
            {"scaling": {"strong": {"global_batch_size": 8}}, "train": {"grad_accum": 3}},
            "train.grad_accum: 3, and scaling.strong finds it from global_batch_size (x); remove",
        ),
        (
            {"measure": {"precision": "x%"}},
            "measure.precision: 'x%' is no percentage (x.yaml)",
        ),
        (
            {"measure": {"precision": 1}},
            "measure.precision: 1 is 1 or more (x.yaml); use ",
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
