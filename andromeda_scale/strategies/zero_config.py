"""DeepSpeed's configuration: where a JSON contradicts a suite, what the engine gets. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from andromeda_scale.strategies.zero_options import OWNED, Zero3Options, ZeroOptions
from andromeda_scale.suite.optimizers import OPTIMIZERS
from andromeda_scale.suite.precision import GROWTH_INTERVAL, INITIAL_LOSS_SCALE, POLICIES
from andromeda_scale.suite.training import Train
from andromeda_scale.suite.world import World

_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def compute_dtype(train: Train) -> str:
    """What DeepSpeed's engine holds parameters in."""
    return POLICIES[train.precision].compute


def reduce_dtype(options: ZeroOptions, train: Train) -> str:
    """What crosses the network when gradients are summed over ranks."""
    return options.reduce_dtype or POLICIES[train.precision].reduction


def grad_accum_dtype(options: ZeroOptions, train: Train) -> str:
    """What gradients of several micro-batches are summed and kept in."""
    return options.grad_accum_dtype or compute_dtype(train)


def refusal(options: ZeroOptions, stage: int, train: Train, world: World) -> str | None:
    """Why a case of these settings cannot run; None if it can."""
    compute, accumulated = compute_dtype(train), grad_accum_dtype(options, train)
    allowed = " or ".join(dict.fromkeys(("float32", compute)))
    if reduce_dtype(options, train) not in ("float32", compute):
        return (
            f"strategy.reduce_dtype: {options.reduce_dtype} under precision {train.precision}; "
            f"use {allowed}"
        )
    asked = f"strategy.grad_accum_dtype: {accumulated}"
    if "data_types" in (config := options.config or {}):
        said = config["data_types"]["grad_accum_dtype"]
        file = config.get("file", "the mapping")
        asked = f"strategy.config: {file}: data_types.grad_accum_dtype: {said!r}"
    if accumulated not in ("float32", compute):
        return f"{asked} under precision {train.precision}; use {allowed}"
    if accumulated != compute and (stage == 1 or (stage == 2 and options.offload_optimizer)):
        return (
            f"{asked} beside {compute} parameters makes DeepSpeed "
            "run another optimizer than ZeRO's or keep gradients twice; use zero2 without offload "
            "or zero3, or leave it out"
        )
    if isinstance(options, Zero3Options) and (reason := _refused_units(options, train)):
        return reason
    return contradiction(options, stage, train, world)


def together(options: Zero3Options, train: Train) -> int | None:
    """blocks_per_unit; by default 1 where blocks run again one by one."""
    recomputed = train.activation_checkpointing not in ("none", "selective")
    return 1 if options.blocks_per_unit is None and recomputed else options.blocks_per_unit


def _refused_units(options: Zero3Options, train: Train) -> str | None:
    asked, recomputed = options.blocks_per_unit, train.activation_checkpointing
    if asked == 0 and train.compile and recomputed == "selective":
        return (
            "strategy.blocks_per_unit: 0 puts DeepSpeed's hooks into compiled blocks, which "
            "selective checkpointing needs whole in one graph; use 1 or more"
        )
    if asked and asked > 1 and recomputed not in ("none", "selective"):
        return (
            f"strategy.blocks_per_unit: {asked} blocks fetched as one, and "
            "train.activation_checkpointing runs blocks again one by one; use 1, or selective"
        )
    return None


def contradiction(options: ZeroOptions, stage: int, train: Train, world: World) -> str | None:
    """Every key of the user's JSON that says other than the suite does; None without any."""
    if options.config is None:
        return None
    found = "; ".join(_contradictions(options, stage, train, world))
    if not found:
        return None
    file = options.config.get("file", "the mapping")
    return f'strategy.config: {file}: {found}; remove them there, write "auto", or change the suite'


def _contradictions(options: ZeroOptions, stage: int, train: Train, world: World) -> Iterator[str]:
    config = options.config or {}
    micro, accum = train.micro_batch_size, train.grad_accum
    numbers = {
        "train_batch_size": (micro * accum * world.size, "the global batch"),
        "train_micro_batch_size_per_gpu": (micro, "train.micro_batch_size"),
        "gradient_accumulation_steps": (accum, "train.grad_accum"),
        "gradient_clipping": (train.grad_clip or 0, "train.grad_clip"),
        "communication_data_type": (_NAMES[reduce_dtype(options, train)], "strategy.reduce_dtype"),
    }
    for key, (ours, name) in numbers.items():
        if not _same(config.get(key, ours), ours):
            yield f"{key}: {config[key]!r} contradicts {name}: {ours}"
    if not _same(said := options.zero_optimization("stage", stage), stage):
        yield f"zero_optimization.stage: {said!r} contradicts strategy: zero{stage}"
    theirs = stage == 3 and options.zero_optimization("memory_efficient_linear", False)
    if theirs and (why := _torch_linear(train)):
        yield f"zero_optimization.memory_efficient_linear: true contradicts {why}"
    for section, wanted in (
        ("bf16", {"enabled": train.precision == "bf16"}),
        ("bfloat16", {"enabled": train.precision == "bf16"}),
        ("fp16", _fp16(train)),
    ):
        if section in config:
            yield from _of_precision(section, config[section], wanted, train)
    if "optimizer" in config:
        yield from _of_optimizer(config["optimizer"], train)
    if "scheduler" in config:
        yield "scheduler contradicts train.learning_rate, which is constant"


