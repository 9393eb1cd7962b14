"""The schema of one training step: `train` of a suite. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, model_validator

from andromeda_scale.suite.optimizers import OPTIMIZERS, OPTIONS, state_bytes
from andromeda_scale.suite.schema import MAX_BATCH, MAX_RANKS, Batch, Schema, shown, with_tuples

Rate = Annotated[float, Field(gt=0, le=1e6)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Mode = Literal["forward", "forward_backward", "train_step"]


_Name = Annotated[str, Field(json_schema_extra={"enum": [*sorted(OPTIMIZERS)]})]


class OptimizerSpec(Schema):
    """An optimizer of torch by its name in small letters, with those options it has.

    What is left out has torch's default.
    """

    name: _Name = "adamw"
    momentum: Fraction | None = None
    nesterov: bool | None = None
    betas: tuple[Fraction, Fraction] | None = None
    eps: Rate | None = None
    fused: StrictBool | None = None  # one kernel for all tensors, or foreach; null: fused if it can

    @property
    def is_fused(self) -> bool:
        """Whether its update is torch's fused kernel."""
        return OPTIMIZERS[self.name].fused if self.fused is None else self.fused

    @property
    def state_bytes(self) -> int:
        """Bytes of float32 state it keeps per parameter: 8 for Adam's two moments."""
        return state_bytes(self.name, self.momentum)

    @model_validator(mode="after")
    def _is_known(self) -> OptimizerSpec:
        if self.name not in OPTIMIZERS:
            raise ValueError(
                f"{self.name!r} is no optimizer; use one of {', '.join(sorted(OPTIMIZERS))}"
            )
        for option in OPTIONS:
            if getattr(self, option) is not None and option not in OPTIMIZERS[self.name].options:
                raise ValueError(f"{option}: {self.name} has no such option; remove it")
        if self.fused and not OPTIMIZERS[self.name].fused:
            raise ValueError(
                f"fused: torch has no such kernel of {self.name} for shards; remove it"
            )
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: needs a momentum above 0; set momentum: 0.9")
        return self


class Every(Schema):
    """`{every: 2}`: every second block is checkpointed, the first of them being block 0."""

    every: Annotated[int, Field(gt=0, le=10**5)]


class Segment(Schema):
    """`{segment: 4}`: four blocks in a row are recomputed as one, and save one input."""

    segment: Annotated[int, Field(gt=0, le=10**5)]


class Compiled(Schema):
    """`{mode: reduce-overhead, whole: true}`: torch.compile's mode, and whether model and loss are
    one graph. CUDA graphs (reduce-overhead, max-autotune) need one."""

    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = (
        "default"
    )
    whole: bool = False

    @property
    def cuda_graphs(self) -> bool:
        """Whether a step is replayed from graphs of CUDA."""
        return self.mode in ("reduce-overhead", "max-autotune")

    @model_validator(mode="after")
    def _graphs_are_whole(self) -> Compiled:
        if self.cuda_graphs and not self.whole:
            raise ValueError(
                f"mode: {self.mode} records CUDA graphs, one for each block and its weights; "
                "set whole: true, or use max-autotune-no-cudagraphs"
            )
        return self


def _compile(value: Any) -> Any:
    if isinstance(value, dict):
        value = Compiled.model_validate(value, strict=True)
    if isinstance(value, Compiled):
        return True if value == Compiled() else value
    if isinstance(value, bool):
        return value
    raise ValueError(f"{value!r} is no compilation; use true, false or {{mode: ..., whole: true}}")


def _optimizer(value: Any) -> Any:
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, dict | OptimizerSpec):
        raise ValueError(
            f"{shown(value)} is no optimizer; use one of {', '.join(sorted(OPTIMIZERS))}, or "
            "{name: adamw, OPTION: value}"
        )
    return with_tuples(value)


def _checkpointing(value: Any) -> Any:
    words = ("none", "block", "selective")
    if isinstance(value, Every | Segment) or value in words:
        return value
    if isinstance(value, dict) and set(value) == {"every"}:
        return Every.model_validate(value, strict=True)
    if isinstance(value, dict) and set(value) == {"segment"}:
        return Segment.model_validate(value, strict=True)
    raise ValueError(
        f"{value!r} is no checkpointing; use none, block, selective, {{every: K}} or {{segment: K}}"
    )


