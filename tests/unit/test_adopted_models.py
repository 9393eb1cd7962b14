"""Models of others: Hugging Face configurations and callables, as a rank builds them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from adopted_models import CALLABLES, GPT2, LLAMA
from torch import nn

from andromeda_scale.cost.activations import ACTIVATION_SAVES
from andromeda_scale.cost.model import num_parameters
from andromeda_scale.models import custom_net
from andromeda_scale.models.adopted import parameters_on_meta
from andromeda_scale.models.custom import CustomConfig
from andromeda_scale.models.factory import ModelFactory
from andromeda_scale.rank.failures import Invalid, UnavailableHere
from andromeda_scale.suite.training import Every, Segment, Train

TRAIN = Train(seq_len=16, micro_batch_size=2)
TOKENS = torch.arange(32).view(2, 16)
pytestmark = pytest.mark.slow  # all of it: transformers builds its models


def hugging_face(config: dict[str, Any], train: Train = TRAIN) -> ModelFactory:
    return ModelFactory({"family": "huggingface", "config": config}, train, 0)


def filled(factory: ModelFactory) -> Any:
    module = factory.build()
    factory.materialise(module, "cpu")
    return module


def loss_of(module: Any) -> torch.Tensor:
    loss, count = module(TOKENS, TOKENS)
    assert count == TOKENS.numel()
    return loss


# --- Hugging Face ----------------------------------------------------------------------------

SHAPES = {
    "llama": LLAMA,
    "llama, tied, biased": {**LLAMA, "tie_word_embeddings": True, "attention_bias": True},
    "llama, own head width": {**LLAMA, "head_dim": 16, "num_key_value_heads": None},
    "mistral": {**LLAMA, "model_type": "mistral", "sliding_window": None},
    "qwen2": {**LLAMA, "model_type": "qwen2"},
    "qwen3": {**LLAMA, "model_type": "qwen3"},
    "qwen3, biased": {**LLAMA, "model_type": "qwen3", "head_dim": 16, "attention_bias": True},
    "gpt2": GPT2,
    "gpt2, untied": {**GPT2, "tie_word_embeddings": False, "n_inner": 48},
    "gpt_neox": {**LLAMA, "model_type": "gpt_neox"},
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_closed_form_counts_the_parameters_that_transformers_builds(name: str) -> None:
    factory = hugging_face(SHAPES[name])
    shape = factory.config.shape()
    assert shape is not None
    assert num_parameters(shape) == factory.num_parameters


@pytest.mark.parametrize(
    "config",
    [
        {**LLAMA, "model_type": "mistral"},  # its class's sliding window
        {**LLAMA, "model_type": "mixtral", "num_local_experts": 2},
        {**LLAMA, "mlp_bias": True},
        {key: value for key, value in LLAMA.items() if key != "intermediate_size"},
        {"model_type": "gpt2", "vocab_size": 256},
        {**GPT2, "activation_function": "mish"},
    ],
)
def test_what_a_file_does_not_say_or_nobody_here_knows_has_no_closed_form(
    config: dict[str, Any],
) -> None:
    assert hugging_face(config).config.shape() is None


@pytest.mark.parametrize("name", ACTIVATION_SAVES)
def test_the_closed_form_counts_the_tensors_that_an_activation_saves(name: str) -> None:
    from transformers.activations import ACT2FN

    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.data_ptr()] = tensor
        return tensor

    first = torch.ones(8, requires_grad=True) * 2  # a product's result, which nothing else saves
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = ACT2FN[name](first)
    saved.pop(result.data_ptr(), None)
    assert len(saved) == ACTIVATION_SAVES[name]


@pytest.mark.parametrize("name", SHAPES)
def test_the_loss_in_parts_and_its_gradients_are_those_of_whole_logits(name: str) -> None:
    found = []
    for chunks in (1, 3):
        module = filled(hugging_face(SHAPES[name], Train(seq_len=16, loss_chunks=chunks)))
        loss = loss_of(module)
        loss.backward()
        assert module.describe_loss() == {"chunks": chunks}
        found.append({"loss": loss.detach()} | {n: p.grad for n, p in module.named_parameters()})
    for name, whole in found[0].items():
        torch.testing.assert_close(found[1][name], whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [LLAMA, GPT2])
def test_a_step_draws_nothing_and_its_loss_is_of_shifted_labels_in_float32(
    config: dict[str, Any],
) -> None:
    module = filled(hugging_face(config))  # GPT2 asks for dropout, LLAMA for bfloat16
    assert module.training
    first, second = loss_of(module), loss_of(module)
    assert first.dtype == torch.float32
    assert torch.equal(first, second)
    logits = module.model(input_ids=TOKENS).logits.flatten(0, 1)
    expected = nn.functional.cross_entropy(logits, TOKENS.flatten(), reduction="sum")
    assert torch.equal(first, expected)


@pytest.mark.parametrize("kind", ["bert", "xlm"])
def test_a_class_that_can_be_an_encoder_sees_no_later_token(kind: str) -> None:
    sizes = {"emb_dim": 32, "n_layers": 2, "n_heads": 4} if kind == "xlm" else {}
    config = {**LLAMA, "model_type": kind, "pad_token_id": 2, **sizes}
    model = filled(hugging_face({k: v for k, v in config.items() if k != "architectures"})).model
    tokens = TOKENS[:1] + 100  # no padding, which XLM leaves out
    changed = tokens.clone()
    changed[0, -1] = 99
    before, after = (model(input_ids=ids, use_cache=False).logits for ids in (tokens, changed))
    torch.testing.assert_close(before[:, :-1], after[:, :-1], rtol=0, atol=0)
    assert not torch.equal(before[:, -1], after[:, -1])


def test_rotary_frequencies_have_their_values_after_meta_and_casts() -> None:
    factory = hugging_face(LLAMA)
    module = filled(factory)
    expected = 1e4 ** -(torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(module.model.model.rotary_emb.inv_freq, expected)
    module.bfloat16()
    assert module.model.model.rotary_emb.inv_freq.dtype == torch.bfloat16
    factory.fill_buffers(module, "cpu")
    torch.testing.assert_close(module.model.model.rotary_emb.inv_freq, expected)


def test_a_tied_head_is_one_parameter_on_meta_and_filled() -> None:
    factory = hugging_face(GPT2)
    for module in (factory.build(), filled(factory)):
        table = module.model.transformer.wte.weight
        assert module.model.lm_head.weight is table
    untied = hugging_face({**GPT2, "tie_word_embeddings": False})
    assert untied.num_parameters - factory.num_parameters == 256 * 32


def test_weights_follow_the_stated_rule_whatever_module_holds_them() -> None:
    module = filled(hugging_face({**GPT2, "initializer_range": 0.05}))
    block = module.blocks[0]  # attention and FFN are transformers' Conv1D
    assert block.mlp.c_fc.weight.std().item() == pytest.approx(0.05, rel=0.05)
    assert torch.equal(block.ln_1.weight, torch.ones(32))
    assert not block.attn.c_attn.bias.any()


@pytest.mark.parametrize(
    ("asked", "theirs"), [(None, "sdpa"), ("naive", "eager"), ("sdpa_causal", "sdpa")]
)
def test_attention_is_transformers_of_the_kind_asked_for(asked: Any, theirs: str) -> None:
    module = filled(hugging_face(LLAMA, Train(seq_len=16, attention=asked)))
    assert module.model.config._attn_implementation == theirs
    assert module.describe_attention()["kernel"] == (asked or "sdpa_causal")
    other = filled(hugging_face(LLAMA, Train(seq_len=16, attention="naive")))
    torch.testing.assert_close(loss_of(module), loss_of(other), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["block", "selective", Every(every=2)])
@pytest.mark.parametrize("config", [LLAMA, GPT2])
def test_checkpointed_blocks_are_run_again_and_give_the_same_gradients(
    config: dict[str, Any], kind: Any
) -> None:
    plain = filled(hugging_face(config))
    again = filled(
        hugging_face(config, TRAIN.model_copy(update={"activation_checkpointing": kind}))
    )
    for module in (plain, again):
        loss_of(module).backward()
    assert plain.describe_checkpointing()["blocks_recomputed"] == 0
    assert again.describe_checkpointing()["blocks_recomputed"] == (
        1 if kind == Every(every=2) else 2
    )
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_the_shallow_form_has_two_layers_of_the_same_widths() -> None:
    deep = {**LLAMA, "num_hidden_layers": 8, "layer_types": ["full_attention"] * 8}
    factory = hugging_face(deep)
    shallow = hugging_face(factory.config.shallow()["config"])
    assert len(shallow.build().blocks) == 2
    assert len(shallow.config.config["layer_types"]) == 2
    per_block = (factory.num_parameters - shallow.num_parameters) / 6
    block = sum(p.numel() for p in shallow.build().blocks[0].parameters())
    assert per_block == block


def test_what_transformers_refuses_is_invalid_in_its_words() -> None:
    with pytest.raises(Invalid, match=r"transformers refuses it: .*hidden size"):
        hugging_face({**LLAMA, "num_attention_heads": 5})


def test_without_transformers_the_case_is_unavailable_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableHere, match=r"pip install 'andromeda-scale\[transformers\]'"):
        hugging_face(LLAMA)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"attention": "sdpa_bias"}, "train.attention: sdpa_bias"),
        ({"attention": "flex"}, "train.attention: flex needs heads of 16 dimensions"),
        ({"activation_checkpointing": Segment(segment=2)}, "train.activation_checkpointing"),
        ({"seq_len": 65}, "train.seq_len: 65 is more than the model's max_position_embeddings 64"),
    ],
)
def test_a_step_that_such_a_model_cannot_do_is_refused(
    settings: dict[str, Any], reason: str
) -> None:
    config = hugging_face(LLAMA).config
    assert config.refuses(TRAIN) is None
    assert str(config.refuses(TRAIN.model_copy(update=settings))).startswith(reason)


# --- module:callable -------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the user's in the current directory."""
    (tmp_path / "own_models.py").write_text(CALLABLES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "own_models", raising=False)


