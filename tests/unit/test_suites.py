"""The shipped suites, and what the command line may change in a suite file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from andromeda_scale.contracts.planned import Plan
from andromeda_scale.errors import UserError
from andromeda_scale.hardware.machine import Machine
from andromeda_scale.planning.expand import expand
from andromeda_scale.planning.plan import make_plan, require_runnable
from andromeda_scale.planning.suite_file import read_suite
from andromeda_scale.planning.suite_schema import suite_schema
from andromeda_scale.registry import STRATEGIES
from andromeda_scale.suite import resources

GIB = 1 << 30
TWO_CORES = Machine(cpu_cores=2, memory_bytes=16 * GIB)
EIGHT_GPUS = Machine(cpu_cores=64, gpus=[80 * GIB] * 8, memory_bytes=1024 * GIB)

SUITES = [
    "attention",
    "batch",
    "checkpointing",
    "compile",
    "context",
    "cs336",
    "drivers",
    "offload",
    "precision",
    "quickstart",
    "strategies",
    "strong",
    "weak",
]

TINY = ["model=andromeda-tiny", "train.seq_len=128"]
# What a suite's own first comment tells the owner of a laptop to type.
ON_A_LAPTOP: dict[str, tuple[list[str], list[str]]] = {
    "quickstart": ([], []),
    "strong": (
        [
            "model=andromeda-tiny",
            "train.seq_len=128",
            "scaling.strong.global_batch_size=8",
            "train.micro_batch_size=1",
        ],
        ["world=1,2"],
    ),
    "weak": (["model=andromeda-tiny", "train.seq_len=128"], ["world=1,2"]),
    "strategies": (["model=andromeda-tiny", "train.seq_len=128"], ["world=2"]),
    "context": (["model=andromeda-tiny"], ["train.seq_len=64,128,256", "world=1"]),
    "batch": (["model=andromeda-tiny", "train.seq_len=128"], ["train.micro_batch_size=1,2,4"]),
    "cs336": (["model=cs336-small", "model.num_layers=2"], []),
    "precision": ([*TINY, "train.micro_batch_size=2"], ["world=2"]),
    "compile": ([*TINY, "train.micro_batch_size=2"], ["world=2"]),
    "checkpointing": (
        ["model=andromeda-tiny", "train.seq_len=256", "train.micro_batch_size=8"],
        ["world=2"],
    ),
    "attention": (
        ["model=andromeda-tiny", "train.micro_batch_size=2", "model.alibi_num_heads=2"],
        ["train.seq_len=256", "world=2"],
    ),
    "offload": (TINY, ["world=2"]),
    "drivers": ([*TINY, "train.micro_batch_size=2"], ["world=2"]),
}
# What a suite cannot do on a CPU, by the reason a reader sees.
NOT_ON_A_CPU = {
    "attention": "backward",
    "drivers": "accelerate on a CPU",
    "precision": "train.precision: ",  # TF32, and float16 where the CPU has none
}


def plan(name: str, machine: Machine, sets: Sequence[str] = (), axes: Sequence[str] = ()) -> Plan:
    suite, suite_name, *_ = read_suite(name, list(sets), list(axes))
    return make_plan(suite, suite_name, machine)


def test_every_suite_the_documentation_names_is_shipped() -> None:
    assert resources.names("suites") == SUITES


@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize("machine", [TWO_CORES, EIGHT_GPUS], ids=["2 cores", "8 GPUs"])
def test_every_suite_plans(name: str, machine: Machine) -> None:
    made = plan(name, machine)
    assert made.question.endswith("?")
    assert made.suite_name == name
    planned = {item.case_id for item in made.repeats}
    assert planned == set(made.cases)
    for item in made.repeats:
        assert item.skip is None or item.skip != ""


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_runs_whole_on_eight_gpus_but_for_stated_reasons(name: str) -> None:
    made = plan(name, EIGHT_GPUS)
    require_runnable(made)
    skipped = [str(item.skip) for item in made.repeats if item.skip]
    assert all("one rank only" in skip or "GiB per rank" in skip for skip in skipped)
    running = {item.case_id for item in made.repeats if not item.skip}
    assert len(running) > len(skipped)
    assert {item.device for item in made.repeats} == {"cuda"}


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_has_a_small_form_that_runs_on_two_cores(name: str) -> None:
    sets, axes = ON_A_LAPTOP[name]
    made = plan(name, TWO_CORES, sets, axes)
    require_runnable(made)
    skipped = [str(item.skip) for item in made.repeats if item.skip]
    reason = NOT_ON_A_CPU.get(name, "one rank only")
    assert all(reason in skip for skip in skipped), skipped
    assert skipped or name not in NOT_ON_A_CPU
    comment = resources.find("suites", name).read_text(encoding="utf-8").partition("question:")[0]
    for option, values in (("--set", sets), ("--axis", axes)):
        for value in values:
            assert f"{option} {value}" in comment


def test_quickstart_trains_six_strategies_at_one_and_two_ranks_three_times() -> None:
    made = plan("quickstart", TWO_CORES)
    measured = [item for item in made.repeats if item.role == "measure" and item.skip is None]
    found = Counter(
        (made.cases[i.case_id].strategy.name, made.cases[i.case_id].world.size) for i in measured
    )
    strategies = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
    expected = {(name, world): 3 for name in strategies for world in (1, 2)}
    assert found == expected | {("single", 1): 3}


def test_cs336_has_five_sizes_three_modes_and_four_warm_ups() -> None:
    # Stanford CS336, assignment 2: batch 4, context 256, fp32, 10 measured steps.
    cases = list(plan("cs336", EIGHT_GPUS).cases.values())
    assert len(cases) == 5 * 3 * 4
    warm_ups = {case.measure.warmup.min_steps for case in cases}
    assert warm_ups == {0, 2, 5, 10}
    assert {case.train.mode for case in cases} == {"forward", "forward_backward", "train_step"}
    assert {(c.train.micro_batch_size, c.train.seq_len, c.train.precision) for c in cases} == {
        (4, 256, "fp32")
    }
    assert {c.measure.steps for c in cases} == {10}


def test_context_lengths_are_powers_of_two() -> None:
    lengths = {case.train.seq_len for case in plan("context", EIGHT_GPUS).cases.values()}
    assert all(length & (length - 1) == 0 for length in lengths)


# Overrides


def test_set_changes_one_key() -> None:
    suite, _, text, _ = read_suite("quickstart", ["train.seq_len=4096", "train.learning_rate=1e-4"])
    assert suite.train.seq_len == 4096
    assert suite.train.learning_rate == pytest.approx(1e-4)
    assert suite.train.micro_batch_size == 2  # what stands beside it stays
    assert text.endswith("# --set train.seq_len=4096\n# --set train.learning_rate=1e-4\n")
    assert yaml.safe_load(text)["question"] == suite.question


def test_a_variable_is_taken_as_it_stands() -> None:
    suite, *_ = read_suite("quickstart", ["env.OMP_PLACES={0},{1}", "env.B=@a: [b"])
    assert suite.env == {"OMP_PLACES": "{0},{1}", "B": "@a: [b"}
    suite, *_ = read_suite("quickstart", axes=["env.OMP_PLACES={0:2},{0"])
    assert suite.env["OMP_PLACES"] == ("{0:2}", "{0")
    with pytest.raises(UserError, match=r"--set env.B=\\udcff: is not UTF-8; "):
        read_suite("quickstart", ["env.B=\udcff"])


def test_the_text_of_a_suite_stays_yaml_whatever_lines_an_override_has() -> None:
    suite, _, text, _ = read_suite("quickstart", ['question="a\n\n  b: c"', "env.A=1\nworld: 7"])
    assert suite.env["A"] == "1\nworld: 7"
    assert yaml.safe_load(text)["world"] != 7
    assert text.endswith("# --set env.A=1\n# world: 7\n")


def test_axis_replaces_the_values_of_an_axis_and_adds_others() -> None:
    suite, *_ = read_suite(
        "quickstart",
        axes=[
            "strategy=ddp,{name: fsdp2, reshard_after_forward: false}",
            "world=1,2x2",
            "train.grad_clip=null,1.0",
            "env.A=0,1",
        ],
    )
    names = [str(point.case.strategy.name) for point in expand(suite, "x")]
    assert Counter(names) == {"ddp": 8, "fsdp2": 8}
    assert [str(world) for world in suite.world] == ["1", "2x2"]
    assert suite.axes["train.grad_clip"] == (None, 1.0)
    assert suite.env["A"] == ("0", "1")


def test_set_fixes_what_was_an_axis() -> None:
    suite, *_ = read_suite("quickstart", ["strategy=ddp"])
    assert {point.case.strategy.name for point in expand(suite, "x")} == {"ddp"}


def test_set_below_an_axis_holds_for_every_value_of_it() -> None:
    suite, *_ = read_suite("cs336", ["model.num_layers=1", "train.mode=forward"])
    cases = [point.case for point in expand(suite, "x")]
    assert {case.model["num_layers"] for case in cases} == {1}
    assert len({case.model_name for case in cases}) == 5


def test_set_reaches_below_the_short_forms_of_model_and_strategy() -> None:
    suite, *_ = read_suite(
        "context",
        ["model.num_layers=1", "strategy.reshard_after_forward=false", "train.seq_len=64"],
    )
    case = expand(suite, "x")[0].case
    assert case.model["num_layers"] == 1
    assert case.model_name == "andromeda-150m+num_layers=1"
    assert case.strategy.options == {"reshard_after_forward": False}


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("train.seq_len", "is not KEY=VALUE; write --set train.seq_len=4096"),
        ("=3", "is not KEY=VALUE"),
        ("train..seq_len=3", "is not KEY=VALUE"),
        ("train.seq_len=[1", "is not YAML"),
        ("train.seq_len.x=1", "which holds no keys"),
        ("a.b.c=1", "a: unknown key (--set a.b.c=1); "),
        ("train.seqlen=1", "(--set train.seqlen=1); did you mean seq_len?"),
    ],
)
def test_a_wrong_override_is_named(option: str, text: str) -> None:
    with pytest.raises(UserError) as caught:
        read_suite("quickstart", [option])
    assert text in str(caught.value)


def test_a_shipped_file_is_found_by_its_name_and_another_by_its_path(tmp_path: Path) -> None:
    copy = tmp_path / "mine.yaml"
    copy.write_text(resources.find("suites", "quickstart").read_text(encoding="utf-8"))
    assert read_suite(str(copy)).name == "mine"
    with pytest.raises(UserError, match=r"quickstrt: no shipped suite .* did you mean quickstart"):
        read_suite("quickstrt")
    with pytest.raises(UserError, match=r"nowhere/mine\.yaml: no such file"):
        read_suite("nowhere/mine.yaml")


def test_the_schema_for_editors_knows_names_and_options() -> None:
    schema = suite_schema()
    names, *forms = schema["properties"]["strategy"]["anyOf"]
    assert names["enum"] == [*sorted(STRATEGIES), "auto"]
    fsdp2 = next(form for form in forms if form["properties"]["name"]["const"] == "fsdp2")
    assert "reshard_after_forward" in fsdp2["properties"]
    assert not fsdp2["additionalProperties"]
    assert schema["properties"]["model"]["anyOf"][0]["anyOf"][0]["enum"] == (
        resources.names("models")
    )
    references = str(schema).count("'$ref'")
    assert references
    for definition in str(schema).split("#/$defs/")[1:]:
        assert definition.partition("'")[0] in schema["$defs"]


def test_a_bare_off_of_yaml_switches_parity_off(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "question: '?'\nmodel: andromeda-tiny\nworld: 1\nparity: off\n"
        "axes: {strategy: [ddp, fsdp2]}\n"
    )
    assert read_suite(str(path)).suite.parity == "off"
    assert read_suite(str(path), ["parity=full"]).suite.parity == "full"
    assert read_suite("quickstart", ["parity=off"]).suite.parity == "off"
    swept = read_suite(str(path), axes=["parity=full,off"]).suite
    assert [point.case.parity for point in expand(swept, "x")] == ["full", "off"] * 2
    with pytest.raises(UserError, match="parity: true is not known"):
        read_suite(str(path), ["parity=on"])
