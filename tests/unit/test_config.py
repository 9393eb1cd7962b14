"""The schema, the errors it gives, and reading YAML that anybody may have written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andromeda_scale.errors import UserError
from andromeda_scale.suite import safe_yaml
from andromeda_scale.suite.config import Case, StrategySpec, Suite
from andromeda_scale.suite.training import Train
from andromeda_scale.suite.validation import dotted_keys, suggestion, validate
from andromeda_scale.suite.world import World

MINIMAL = {"question": "Why?", "model": "andromeda-tiny", "world": [1, 2]}


def suite(**keys: object) -> Suite:
    return validate(Suite, MINIMAL | keys, "x.yaml")


def message(**keys: object) -> str:
    with pytest.raises(UserError) as caught:
        suite(**keys)
    return str(caught.value)


def test_a_world_is_a_number_of_ranks_or_nodes_by_ranks() -> None:
    worlds = suite(world=[1, "2x8", "4"]).world
    assert worlds == (World(), World(nodes=2, ranks_per_node=8), World(ranks_per_node=4))
    assert [str(world) for world in worlds] == ["1", "2x8", "4"]
    assert worlds[1].size == 16
    assert suite(world="2x8").world == (World(nodes=2, ranks_per_node=8),)


def test_a_strategy_is_a_name_or_a_name_with_its_options_beside_it() -> None:
    assert suite(strategy="ddp").strategy == StrategySpec(name="ddp")
    written = suite(strategy={"name": "fsdp2", "reshard_after_forward": False}).strategy
    assert written == StrategySpec(name="fsdp2", options={"reshard_after_forward": False})


_NO_VALUE = (
    "env.X: is no value that a process can be given (x.yaml); use under 32000 characters, without "
    "a null character"
)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"train": {"micro_batch_size": 0}},
            "train.micro_batch_size: 0 is not a positive integer (x.yaml); "
            "use 1 or more, auto or auto_worlds",
        ),
        (
            {"train": {"learning_rate": -1.0}},
            "train.learning_rate: -1.0 is not a positive number (x.yaml); use more than 0",
        ),
        (
            {"train": {"weight_decay": -0.5}},
            "train.weight_decay: -0.5 is below 0 (x.yaml); use 0 or more",
        ),
        ({"train": {"seqlen": 4}}, "train.seqlen: unknown key (x.yaml); did you mean seq_len?"),
        ({"seq_len": 4}, "seq_len: unknown key (x.yaml); did you mean train.seq_len?"),
        (
            {"train": {"seq_len": "128"}},
            "train.seq_len: '128' is not a whole number (x.yaml); write it as 128, without quotes",
        ),
        *(
            (
                {"train": {"seq_len": value}},
                f"train.seq_len: {text} is not a whole number (x.yaml); use one, such as 4",
            )
            for value, text in (("abc", "'abc'"), (None, "null"), (64.5, "64.5"), ("6.5", "'6.5'"))
        ),
        (
            {"train": {"loss_chunks": 0}},
            "train.loss_chunks: 0 is not a positive integer (x.yaml); use 1 or more, or auto",
        ),
        (
            {"train": {"loss_chunks": "many"}},
            "train.loss_chunks: 'many' is not a whole number (x.yaml); use one, such as 4, or auto",
        ),
        (
            {"train": {"micro_batch_size": True}},
            "train.micro_batch_size: true is not a whole number (x.yaml); "
            "use one, such as 4, auto or auto_worlds",
        ),
        (
            {"train": {"precision": "fp8"}},
            "train.precision: 'fp8' is not known (x.yaml); use fp32, tf32, bf16 or fp16",
        ),
        ({"world": []}, "world: is empty (x.yaml); give at least one"),
        (
            {"world": [0]},
            "world[0]: 0 is not a positive number of ranks (x.yaml); use 1 or more",
        ),
        (
            {"world": ["2y"]},
            "world[0]: '2y' is not a world (x.yaml); "
            "use a number of ranks, 2x8 for 2 nodes of 8 ranks, or a list of worlds",
        ),
        (
            {"scaling": "strog"},
            "scaling: 'strog' is not a regime (x.yaml); "
            "use weak, or {strong: {global_batch_size: 64}}",
        ),
        (
            {"scaling": {"strong": {"global_batch_size": 0}}},
            "scaling.strong.global_batch_size: 0 is not a positive integer (x.yaml); use 1 or more",
        ),
        (
            {"measure": {"warmup": {"min_steps": 9, "max_steps": 3}}},
            "measure.warmup.min_steps: 9 is above max_steps 3 (x.yaml); "
            "raise max_steps or lower min_steps",
        ),
        (
            {"axes": {"train.seq_len": []}},
            "axes.train.seq_len: has no values (x.yaml); list at least one, or remove the axis",
        ),
        *(
            ({"env": {"X": bad}}, _NO_VALUE) for bad in ("a\0b", ["a", "b" * 50_000])
        ),
        ({"env": {"X": 0}}, 'env.X: 0 is not text (x.yaml); quote it: "..."'),
        (
            {"env": {"A-B": "1"}},
            "env: 'A-B' is no name of a variable (x.yaml); use letters, digits and _",
        ),
        (
            {"data": {"source": "files"}},
            "data.files: is empty (x.yaml); list at least one path",
        ),
        ({"train": 3}, "train: 3 is not a mapping (x.yaml); use {key: value}"),
        (
            {"limits": {"timeout_s": float("inf")}},
            "limits.timeout_s: inf is not a finite number (x.yaml); use a finite one",
        ),
    ],
)  # fmt: skip
def test_an_error_names_key_value_file_and_remedy(keys: dict[str, object], expected: str) -> None:
    assert message(**keys) == expected


def test_several_errors_are_counted() -> None:
    text = message(train={"seq_len": 0}, seed=-1)
    assert text.startswith("train.seq_len: 0")
    assert text.endswith("(and 1 more to mend after this)")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(UserError, match=r"^question: is missing \(x\.yaml\); add question: \.\.\."):
        validate(Suite, {"model": "m", "world": [1]}, "x.yaml")


def test_every_key_of_a_suite_is_suggested_for_itself_misspelt() -> None:
    known = list(dotted_keys(Suite))
    assert "scaling.strong.global_batch_size" in known
    assert "measure.warmup.min_steps" in known
    for key in known:
        name = key.rpartition(".")[2]
        if len(name) >= 5:
            assert suggestion(key[:-1], known) == f"did you mean {name}?"


def case(**keys: object) -> Case:
    fixed = {
        "model_name": "tiny",
        "model": {"family": "andromeda"},
        "strategy": StrategySpec(name="ddp"),
        "world": World(),
    }
    return Case.model_validate(fixed | keys)


def test_a_case_id_changes_with_what_a_repeat_does_and_with_nothing_else() -> None:
    base = case().case_id
    assert case(limits={"timeout_s": 5.0}).case_id == base
    assert case(measure={"repeats": 9}).case_id == base
    assert case(train=Train(seq_len=128)).case_id == base  # the default, written out
    others = [
        case(train=Train(seq_len=64)),
        case(measure={"steps": 9}),
        case(world=World(nodes=2)),
        case(seed=1),
        case(env={"A": "1"}),
        case(strategy=StrategySpec(name="ddp", options={"bucket_cap_mb": 1})),
    ]
    ids = [base, *(other.case_id for other in others)]
    assert len(set(ids)) == len(ids)


def test_a_new_key_with_a_default_renames_no_case() -> None:
    class Grown(Case):
        new_key: int = 3

    assert Grown.model_validate(case().model_dump()).case_id == case().case_id


def test_a_case_id_is_safe_in_a_path_and_survives_json() -> None:
    odd = case(model_name="../my model+x=1")
    assert "/" not in odd.case_id
    assert " " not in odd.case_id
    assert Case.model_validate_json(odd.model_dump_json()).case_id == odd.case_id


# Reading YAML


def refused(text: str) -> str:
    with pytest.raises(UserError) as caught:
        safe_yaml.parse(text, "x.yaml")
    return str(caught.value)


def test_a_key_written_twice_is_refused() -> None:
    assert refused("a: 1\nb: 2\na: 3") == "a: stands twice, again in line 3 (x.yaml); keep one"


def test_a_yaml_bomb_is_refused_before_it_expands() -> None:
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
    )
    assert len(bomb) < 1000
    assert "aliases expand" in refused(bomb)
    assert "aliases expand" in refused(bomb.replace("[x", "[&x x"))


def test_an_alias_of_itself_is_refused() -> None:
    assert "holds itself" in refused("a: &a [*a]")


def test_a_few_aliases_are_welcome() -> None:
    text = "base: &b {seq_len: 4}\ntrain: {<<: *b, micro_batch_size: 2}"
    assert safe_yaml.parse(text, "")["train"] == {"seq_len": 4, "micro_batch_size": 2}


def read_or_refuse(text: str) -> str | None:
    """The refusal, or None for text that reads as plain data."""
    try:
        json.dumps(safe_yaml.parse(text, "x.yaml"), default=str)
    except UserError as error:
        return str(error)
    except TypeError:  # a mapping with odd keys is plain data too
        return None
    return None


@pytest.mark.parametrize(
    "text",
    [
        "a: [1, 2", "a: b: c", "\tx: 1", "!!python/object/apply:os.system ['true']", "*x",
        "--- 1\n--- 2", "a: \0", "a: 2020-13-45", "a: " + "9" * 5000, "- " * 5000, "? [a]\n: b",
    ],
)  # fmt: skip
def test_yaml_that_cannot_be_read_is_a_users_error(text: str) -> None:
    refusal = read_or_refuse(text)
    assert refusal is not None
    assert "x.yaml" in refusal
    assert "; " in refusal


@pytest.mark.slow
@given(st.text(max_size=200))
def test_no_text_makes_the_reader_raise_anything_but_a_users_error(text: str) -> None:
    refusal = read_or_refuse(text)
    assert refusal is None or "x.yaml" in refusal


def test_a_number_without_a_dot_before_its_exponent_is_a_number() -> None:
    assert safe_yaml.parse("1e-3", "") == pytest.approx(0.001)


def test_a_file_that_is_too_large_is_not_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "large.yaml"
    with file.open("wb") as large:
        large.truncate(1 << 40)  # sparse: a terabyte that would not fit memory
    with pytest.raises(UserError, match="larger than"):
        safe_yaml.read(file)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: \x80"])
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "binary.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match="UTF-8"):
        safe_yaml.read(file)


def test_schemas_are_immutable() -> None:
    train = Train()
    with pytest.raises(ValueError, match="frozen"):
        train.seq_len = 3


def test_an_optimizers_list_in_a_file_is_a_tuple_as_in_python() -> None:
    train = validate(Train, {"optimizer": {"name": "adamw", "betas": [0.9, 0.95]}}, "x.yaml")
    assert train.optimizer.betas == (0.9, 0.95)
