"""The schema of a suite and of a case (pydantic, unknown key = error). No torch.

A suite is what the user writes: a base configuration and axes. A case is one fully resolved
configuration at one world. Reading files, overrides and error texts live in `suite_file.py`.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, StrictBool, field_validator, model_validator

from andromeda_scale.suite import faults as planted
from andromeda_scale.suite.faults import Fault
from andromeda_scale.suite.schema import (
    MAX_BATCH,
    MAX_STEPS,
    Batch,
    Device,
    Schema,
    Seconds,
    Share,
    Steps,
    shown,
)
from andromeda_scale.suite.secret import is_secret
from andromeda_scale.suite.slurm import Slurm
from andromeda_scale.suite.training import Train
from andromeda_scale.suite.world import World, WorldSpec

# The launcher tells these to each rank; another value would break the group or change the device.
_LAUNCHERS = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "DS_ACCELERATOR",
    "CUDA_VISIBLE_DEVICES",
)


class StrategySpec(Schema):
    """A strategy by name with its options, which are checked by the strategy's own `Options`."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


def _strategy(value: Any) -> Any:
    if isinstance(value, str):
        return StrategySpec(name=value)
    if isinstance(value, dict) and "name" in value and "options" not in value:
        rest = {k: v for k, v in value.items() if k != "name"}
        return StrategySpec(name=value["name"], options=rest)
    if not isinstance(value, dict | StrategySpec):
        raise ValueError(
            f"{shown(value)} is no strategy; use a name such as ddp, or "
            "{name: ddp, OPTION: value}"
        )
    return value


Strategy = Annotated[StrategySpec, BeforeValidator(_strategy)]


def _one_is_a_list(value: Any) -> Any:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


Files = Annotated[
    tuple[str, ...],
    BeforeValidator(_one_is_a_list, json_schema_input_type=str | tuple[str, ...]),
]


class Data(Schema):
    """Where tokens come from: the standard library's sources, seeded random ids, or files."""

    source: Literal["stdlib", "random", "files"] = "stdlib"
    # Text (read as bytes), or token shards: .npy, .bin (uint16). One path need be no list.
    files: Files = ()
    tokenizer: str | None = None  # a tokenizer.json: text is cut into its tokens, not into bytes
    prefetch: Annotated[int, Field(ge=0, le=10**4)] = 0  # micro-batches that a thread reads ahead

    @model_validator(mode="after")
    def _files_are_the_source(self) -> Data:
        if self.source == "files" and not self.files:
            raise ValueError("files: is empty; list at least one path")
        if self.source != "files" and self.files:
            raise ValueError(f"source: {self.source} reads no files; use source: files")
        if self.source == "random" and self.tokenizer is not None:
            raise ValueError("tokenizer: random ids need none; remove it, or use source: files")
        return self


class StrongScaling(Schema):
    """Fixed work per step: the global batch stays, the share of a rank shrinks."""

    global_batch_size: Batch  # sequences per step over all ranks
    shrink: Literal["accumulation", "micro_batch"] = "accumulation"


class Strong(Schema):
    """`scaling: {strong: {global_batch_size: 64}}`."""

    strong: StrongScaling


def _scaling(value: Any) -> Any:
    if value != "weak" and not isinstance(value, dict | Strong):
        raise ValueError(
            f"{value!r} is not a regime; use weak, or {{strong: {{global_batch_size: 64}}}}"
        )
    return value


Scaling = Annotated[Literal["weak"] | Strong, BeforeValidator(_scaling)]


_PARITY = Literal["full", "shallow", "cross", "off"]
# YAML reads a bare `off` as false.
Parity = Annotated[
    _PARITY,
    BeforeValidator(
        lambda value: "off" if value is False else value,
        json_schema_input_type=_PARITY | Literal[False],
    ),
]


class Warmup(Schema):
    """Warm-up ends by evidence between these bounds; equal bounds fix it (0 and 0: none)."""

    min_steps: Steps = 20
    max_steps: Steps = 100

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Warmup:
        if self.min_steps > self.max_steps:
            raise ValueError(
                f"min_steps: {self.min_steps} is above max_steps {self.max_steps}; "
                "raise max_steps or lower min_steps"
            )
        return self