Compile = Annotated[bool | Compiled, BeforeValidator(_compile)]
Optimizer = Annotated[
    OptimizerSpec, BeforeValidator(_optimizer, json_schema_input_type=_Name | OptimizerSpec)
]
# What backward recomputes. none: nothing. block: every block from its input. {every: K}: each K-th
# block. {segment: K}: K blocks at once. selective: in every block all but the products with weights
# and the attention kernel, whose outputs are kept.
Checkpointing = Annotated[
    Literal["none", "block", "selective"] | Every | Segment, BeforeValidator(_checkpointing)
]


_LOGITS_AT_ONCE = 1 << 30  # bytes


def loss_chunks(train: Train, vocab_size: int) -> int:
    """Parts in which the loss of a micro-batch is computed; 1: its logits are whole."""
    tokens = train.micro_batch_size * train.seq_len
    if train.loss_chunks != "auto":
        return min(train.loss_chunks, tokens)
    return min(-(-4 * tokens * vocab_size // _LOGITS_AT_ONCE), tokens)


def recomputed(kind: str | Every | Segment, num_blocks: int) -> list[range]:
    """The blocks that backward runs again, in groups that start from one saved input each."""
    step, size = 1, 1
    if isinstance(kind, Every):
        step = kind.every
    elif isinstance(kind, Segment):
        step = size = kind.segment
    elif kind == "none":
        return []
    return [range(first, min(first + size, num_blocks)) for first in range(0, num_blocks, step)]


class Train(Schema):
    """One training step."""

    seq_len: Annotated[int, Field(gt=0, le=2**24)] = 128  # tokens per sequence
    micro_batch_size: Batch = 1  # sequences per rank and micro-batch
    # Micro-batches per step (strong scaling may set it); a reference does the work of all ranks.
    grad_accum: Annotated[int, Field(gt=0, le=MAX_BATCH * MAX_RANKS)] = 1
    mode: Mode = "train_step"
    precision: Precision = "fp32"  # the policies of precision.py
    optimizer: Optimizer = OptimizerSpec()
    learning_rate: Rate = 1e-3
    weight_decay: Annotated[float, Field(ge=0, le=1e6)] = 0.1
    grad_clip: Rate | None = 1.0  # max norm of the global gradient; null = no clipping
    # Streams of a GPU on which parts of a fused update run. One: under DeepSpeed, accelerate, fp16.
    update_streams: Annotated[int, Field(ge=1, le=2)] = 2
    compile: Compile = False  # torch.compile; true: block by block, in its default mode
    activation_checkpointing: Checkpointing = "none"
    # Parts over a micro-batch's tokens in which the head's logits and their loss are computed, so
    # that they are never whole in memory; auto: as few as keep a part's below 1 GiB in float32.
    loss_chunks: Literal["auto"] | Annotated[int, Field(gt=0, le=10**5)] = "auto"
    # null: the model's own; flex needs compile
    attention: Literal["naive", "sdpa_causal", "sdpa_bias", "flex"] | None = None
    # What torch's fused attention runs on: one of its backends alone, or the launch fails; auto:
    # torch's order, and from compute capability 9.0 on cuDNN's before the others.
    attention_backend: Literal["auto", "flash", "cudnn", "efficient", "math"] = "auto"

    @property
    def compiling(self) -> Compiled | None:
        """How; None: not at all."""
        if isinstance(self.compile, Compiled):
            return self.compile
        return Compiled() if self.compile else None

    @model_validator(mode="after")
    def _whole_graphs_are_plain(self) -> Train:
        how = self.compiling
        if how and how.whole and self.activation_checkpointing != "none":
            raise ValueError(
                "compile: whole: true leaves no blocks to checkpoint; use compile: true, or "
                "activation_checkpointing: none"
            )
        if how and how.cuda_graphs and self.grad_accum > 1 and self.mode != "forward":
            raise ValueError(
                f"compile: mode: {how.mode} writes each micro-batch's gradients to one place; use "
                "grad_accum: 1, or another mode"
            )
        return self

    @model_validator(mode="after")
    def _backend_has_a_kernel(self) -> Train:
        if self.attention_backend != "auto" and self.attention in ("naive", "flex"):
            raise ValueError(
                f"attention_backend: {self.attention_backend} is of torch's fused attention, not "
                f"of {self.attention}; use auto, or attention: sdpa_causal"
            )
        return self

    @model_validator(mode="after")
    def _flex_is_compiled(self) -> Train:
        if self.attention == "flex" and not self.compile:
            raise ValueError(
                "attention: flex computes every score in Python unless it is compiled; "
                "set train.compile: true"
            )
        return self
