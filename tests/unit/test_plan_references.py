"""What every case's first losses are compared with, and which launches that takes."""

from __future__ import annotations

from typing import Any

import pytest
from planning import EIGHT_GPUS, measured, plan, suite

from andromeda_scale.contracts.references import reference_of
from andromeda_scale.errors import UserError
from andromeda_scale.planning.expand import expand
from andromeda_scale.planning.table import print_plan


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
    assert note.endswith("GiB of GPU memory for tensors; parity: shallow would check it")
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
    def shallow(self: Any) -> Any:
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