def custom(name: str = "Model", train: Train = TRAIN, **options: Any) -> ModelFactory:
    return ModelFactory({"family": "custom", "callable": f"own_models:{name}", **options}, train, 0)


@pytest.mark.usefixtures("own")
def test_a_callable_is_called_with_kwargs_and_keeps_its_buffers_and_ties() -> None:
    module = filled(custom(kwargs={"width": 16}))
    assert module.model.table.weight.shape == (256, 16)
    assert torch.equal(module.model.decay, torch.linspace(1, 0.5, 16))
    assert module.model.head.weight is module.model.table.weight
    assert torch.equal(module.model.gate, torch.ones(16))
    assert not list(module.blocks)
    assert loss_of(module).requires_grad


@pytest.mark.usefixtures("own")
def test_named_blocks_are_the_modules_own_and_can_be_checkpointed() -> None:
    train = TRAIN.model_copy(update={"activation_checkpointing": "block"})
    module = filled(custom(blocks="layers", train=train))
    assert list(module.blocks) == list(module.model.layers)
    loss_of(module).backward()
    assert module.describe_checkpointing()["blocks_recomputed"] == 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_loss", "returned a tensor of shape (2, 16, 32), not a pair"),
        ("nothing", "returned None, not a pair"),
        ("mean_of_rows", "returned a tensor of shape (2, 16) as its loss, not a scalar tensor"),
        ("rounded", "returned a loss in bfloat16, which loses digits of a sum"),
        ("detached", "returned a loss without a gradient"),
        ("rows", "returned 2 as its number of tokens for labels of 32"),
        ("count_in_tensor", "returned a tensor of shape () as its number of tokens"),
    ],
)
@pytest.mark.usefixtures("own")
def test_a_forward_that_returns_anything_else_is_invalid_in_words(name: str, reason: str) -> None:
    module = filled(custom(name))
    with pytest.raises(Invalid) as caught:
        module(TOKENS, TOKENS)
    assert reason in str(caught.value)
    assert str(caught.value).startswith(f"model.callable: forward of own_models:{name} returned ")
    assert str(caught.value).endswith("return (the summed loss in float32, labels.numel())")


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("not_there", {}, "own_models:not_there cannot be imported: AttributeError"),
        ("Model", {"kwargs": {"size": 3}}, r"failed when called with \(size=3\): TypeError"),
        ("a_number", {}, "own_models:a_number returned an int; return a torch.nn.Module"),
        ("empty", {}, "returned a module without parameters"),
        ("Model", {"blocks": "norms"}, "has no list of modules at norms"),
        ("Model", {"blocks": "table"}, "has no list of modules at table"),
        ("from_a_weight", {}, "buffer start is computed from a parameter or lies on meta"),
    ],
)
@pytest.mark.usefixtures("own")
def test_a_callable_that_builds_no_model_is_invalid_in_words(
    name: str, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Invalid, match=reason):
        custom(name, **options)


