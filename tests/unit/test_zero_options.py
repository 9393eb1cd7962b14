"""A user's DeepSpeed JSON: what becomes an option, what is handed on, what is refused by key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from andromeda_scale.errors import UserError
from andromeda_scale.planning.expand import expand
from andromeda_scale.planning.suite_file import read_suite
from andromeda_scale.registry import load
from andromeda_scale.strategies import zero_config
from andromeda_scale.strategies.zero_options import Zero3Options, Zero12Options
from andromeda_scale.suite.config import Case
from andromeda_scale.suite.training import Train
from andromeda_scale.suite.world import World

SUITE = """\
question: Which?
model: llama-tiny
train: {seq_len: 32, micro_batch_size: 2, grad_accum: 3, precision: bf16}
world: [2]
strategy: {name: zero2, config: mine.json}
"""


def cases(folder: Path, content: Any, *sets: str, suite: str = SUITE) -> list[Case]:
    (folder / "suite.yaml").write_text(suite)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "mine.json").write_text(text)
    loaded = read_suite(str(folder / "suite.yaml"), sets)
    return [point.case for point in expand(loaded.suite, loaded.where)]


def refused(folder: Path, content: Any, *sets: str, suite: str = SUITE) -> str | None:
    """Why the one case cannot run, as a plan says it."""
    (case,) = cases(folder, content, *sets, suite=suite)
    kind = load("strategy", case.strategy.name)
    options = kind.Options(**case.strategy.options)
    reason: str | None = kind.refuses(options, case.train, case.world, "cuda")
    return reason


def test_a_json_means_what_the_same_options_mean(tmp_path: Path) -> None:
    section = {
        "stage": "auto",
        "reduce_bucket_size": 2e8,
        "overlap_comm": True,
        "reduce_scatter": False,
        "offload_optimizer": {"device": "cpu"},
    }
    said = cases(tmp_path, {"train_batch_size": "auto", "zero_optimization": section})
    options = "{name: zero2, reduce_bucket_size: 200000000, overlap_comm: true, "
    options += "reduce_scatter: false, offload_optimizer: true}"
    written = cases(tmp_path, {}, f"strategy={options}")
    assert said == written
    assert said[0].case_id == written[0].case_id


def test_a_stored_case_holds_the_content_of_its_file(tmp_path: Path) -> None:
    (before,) = cases(tmp_path, {"zero_optimization": {"contiguous_gradients": True}})
    assert before.strategy.options["config"] == {
        "file": "mine.json",
        "zero_optimization": {"contiguous_gradients": True},
    }
    (after,) = cases(tmp_path, {"zero_optimization": {"contiguous_gradients": False}})
    assert after.case_id != before.case_id
    # What was read once is valid again as it is stored.
    again = Zero12Options.model_validate(before.strategy.options)
    assert again.model_dump(exclude_defaults=True) == before.strategy.options


def test_files_are_found_beside_the_suite_and_by_name_and_in_axes(tmp_path: Path) -> None:
    suite = SUITE.replace("mine.json", "zero2") + (
        "axes: {strategy: [{name: zero2, config: mine.json}, {name: zero3, config: zero3-offload}]}"
    )
    beside, shipped = cases(tmp_path, {"zero_optimization": {"reduce_bucket_size": 7}}, suite=suite)
    assert beside.strategy.options["reduce_bucket_size"] == 7
    assert shipped.strategy.options["offload_parameters"] is True
    options = Zero3Options(**shipped.strategy.options)
    assert zero_config.contradiction(options, 3, shipped.train, shipped.world) is None
    with pytest.raises(UserError, match=r"strategy\.config: .*no such file"):
        cases(tmp_path, {}, "strategy.config=./other.json")
    with pytest.raises(UserError, match="did you mean zero3"):
        cases(tmp_path, {}, "strategy.config=zero33")


CONTRADICTIONS = {
    '{"gradient_accumulation_steps": 4}': "gradient_accumulation_steps: 4 contradicts "
    "train.grad_accum: 3",
    '{"train_batch_size": 16}': "train_batch_size: 16 contradicts the global batch: 12",
    '{"train_micro_batch_size_per_gpu": 1}': "contradicts train.micro_batch_size: 2",
    '{"gradient_clipping": 0}': "gradient_clipping: 0 contradicts train.grad_clip: 1.0",
    '{"communication_data_type": "bf16"}': "'bf16' contradicts strategy.reduce_dtype: fp32",
    '{"bf16": {"enabled": false}}': "bf16.enabled: False contradicts train.precision: bf16",
    '{"fp16": {"enabled": true}}': "fp16.enabled: True contradicts train.precision: bf16",
    '{"bf16": {"enabled": true, "bf16_master_weights_and_grads": true}}': "bf16_master_weights",
    '{"zero_optimization": {"stage": 3}}': "zero_optimization.stage: 3 contradicts strategy: zero2",
    '{"optimizer": {"type": "SGD"}}': "optimizer.type: 'SGD' contradicts train.optimizer: adamw",
    '{"optimizer": {"type": "AdamW", "params": {"lr": 0.1}}}': "optimizer.params.lr: 0.1",
    '{"optimizer": {"legacy_fusion": true}}': "optimizer.legacy_fusion: has no key in the suite",
    '{"optimizer": {"params": 7}}': "optimizer.params: 7 is no mapping",
    '{"optimizer": {"params": {"eps": 1e-6}}}': "optimizer.params.eps: 1e-06 contradicts",
    '{"gradient_clipping": true}': "gradient_clipping: True contradicts train.grad_clip: 1.0",
    '{"scheduler": {"type": "WarmupLR"}}': "scheduler contradicts train.learning_rate",
}


@pytest.mark.parametrize("content", CONTRADICTIONS)
def test_what_the_suite_owns_is_refused_by_key(tmp_path: Path, content: str) -> None:
    reason = refused(tmp_path, content)
    assert reason is not None
    assert reason.startswith("strategy.config: mine.json: ")
    assert CONTRADICTIONS[content] in reason


def test_every_contradiction_is_named_at_once(tmp_path: Path) -> None:
    both = {"gradient_accumulation_steps": 4, "gradient_clipping": 2, "train_batch_size": "auto"}
    reason = refused(tmp_path, both)
    assert reason is not None
    assert "gradient_accumulation_steps" in reason
    assert "gradient_clipping" in reason
    assert "train_batch_size" not in reason


def test_equal_and_auto_values_are_no_contradiction(tmp_path: Path) -> None:
    equal = {
        "train_batch_size": 12,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 3,
        "gradient_clipping": 1.0,
        "communication_data_type": "fp32",
        "bf16": {"enabled": True},
        "fp16": {"enabled": False, "initial_scale_power": 32, "hysteresis": 2},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": [0.9, 0.999]}},
        "scheduler": "auto",
        "zero_optimization": {"stage": 2},
    }
    assert refused(tmp_path, equal) is None
    fp16 = {"fp16": {"enabled": True, "initial_scale_power": 32}}
    assert "fp16.initial_scale_power: 32" in str(refused(tmp_path, fp16, "train.precision=fp16"))


UNREADABLE = {
    '{"zero_optimization": {}, "zero_optimization": {}}': "zero_optimization: stands twice",
    "[1, 2]": "holds list, not a mapping",
    '{"a": 1,}': "is not JSON: .* in line 1",
    '{"gradient_clipping": NaN}': "NaN is no number of JSON",
    "\x00\xff": "is not JSON",
    '{"zero_optimization": 3}': "zero_optimization: 3 is no mapping",
    '{"zero_optimization": {"zero_quantized_weights": true}}': "zero_quantized_weights: True",
    '{"zero_optimization": {"reduce_bucket_size": "big"}}': "'big' is not a number of elements",
    '{"zero_optimization": {"reduce_bucket_size": -1}}': "-1 is not a number of elements",
    '{"zero_optimization": {"sub_group_size": true}}': "True is not a number of elements",
    '{"zero_optimization": {"contiguous_gradients": "yes"}}': "'yes' is not true or false",
    '{"zero_optimization": {"overlap_comm": 1}}': "1 is not true or false",
    '{"zero_optimization": {"offload_param": {"device": "cpu"}}}': "needs stage 3",
    '{"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}': "device: 'nvme'",
    '{"zero_optimization": {"round_robin_gradients": true}}': "round_robin_gradients: True",
    '{"flops_profiler": {"enabled": true}}': "flops_profiler",
    '{"data_types": {"param_dtype": "bf16"}}': "data_types.param_dtype",
    '{"sequence_parallel_size": 2}': "sequence_parallel_size: 2",
}


@pytest.mark.parametrize("content", UNREADABLE)
def test_what_cannot_be_read_or_described_names_file_key_and_remedy(
    tmp_path: Path, content: str
) -> None:
    with pytest.raises(UserError, match=UNREADABLE[content]) as error:
        cases(tmp_path, content)
    assert "mine.json" in str(error.value)
    assert "; " in str(error.value)


def test_an_option_and_the_json_may_not_say_two_things(tmp_path: Path) -> None:
    content = {"zero_optimization": {"reduce_bucket_size": 2e8}}
    with pytest.raises(UserError, match=r"mine\.json: .*reduce_bucket_size.*contradicts"):
        cases(tmp_path, content, "strategy.reduce_bucket_size=5")
    (same,) = cases(tmp_path, content, "strategy.reduce_bucket_size=200000000")
    assert same.strategy.options == {"reduce_bucket_size": 200_000_000}


def test_the_engine_gets_the_rest_below_the_suites_own_settings() -> None:
    options = Zero3Options.model_validate(
        {
            "offload_optimizer": True,
            "config": {
                "file": "mine.json",
                "gradient_clipping": 0.5,
                "steps_per_print": 10,
                "data_types": {"grad_accum_dtype": "fp32"},
                "zero_optimization": {
                    "sub_group_size": 1e6,
                    "offload_optimizer": {"device": "cpu", "pin_memory": False},
                    "offload_param": {"device": "cpu"},
                },
            },
        }
    )
    train = Train(precision="fp16", grad_clip=0.5, grad_accum=2)
    made = zero_config.engine_config(options, 3, train, 1000, "cuda")
    assert "file" not in made
    assert (made["steps_per_print"], made["gradient_clipping"]) == (10, 0.5)
    assert made["data_types"] == {"grad_accum_dtype": "fp32"}
    # torch's scaler: halved at the first overflow, doubled after 2000 steps without one.
    fp16 = made["fp16"]
    assert (2.0 ** fp16["initial_scale_power"], fp16["loss_scale_window"], fp16["hysteresis"]) == (
        2.0**12,
        2000,
        1,
    )
    zero = made["zero_optimization"]
    assert (zero["stage"], zero["sub_group_size"], zero["reduce_bucket_size"]) == (3, 1e6, 1000)
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": False}
    assert zero["offload_param"] == {"device": "cpu", "pin_memory": True}
    on_cpu = zero_config.engine_config(options, 3, train, 1000, "cpu")["zero_optimization"]
    assert on_cpu["offload_param"] == {"device": "cpu", "pin_memory": False}


def test_a_name_that_nobody_read_is_refused() -> None:
    with pytest.raises(ValidationError, match="was not read"):
        Zero12Options.model_validate({"config": "zero2"})


# METRICS: bf16 ZeRO-2 is 2 + 14/N and ZeRO-3 16/N with Adam. Offloaded, gradients are kept in
# float32 on the host, ZeRO-3's also as they were summed.
OFFLOADED = [
    ("zero1", {}, 2, 16 / 4),
    ("zero2", {}, 2, 16 / 4),
    ("zero3", {}, 2 / 4, (4 + 2 + 12) / 4),
    ("zero3", {"offload_parameters": True}, 0, (2 + 4 + 2 + 12) / 4),
]


@pytest.mark.parametrize(("name", "options", "device", "host"), OFFLOADED)
def test_layout_says_what_lies_on_the_host(
    name: str, options: dict[str, Any], device: float, host: float
) -> None:
    kind = load("strategy", name)
    given = kind.Options(offload_optimizer=True, **options)
    layout = kind.layout(given, Train(precision="bf16"), World(ranks_per_node=4))
    assert layout.bytes_on("device") == device
    assert layout.bytes_on("host") == host


def test_accumulation_dtypes_that_change_the_optimizer_are_refused(tmp_path: Path) -> None:
    wider = {"data_types": {"grad_accum_dtype": "fp32"}}
    assert refused(tmp_path, wider) is None
    kind = load("strategy", "zero2")
    options = kind.Options(grad_accum_dtype="float32")
    layout = kind.layout(options, Train(precision="bf16"), World(ranks_per_node=2))
    assert layout.gradients.per_rank == 4 / 2
    for strategy in ("zero1", "{name: zero2, offload_optimizer: true}"):
        spec = "{name: zero1}" if strategy == "zero1" else strategy
        said = spec.replace("}", ", grad_accum_dtype: float32}")
        reason = refused(tmp_path, {}, f"strategy={said}")
        assert reason is not None
        assert "strategy.grad_accum_dtype" in reason


def test_an_accumulation_dtype_of_a_json_is_refused_by_file_and_key(tmp_path: Path) -> None:
    asked = "strategy.config: mine.json: data_types.grad_accum_dtype: "
    low = {"data_types": {"grad_accum_dtype": "fp16"}}
    said = refused(tmp_path, low)
    assert said == f"{asked}'fp16' under precision bf16; use float32 or bfloat16"
    said = refused(tmp_path, low, "train.precision=fp32")
    assert said == f"{asked}'fp16' under precision fp32; use float32"
    wider = {"data_types": {"grad_accum_dtype": "fp32"}}
    stage_1 = SUITE.replace("name: zero2", "name: zero1")
    assert str(refused(tmp_path, wider, suite=stage_1)).startswith(f"{asked}'fp32' beside bfloat16")


@pytest.mark.parametrize(
    ("train", "why"),
    [
        ("compile=true", "train.compile"),
        ("activation_checkpointing=selective", "train.activation_checkpointing: selective"),
        ("activation_checkpointing=block", None),
    ],
)
def test_stage_3_has_torchs_linear_function_where_deepspeeds_has_wrong_gradients(
    tmp_path: Path, train: str, why: str | None
) -> None:
    suite = SUITE.replace("zero2", "zero3")
    (case,) = cases(tmp_path, {}, f"train.{train}", suite=suite)
    options = Zero3Options(**case.strategy.options)
    made = zero_config.engine_config(options, 3, case.train, 1000, "cuda")["zero_optimization"]
    assert made.get("memory_efficient_linear") == (None if why is None else False)
    asked = {"zero_optimization": {"memory_efficient_linear": True}}
    said = refused(tmp_path, asked, f"train.{train}", suite=suite)
    if why is None:
        assert said is None
    else:
        assert said is not None
        assert f"memory_efficient_linear: true contradicts {why};" in said
    assert refused(tmp_path, asked, f"train.{train}") is None  # zero2 has no function of its own
