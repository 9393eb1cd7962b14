"""The options of ZeRO, and what a user's DeepSpeed JSON says in their place. No torch.

A JSON of DeepSpeed's documentation is another way to write a strategy: what it says of an option
becomes that option, what says nothing about bytes or arithmetic is handed to DeepSpeed as it is
(`config` then holds only that), and what no table here could describe is refused by its key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from andromeda_scale.suite.schema import Schema

# The suite's settings say these; zero_config compares. Below zero_optimization: its stage.
OWNED = frozenset(
    {
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "communication_data_type",
        "bf16",
        "bfloat16",
        "fp16",
        "optimizer",
        "scheduler",
    }
)
# Handed on: they print, save, check or allow, and change neither bytes nor arithmetic.
_HANDED_ON = frozenset(
    {
        "steps_per_print",
        "dump_state",
        "log_level",
        "checkpoint",
        "dataloader_drop_last",
        "disable_python_gc",
        "zero_allow_untested_optimizer",
        "aio",
    }
)
_ZERO_HANDED_ON = {  # and what each must be
    "contiguous_gradients": bool,
    "allgather_bucket_size": int,
    "allgather_partitions": bool,
    "sub_group_size": int,
    "elastic_checkpoint": bool,
    "load_from_fp32_weights": bool,
    "memory_efficient_linear": bool,
    "ignore_unused_parameters": bool,
    "stage3_model_persistence_threshold": int,
    "stage3_gather_16bit_weights_on_model_save": bool,
    "stage3_gather_fp16_weights_on_model_save": bool,
    "log_trace_cache_warnings": bool,
}
_OFFLOAD_HANDED_ON = {
    "pin_memory": bool,
    "buffer_count": int,
    "buffer_size": int,
    "max_in_cpu": int,
    "fast_init": bool,
}
# Sections and switches of which only "off" can be described.
_ONLY_OFF = frozenset(
    {
        "prescale_gradients",
        "wall_clock_breakdown",
        "memory_breakdown",
        "zero_force_ds_cpu_optimizer",
        "flops_profiler",
        "comms_logger",
        "tensorboard",
        "wandb",
        "csv_monitor",
        "comet",
        "autotuning",
        "data_efficiency",
        "hybrid_engine",
        "torch_autocast",
        "elasticity",
        "amp",
    }
)
_ZERO_ONLY_OFF = frozenset(
    {
        # DeepSpeed 0.19.8 then links masters to other parameters than their own, and the seed's
        # unrounded weights would be written to the wrong places.
        "round_robin_gradients",
        "zero_quantized_weights",
        "zero_quantized_nontrainable_weights",
        "zero_quantized_gradients",
        "legacy_stage1",
        "cpu_offload",
        "cpu_offload_param",
        "parameter_alignment",
        "enable_sanity_checks",
        "stage3_use_all_reduce_for_fetch_params",
        "stage3_allgather_sequential",
    }
)
# Options under names that are not DeepSpeed's.
_OURS = frozenset(
    {
        "reduce_dtype",
        "grad_accum_dtype",
        "offload_parameters",
        "blocks_per_unit",
        "check_grad_overflow",  # DeepSpeed has it below bf16
        "config",
    }
)
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def _or_a_name(schema: dict[str, Any]) -> None:
    schema["anyOf"].append({"type": "string"})


class ZeroOptions(Schema):
    """DeepSpeed's names, and its defaults where nothing else is said; sizes count elements.

    `reduce_dtype` null: the policy's.
    """

    reduce_bucket_size: PositiveInt = 500_000_000  # never more than the model's parameters
    overlap_comm: bool | None = None  # null: DeepSpeed's choice, true for stage 3 alone
    reduce_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    # What gradients of several micro-batches are summed and kept in; null: the compute dtype.
    grad_accum_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    # Master weights and optimizer state in host memory, and the update on the host's cores.
    offload_optimizer: bool = False
    # A file of DeepSpeed's JSON (a path, or a name in configs/deepspeed); once read, its rest.
    config: dict[str, Any] | None = Field(None, json_schema_extra=_or_a_name)

    @model_validator(mode="before")
    @classmethod
    def _json_says_options(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping) or raw.get("config") is None:
            return raw
        if not isinstance(raw["config"], Mapping):
            raise ValueError(
                f"config: {raw['config']!r} was not read; give the path of a DeepSpeed JSON file "
                "in a suite file"
            )
        given = dict(raw)
        config = dict(given.pop("config"))
        file = str(config.get("file", "the mapping"))
        said, rest = _read(config, cls, file)
        for name, (key, value) in said.items():
            if name in given and given[name] != value:
                raise ValueError(
                    f"config: {file}: {key} contradicts {name}: {given[name]!r} of the strategy; "
                    "remove one of them"
                )
            given[name] = value
        return given | {"config": rest if rest.keys() - {"file"} else None}

    def zero_optimization(self, key: str, default: Any) -> Any:
        """A value of the JSON's section zero_optimization that is no option."""
        return ((self.config or {}).get("zero_optimization") or {}).get(key, default)


class Zero12Options(ZeroOptions):
    """Stages 1 and 2. Without the multi-rank bucket gradients are reduced to their owners: 2P."""

    use_multi_rank_bucket_allreduce: bool = True
    reduce_scatter: bool = True  # false: whole buckets are averaged on every rank
    # bf16: look through every gradient for what is not finite, and leave such a step out. DeepSpeed
    # does by default, for which the host waits twice a step; stage 3 looks at their norm alone, and
    # torch's strategies at nothing.
    check_grad_overflow: bool = False


