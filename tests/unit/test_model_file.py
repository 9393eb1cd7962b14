"""A suite's `model` in every form: what becomes of it, what is refused before anything starts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from adopted_models import CALLABLES, GPT2, LLAMA
from published_configs import PUBLISHED
from typer.testing import CliRunner

from andromeda_scale.cli import app
from andromeda_scale.contracts.planned import Plan
from andromeda_scale.errors import UserError
from andromeda_scale.hardware.machine import Machine
from andromeda_scale.models.family import Family
from andromeda_scale.models.huggingface_source import unread
from andromeda_scale.planning.model_file import resolve_model
from andromeda_scale.planning.plan import make_plan, require_runnable
from andromeda_scale.planning.suite_file import read_suite
from andromeda_scale.suite.config import Case

TWO_CORES = Machine(cpu_cores=2, memory_bytes=16 << 30)

SUITE = """\
question: Is this model taken?
model: tiny/config.json
data: {source: random}
train: {seq_len: 32}
strategy: ddp
world: [2]
"""


@pytest.fixture(autouse=True)
def _models_in_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(SUITE)
    Path("tiny").mkdir()
    Path("tiny/config.json").write_text(json.dumps(LLAMA, indent="\t"))
    Path("gpt2.json").write_text(json.dumps(GPT2))
    Path("own_models.py").write_text(CALLABLES)


def planned(*sets: str) -> Plan:
    loaded = read_suite("x.yaml", sets)
    plan = make_plan(loaded.suite, loaded.name, TWO_CORES, loaded.where)
    require_runnable(plan, loaded.where)
    return plan


def case_of(*sets: str) -> Case:
    return next(case for case in planned(*sets).cases.values() if case.world.size == 2)


def refused(*sets: str) -> str:
    with pytest.raises(UserError) as caught:
        planned(*sets)
    return str(caught.value)


def test_a_config_json_is_inlined_and_named_by_its_folder() -> None:
    case = case_of()
    assert case.model == {"family": "huggingface", "config": LLAMA}
    assert case.model_name == "tiny"
    assert case_of("model=gpt2.json").model_name == "gpt2"
    inlined = case_of(f"model={json.dumps({'family': 'huggingface', 'config': LLAMA})}")
    assert (inlined.model, inlined.model_name) == (case.model, "llama")
    Path("tiny/config.json").write_text(json.dumps({**LLAMA, "rope_theta": 5e5}))
    assert case_of().case_id != case.case_id


def test_a_key_of_a_config_json_is_changed_and_the_others_stay() -> None:
    case = case_of("model.config.num_hidden_layers=3")
    assert case.model["config"] == {**LLAMA, "num_hidden_layers": 3}
    assert case.model_name == "tiny+num_hidden_layers=3"


def test_a_callable_is_named_in_either_form() -> None:
    short = case_of("model=own_models:Model")
    assert short.model == {"family": "custom", "callable": "own_models:Model"}
    assert short.model_name == "Model"
    long = '{callable: "own_models:Model", vocab_size: 512, kwargs: {width: 16}, name: mine}'
    case = case_of(f"model={long}")
    assert case.model_name == "mine"
    assert case.model == {
        "family": "custom", "callable": "own_models:Model", "vocab_size": 512,
        "kwargs": {"width": 16},
    }  # fmt: skip
    changed = case_of("model=own_models:Model", "model.kwargs.width=8")
    assert (changed.model["kwargs"], changed.model_name) == ({"width": 8}, "Model+width=8")


def test_a_plan_estimates_what_has_a_closed_form_and_says_where_there_is_none() -> None:
    assert all((item.estimated_memory_bytes or 0) > 0 for item in planned().repeats)
    items = planned("model=own_models:Model").repeats
    assert {item.estimated_memory_bytes for item in items} == {None}
    shown = CliRunner().invoke(app, ["plan", "x.yaml", "--set", "model=own_models:Model"])
    assert "no estimate" in shown.stdout


MODEL_REFUSALS = {
    "model.config.model_type: 'lama' is unknown to transformers": {**LLAMA, "model_type": "lama"},
    "model.config.architectures: ['WibbleForCausalLM'] is not LlamaForCausalLM": {
        **LLAMA,
        "architectures": ["WibbleForCausalLM"],
    },
    "model.config.model_type: 'vit' has no causal language model": {**LLAMA, "model_type": "vit"},
    "model.config.model_type: is missing": {"vocab_size": 9},
    "model.config.num_hidden_layers: -2 is not a positive": {**LLAMA, "num_hidden_layers": -2},
    "model.config.n_layer: 0 is not a positive integer": {**GPT2, "n_layer": 0},
    "model.config.hidden_sise: 64 is given, and llama has no such key (x.yaml); did you mean": {
        **{key: value for key, value in LLAMA.items() if key != "hidden_size"}, "hidden_sise": 64,
    },
    "model.config.vocab_size: None is no number of tokens (a model of text and more": {
        "model_type": "gemma3", "text_config": {"vocab_size": 9},
    },
    "model.config.vocab_size: is missing, so this vit is no model of text": {"model_type": "vit"},
    "model.config.auto_map: is set, and its class is code outside transformers": {
        **LLAMA, "auto_map": {"AutoModelForCausalLM": "modeling.Mine"},
    },
    "model.config.quantization_config: is set": {**LLAMA, "quantization_config": {"bits": 4}},
    "model.config.rope.0: is not a finite number": {**LLAMA, "rope": [float("inf")]},
}  # fmt: skip


@pytest.mark.parametrize("words", MODEL_REFUSALS)
def test_a_config_of_no_known_language_model_is_refused_with_key_and_file(words: str) -> None:
    Path("tiny/config.json").write_text(json.dumps(MODEL_REFUSALS[words]))
    text = refused()
    assert text.startswith(words)
    assert "; " in text
    assert "config.json" in text or "x.yaml" in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"model_type": "llama",', "config.json: is not JSON: "),
        ("[1, 2]", "config.json: is not a mapping"),
        ('{"model_type": 1, "model_type": 2}', "model_type: stands twice"),
        ("", "config.json: is not JSON: "),
    ],
)
def test_a_broken_config_json_is_refused_with_its_line(text: str, words: str) -> None:
    Path("tiny/config.json").write_text(text)
    assert words in refused()
    assert "tiny/config.json" in refused()


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_key_of_a_published_config_is_taken_for_a_misspelt_one(name: tuple[str, str]) -> None:
    config = {"model_type": name[1]} | dict.fromkeys(PUBLISHED[name].split())
    found = unread(config)
    assert found is not None
    assert set(found.values()) <= {None}


def test_a_plan_says_what_a_model_lacks_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Family, "missing", lambda self: "needs transformers; pip install it")
    Path("tiny/config.json").write_text(json.dumps(LLAMA))
    assert "here model family huggingface needs transformers; pip install it" in planned().notes


def test_a_plan_names_the_keys_that_no_source_of_the_model_reads() -> None:
    Path("tiny/config.json").write_text(json.dumps({**LLAMA, "unsloth_fixed": True, "n_ctx": 9}))
    (note,) = [note for note in planned().notes if note.startswith("model.config")]
    assert re.fullmatch(
        r"model\.config: llama of transformers [\d.]+ does not read unsloth_fixed, n_ctx", note
    )
    Path("tiny/config.json").write_text(json.dumps(LLAMA))
    assert not any(note.startswith("model.config") for note in planned().notes)


CALLABLE_REFUSALS = {
    "model.callable: there is no module own_model in ": ("own_model:Model", ""),
    "model.callable: there is no module own_models.sub in ": ("own_models.sub:Model", ""),
    "own_models.py defines no Modell": ("own_models:Modell", ""),
    "broken.py is not Python, line 1: invalid syntax (--set": ("broken:f", "def f(:\n"),
}


@pytest.mark.parametrize("words", CALLABLE_REFUSALS)
def test_a_callable_that_is_not_there_is_refused_without_importing_its_module(words: str) -> None:
    name, text = CALLABLE_REFUSALS[words]
    Path("broken.py").write_text(text)
    Path("own_models.py").write_text(CALLABLES + "\nraise SystemExit('it was imported')\n")
    assert words in refused(f"model={name}")
    case_of("model=own_models:Model")


def test_a_name_that_only_running_the_module_can_tell_is_left_to_the_ranks() -> None:
    Path("own_models.py").write_text("from elsewhere import *\n")
    assert case_of("model=own_models:Model")


@pytest.mark.parametrize(
    ("model", "setting", "words"),
    [
        ("tiny/config.json", "train.attention=sdpa_bias", "train.attention: sdpa_bias is a kernel"),
        ("tiny/config.json", "train.seq_len=128", "train.seq_len: 128 is more than the model's"),
        ("own_models:Model", "train.compile=true", "train.compile: goes block by block"),
    ],
)
def test_a_step_that_the_model_cannot_do_is_refused_with_the_option(
    model: str, setting: str, words: str
) -> None:
    text = refused(f"model={model}", setting)
    assert text.startswith(words)
    assert f"(--set {setting})" in text


def test_one_file_need_be_no_list_and_lies_where_the_option_was_typed(tmp_path: Path) -> None:
    Path("a.txt").write_text("some text " * 100)
    case = case_of("data={source: files, files: a.txt}")
    assert case.data.files == (str(tmp_path / "a.txt"),)
    swept = read_suite("x.yaml", ["data.source=files", "data.files=a.txt"], []).suite
    assert swept.data.files == (str(tmp_path / "a.txt"),)
    tokenizer = read_suite(
        "x.yaml", ["data.source=files", "data.files=a.txt", "data.tokenizer=t.json"]
    )
    assert tokenizer.suite.data.tokenizer == str(tmp_path / "t.json")


def test_a_shallow_model_of_others_can_be_planned() -> None:
    plan = planned("parity=shallow")
    depths = {case.model["config"]["num_hidden_layers"] for case in plan.cases.values()}
    assert depths == {2}
    assert "cannot be had with fewer layers" in refused("parity=shallow", "model=own_models:Model")


@pytest.mark.slow
def test_planning_imports_neither_torch_nor_transformers() -> None:
    program = (
        "import sys\n"
        "from andromeda_scale.cli import main\n"
        "for model in ('tiny/config.json', 'own_models:Model'):\n"
        "    sys.argv = ['andromeda-scale', 'plan', 'x.yaml', '--set', f'model={model}']\n"
        "    try: main()\n"
        "    except SystemExit as end: assert not end.code\n"
        "    assert not {'torch', 'transformers', 'own_models'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("value", ["m:", "own models:f", "a:b:c", ":f"])
def test_what_is_neither_file_nor_callable_is_refused(value: str) -> None:
    with pytest.raises(UserError):
        resolve_model(value, "x.yaml")
    with pytest.raises(UserError, match="names nothing to call"):
        resolve_model({"callable": value}, "x.yaml")