def _of_precision(
    section: str, said: Any, wanted: Mapping[str, Any], train: Train
) -> Iterator[str]:
    if not isinstance(said, Mapping):
        yield f"{section}: {said!r} is no mapping"
        return
    for key, value in said.items():
        # A section that is off may say what it likes of the scale.
        neutral = wanted.get(key, False) if wanted["enabled"] or key == "enabled" else value
        if key == "check_grad_overflow":
            neutral = True
        if value not in ("auto", None, neutral):
            yield f"{section}.{key}: {value!r} contradicts train.precision: {train.precision}"


def _of_optimizer(said: Any, train: Train) -> Iterator[str]:
    """The optimizer's class and its settings, each of which may be "auto"."""
    if not isinstance(said, Mapping):
        yield f"optimizer: {said!r} is no mapping"
        return
    spec = train.optimizer
    ours: dict[str, Any] = {
        "lr": train.learning_rate,
        "weight_decay": train.weight_decay,
        "betas": list(spec.betas or (0.9, 0.999)),  # torch's defaults, as the suite's
        "eps": spec.eps or OPTIMIZERS[spec.name].eps,
        "momentum": spec.momentum or 0,
        "torch_adam": True,
    }
    kind = said.get("type", "auto")
    if str(kind).lower() not in ("auto", spec.name):
        yield f"optimizer.type: {kind!r} contradicts train.optimizer: {spec.name}"
    for key in set(said) - {"type", "params"}:
        yield f"optimizer.{key}: has no key in the suite"
    params = said.get("params", {})
    if not isinstance(params, Mapping):
        yield f"optimizer.params: {params!r} is no mapping"
        return
    for key, value in params.items():
        if value != "auto" and not _same(value, ours.get(key)):
            yield f"optimizer.params.{key}: {value!r} contradicts the suite's: {ours.get(key)}"


def _same(said: Any, ours: Any) -> bool:
    """Equality of JSON values, in which true is not 1."""
    return bool(said == ours) and isinstance(said, bool) == isinstance(ours, bool)


def _fp16(train: Train) -> dict[str, Any]:
    """DeepSpeed's dynamic scale with torch's rule: halved at once, doubled after an interval."""
    if train.precision != "fp16":
        return {"enabled": False}
    return {
        "enabled": True,
        "auto_cast": False,
        "loss_scale": 0,
        "initial_scale_power": round(math.log2(INITIAL_LOSS_SCALE)),
        "loss_scale_window": GROWTH_INTERVAL,
        "hysteresis": 1,
        "consecutive_hysteresis": False,
        "min_loss_scale": 1,
    }


def engine_config(
    options: ZeroOptions, stage: int, train: Train, num_parameters: int, device: str
) -> dict[str, Any]:
    """What DeepSpeed is given: the rest of the user's JSON below the suite's own settings."""
    handed_on = {
        key: value
        for key, value in (options.config or {}).items()
        if key not in OWNED and key not in ("file", "zero_optimization")
    }
    return {
        "steps_per_print": None,
        **handed_on,
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": train.grad_accum,
        "gradient_clipping": train.grad_clip or 0.0,
        "communication_data_type": _NAMES[reduce_dtype(options, train)],
        "bf16": {
            "enabled": train.precision == "bf16",
            "check_grad_overflow": getattr(options, "check_grad_overflow", False),
        },
        "fp16": _fp16(train),
        "data_types": {"grad_accum_dtype": _NAMES[grad_accum_dtype(options, train)]},
        # The suite's optimizer, torch's, also where its state lies on the host.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": _zero_optimization(options, stage, train, num_parameters, device),
        "wall_clock_breakdown": False,
    }


def _zero_optimization(
    options: ZeroOptions, stage: int, train: Train, num_parameters: int, device: str
) -> dict[str, Any]:
    section = dict((options.config or {}).get("zero_optimization", {}))
    ours = {"config", "reduce_dtype", "grad_accum_dtype", "offload_optimizer"}
    ours |= {"offload_parameters", "blocks_per_unit", "check_grad_overflow"}
    everywhere = {"reduce_bucket_size", "overlap_comm"}
    for key, value in options.model_dump(exclude=ours).items():
        section[key if stage < 3 or key in everywhere else f"stage3_{key}"] = value
    section["reduce_bucket_size"] = min(options.reduce_bucket_size, num_parameters)
    if isinstance(options, Zero3Options):
        _offload(section, "offload_param", options.offload_parameters, device)
    _offload(section, "offload_optimizer", options.offload_optimizer, device)
    if stage == 3 and _torch_linear(train):
        section["memory_efficient_linear"] = False
    return section | {"stage": stage}


def _torch_linear(train: Train) -> str | None:
    """The setting under which stage 3 runs torch's linear function in the place of DeepSpeed's.

    DeepSpeed's (0.19.8) adds the bias in place, unseen by autograd. Of such a function torch 2.11's
    compiler takes every gradient to be zero, and says nothing; selective checkpointing keeps the
    product, and adds the bias once more when backward takes it up.
    """
    if train.compile:
        return "train.compile"
    if train.activation_checkpointing == "selective":
        return "train.activation_checkpointing: selective"
    return None


def _offload(section: dict[str, Any], key: str, wanted: bool, device: str) -> None:
    said = section.pop(key, {})
    if wanted:  # pages are pinned for a device that copies from them; a CPU has none
        pinned = device != "cpu" and said.get("pin_memory", True)
        section[key] = {**said, "device": "cpu", "pin_memory": pinned}