class Zero3Options(ZeroOptions):
    """Stage 3. Parameters used again within max_reuse stay whole; max_live bounds prefetching.

    param_persistence_threshold: smaller parameters stay whole, and each of them is gathered by
    itself after every update. DeepSpeed's default is 100000; as parts of their blocks they come
    along with these.
    """

    prefetch_bucket_size: NonNegativeInt = 50_000_000
    max_live_parameters: NonNegativeInt = 1_000_000_000
    max_reuse_distance: NonNegativeInt = 1_000_000_000
    param_persistence_threshold: NonNegativeInt = 0
    # Blocks that are fetched and reduced as one (DeepSpeed's leaf module); null: by their size
    # (cost.layout), as what the host does for a unit takes longer than a small block computes.
    # 0: each layer by hooks of its own, which hold the host up and cut compiled blocks.
    blocks_per_unit: Annotated[int, Field(ge=0, le=10**4)] | None = None
    offload_parameters: bool = False  # each rank's parameters in host memory until they are used


Said = dict[str, tuple[str, Any]]  # option -> (what the JSON wrote, the option's value)


def _read(
    config: dict[str, Any], options: type[ZeroOptions], file: str
) -> tuple[Said, dict[str, Any]]:
    """What a JSON says of options, and its rest; ValueError for what cannot be described."""
    said: Said = {}
    rest: dict[str, Any] = {}
    for key, value in config.items():
        if value in ("auto", None):
            continue
        if key == "zero_optimization":
            section = _section(value, key, file)
            if left := _read_zero(section, options, file, said):
                rest[key] = left
        elif key == "data_types":
            for name, dtype in _section(value, key, file).items():
                if name != "grad_accum_dtype" or dtype not in (*_DTYPES, "auto", None):
                    _refuse(file, f"{key}.{name}", dtype)
                if dtype in _DTYPES:
                    rest[key] = {name: dtype}  # refusals name it
                    said[name] = (f"{key}.{name}: {dtype!r}", _DTYPES[dtype])
        elif key in OWNED or key in _HANDED_ON or key == "file":
            rest[key] = value
            if key in ("bf16", "bfloat16") and "check_grad_overflow" in options.model_fields:
                _read_overflow(value, f"{key}.check_grad_overflow", file, said)
        elif not (key in _ONLY_OFF and _is_off(value)):
            neutral = {"gradient_predivide_factor": 1.0, "gradient_allreduce_op": "mean"}
            if value != neutral.get(key):
                _refuse(file, key, value)
    return said, rest


def _read_zero(
    section: dict[str, Any], options: type[ZeroOptions], file: str, said: Said
) -> dict[str, Any]:
    """As `_read`, of zero_optimization: adds to `said` and returns its rest."""
    known = set(options.model_fields)
    rest: dict[str, Any] = {}
    for key, value in section.items():
        at, name = f"zero_optimization.{key}", key.removeprefix("stage3_")
        if value in ("auto", None):
            continue
        if key in ("offload_optimizer", "offload_param"):
            name = "offload_parameters" if key == "offload_param" else key
            if left := _read_offload(_section(value, at, file), at, name, file, said):
                rest[key] = left
            if name not in known and said.pop(name, (at, False))[1]:
                raise ValueError(f"config: {file}: {at} needs stage 3; use strategy zero3")
        elif name in known - _OURS:
            kind = int if type(options.model_fields[name].default) is int else bool
            said[name] = (f"{at}: {value!r}", _size_or_switch(value, kind, at, file))
        elif key == "stage":
            rest[key] = value
        elif key in _ZERO_HANDED_ON:
            rest[key] = _size_or_switch(value, _ZERO_HANDED_ON[key], at, file)
        elif not (key in _ZERO_ONLY_OFF and _is_off(value)):
            neutral = {"zero_hpz_partition_size": 1, "compute_grad_norm": True}
            neutral |= {"reduce_scatter": True, "use_multi_rank_bucket_allreduce": True}
            if key not in neutral or value != neutral[key]:
                if not key.startswith("stage3_") or options is Zero3Options:
                    _refuse(file, at, value)
    return rest


def _read_overflow(section: Any, at: str, file: str, said: Said) -> None:
    value = section.get("check_grad_overflow") if isinstance(section, Mapping) else None
    if value not in ("auto", None):
        wanted = bool(_size_or_switch(value, bool, at, file))
        said["check_grad_overflow"] = (f"{at}: {value!r}", wanted)


def _read_offload(
    section: dict[str, Any], at: str, name: str, file: str, said: Said
) -> dict[str, Any]:
    rest = {}
    for key, value in section.items():
        if key == "device" and value in ("cpu", "none"):
            said[name] = (f"{at}.device: {value!r}", value == "cpu")
        elif key in _OFFLOAD_HANDED_ON and value not in ("auto", None):
            rest[key] = _size_or_switch(value, _OFFLOAD_HANDED_ON[key], f"{at}.{key}", file)
        elif not (value in ("auto", None, False) or (key == "ratio" and value == 1)):
            _refuse(file, f"{at}.{key}", value)
    return rest


def _section(value: Any, key: str, file: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"config: {file}: {key}: {value!r} is no mapping; write {{key: value}}")
    return dict(value)


def _is_off(value: Any) -> bool:
    return not value or (isinstance(value, Mapping) and not value.get("enabled", False))


def _size_or_switch(value: Any, kind: type[int], at: str, file: str) -> int | bool:
    """A number of elements or true or false; JSON writes sizes as 5e8, which is no integer."""
    if kind is int and type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not kind or value < 0 or (at.endswith("allgather_bucket_size") and value % 2):
        noun = "a number of elements" if kind is int else "true or false"
        raise ValueError(f"config: {file}: {at}: {value!r} is not {noun}; write one")
    return value


def _refuse(file: str, key: str, value: Any) -> None:
    shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
    raise ValueError(
        f"config: {file}: {key}: {shown} is nothing that these results could describe; "
        "remove it from the file"
    )