class Measure(Schema):
    """How long each phase lasts, and how many launches make a result."""

    warmup: Warmup = Warmup()
    steps: Annotated[int, Field(gt=0, le=MAX_STEPS)] = 50
    # Independent launches: the unit of replication. With 5 a difference of 2 % is found in 19 of 20
    # comparisons (docs/statistics.md).
    repeats: Annotated[int, Field(gt=0, le=10**4)] = 5
    # `1%`: more launches until the 95 % interval of tokens/s is that narrow, or max_repeats made
    precision: Share | None = None
    max_repeats: Annotated[int, Field(gt=0, le=10**4)] = 30
    profile_steps: Steps = 20  # separate steps under the profiler; 0: none
    # Whether Python may collect garbage within timed steps, as it does in training, or between
    # phases alone. A pass takes its time on one rank, and all wait for it.
    collect_garbage: StrictBool = False

    @model_validator(mode="after")
    def _precision_can_be_judged(self) -> Measure:
        if self.precision is None:
            return self
        if self.repeats < 3:
            raise ValueError(
                f"repeats: {self.repeats} launches have no interval to judge precision by; "
                "use 3 or more"
            )
        if self.max_repeats < self.repeats:
            raise ValueError(
                f"max_repeats: {self.max_repeats} is below repeats {self.repeats}; raise it"
            )
        return self


class Limits(Schema):
    """What ends a repeat that does not end by itself."""

    timeout_s: Seconds = 600.0  # one repeat, from its start to its last record
    heartbeat_s: Seconds = 120.0  # longest silence of a rank after its first step
    # Capacity per rank used for pruning; null: ask
    memory_gib: Annotated[float, Field(gt=0, le=1e7)] | None = None