@pytest.mark.usefixtures("own")
def test_an_error_inside_the_users_module_is_invalid_with_its_text(tmp_path: Path) -> None:
    (tmp_path / "broken_model.py").write_text("import no_such_package\n")
    with pytest.raises(Invalid, match=r"cannot be imported: ModuleNotFoundError: .*such_package"):
        ModelFactory({"family": "custom", "callable": "broken_model:make"}, TRAIN, 0)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"compile": True}, "train.compile: goes block by block, and model.blocks names none"),
        ({"activation_checkpointing": "block"}, "train.activation_checkpointing: goes block by"),
        ({"attention": "naive"}, "train.attention: naive cannot be chosen"),
    ],
)
@pytest.mark.usefixtures("own")
def test_a_step_that_needs_blocks_is_refused_without_them(
    settings: dict[str, Any], reason: str
) -> None:
    config = custom().config
    assert str(config.refuses(TRAIN.model_copy(update=settings))).startswith(reason)


def test_a_parameter_that_two_modules_share_is_shared_on_meta() -> None:
    with parameters_on_meta():
        shared = nn.Parameter(torch.randn(3, 3))
        one, other = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        one.weight, other.weight = shared, shared
        scale = nn.BatchNorm1d(3)
    assert one.weight.is_meta
    assert one.weight is other.weight
    assert not scale.running_mean.is_meta
    assert not nn.Linear(3, 3).weight.is_meta


def test_a_block_that_is_listed_twice_is_invalid() -> None:
    block = torch.nn.Linear(2, 2)
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList([block, block])
    config = CustomConfig(callable="own_models:f", blocks="layers")
    with pytest.raises(Invalid, match=r"model\.blocks: layers of own_models:f lists a mod"):
        custom_net._blocks(config, model)