class Settings(Schema):
    """Keys that a suite and a case share."""

    data: Data = Data()
    train: Train = Train()
    driver: Literal["native", "accelerate"] = "native"
    measure: Measure = Measure()
    collect: tuple[str, ...] = ("communication", "memory", "system")
    parity: Parity = "full"
    limits: Limits = Limits()
    device: Literal["auto", Device] = "auto"
    fallback: Literal["none", "cpu"] = "none"  # what a case that lacks GPUs does
    # CPU; null: cores / largest world
    threads_per_rank: Annotated[int, Field(gt=0, le=10**4)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    faults: tuple[Fault, ...] = ()  # planted truths

    @model_validator(mode="after")
    def _faults_can_be_planted(self) -> Settings:
        steps = self.measure.warmup.min_steps + self.measure.steps + self.measure.profile_steps
        if wrong := planted.conflict(self.faults, self.parity, steps):
            raise ValueError(wrong)
        return self


# auto: each case finds its own; auto_worlds: the worlds of one configuration have the smallest.
Auto = Literal["auto", "auto_worlds"]


def _size(value: Any) -> Any:
    if isinstance(value, str) and value not in get_args(Auto):
        raise ValueError(
            f"{value!r} is no micro batch; use a number of sequences, auto, or auto_worlds"
        )
    return value


SizeOrAuto = Annotated[Batch | Auto, BeforeValidator(_size, json_schema_input_type=Batch | Auto)]


class SuiteTrain(Train):
    """`train` of a suite, which may leave the micro batch to be found."""

    micro_batch_size: SizeOrAuto = 1  # type: ignore[assignment]  # only a case must have a number


class Suite(Settings):
    """One YAML file: a question, a base configuration, axes to sweep."""

    question: str = Field(min_length=1)
    train: SuiteTrain = SuiteTrain()
    model: str | dict[str, Any]  # a file in configs/models or a path to one, or a mapping
    strategy: Strategy = StrategySpec(name="ddp")
    world: tuple[WorldSpec, ...] = Field(min_length=1)
    scaling: Scaling = "weak"
    axes: dict[str, tuple[Any, ...]] = Field(default_factory=dict)  # dotted key -> values
    env: dict[str, str | tuple[str, ...]] = Field(default_factory=dict)  # a list is an axis
    slurm: Slurm = Slurm()  # what `submit` asks for; changes no case

    @field_validator("world", mode="before")
    @classmethod
    def _one_world_is_a_list(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list | tuple) else (value,)

    @field_validator("axes", "env")
    @classmethod
    def _no_empty_axis(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key, values in value.items():
            if not values and not isinstance(values, str):
                raise ValueError(f"{key}: has no values; list at least one, or remove the axis")
        return value

    @field_validator("env")
    @classmethod
    def _names_of_variables(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not name.isidentifier():
                raise ValueError(f"{name!r} is no name of a variable; use letters, digits and _")
            values = value[name]
            _refuse_variable(name, (values,) if isinstance(values, str) else values)
        return value

    @field_validator("axes")
    @classmethod
    def _names_of_variables_in_axes(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key, values in value.items():
            if key.startswith("env."):
                _refuse_variable(key, tuple(map(str, values)))
            for mapping in values if key == "env" else ():
                for name, one in mapping.items() if isinstance(mapping, dict) else ():
                    _refuse_variable(f"env.{name}", (str(one),))
        return value

    @model_validator(mode="after")
    def _accumulation_is_bounded(self) -> Suite:
        if self.train.grad_accum > MAX_BATCH:
            raise ValueError(
                f"train.grad_accum: {self.train.grad_accum} is above the limit {MAX_BATCH}; "
                f"use at most {MAX_BATCH}"
            )
        return self


_LONGEST_VALUE = 32_000  # in bytes at most 4 times that: Linux takes 128 KiB, name and all


def _refuse_variable(key: str, values: tuple[str, ...]) -> None:
    """Suites are stored with results, in clear text: nothing secret may stand in one.

    `key` is the variable's name, after `env.` where that stands in no path of the error yet.
    """
    name = key.removeprefix("env.")
    if any(is_secret(name, value) for value in values):
        raise ValueError(
            f"{key}: looks like a secret; export it in the shell instead: suites are stored with "
            "results"
        )
    if any("\0" in value or len(value) >= _LONGEST_VALUE for value in values):
        raise ValueError(
            f"{key}: is no value that a process can be given; use under {_LONGEST_VALUE} "
            "characters, without a null character"
        )
    if name in _LAUNCHERS:
        remedy = "set device" if name == "DS_ACCELERATOR" else "set world"
        if name == "CUDA_VISIBLE_DEVICES":
            remedy = "export it in the shell instead"
        raise ValueError(f"{key}: is the launcher's to set; {remedy}")


# Keys that do not change what a repeat does: they never rename a case.
NOT_IN_ID: Any = {
    "model_name": True,
    "limits": True,
    "measure": {"repeats", "precision", "max_repeats"},
}


class Case(Settings):
    """One fully resolved configuration at one world.

    `train.micro_batch_size` and `train.grad_accum` are what a rank really does, also under
    strong scaling.
    """

    model_name: str
    model: dict[str, Any]  # {"family": ..., shape...}, defaults left out, already validated
    strategy: StrategySpec
    world: World
    regime: Literal["weak", "strong"] = "weak"
    env: dict[str, str] = Field(default_factory=dict)
    # How the micro batch is to be found; until it is, it is the closed forms' guess.
    auto: Auto | None = None

    @property
    def global_batch_size(self) -> int:
        """Sequences per step over all ranks."""
        size = self.train.micro_batch_size
        uneven = planted.uneven(self.faults, size)
        return (sum(uneven.values()) + (self.world.size - len(uneven)) * size) * (
            self.train.grad_accum
        )

    @property
    def case_id(self) -> str:
        """Readable slug and a hash of the configuration with defaults left out.

        A new key with a default therefore renames no old case.
        """
        resolved = self.model_dump(exclude_defaults=True, exclude=NOT_IN_ID)
        if self.auto is not None:  # a guess is the machine's, and names no case
            resolved.get("train", {}).pop("micro_batch_size", None)
            if self.limits.memory_gib is not None:  # what is found is the largest within it
                resolved["limits"] = {"memory_gib": self.limits.memory_gib}
            if self.regime == "strong":
                share = self.train.micro_batch_size * self.train.grad_accum
                resolved.setdefault("train", {})["grad_accum"] = share
        # `measure` with nothing but repeats set leaves an empty mapping: the same as no mapping.
        resolved = {key: value for key, value in resolved.items() if value != {}}
        text = json.dumps(resolved, sort_keys=True, default=list)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        slug = f"{self.model_name}_{self.strategy.name}_w{self.world}_{self.train.precision}"
        return f"{''.join(c if c.isalnum() or c in '._-' else '-' for c in slug)}-{digest}"
