"""One precision policy for all strategies: which dtype holds what. No torch at import.

    policy  master   compute   reduction  optimizer state  gradients
    fp32    float32  float32   float32    float32          float32
    tf32    float32  float32   float32    float32          float32; products rounded to TF32
    bf16    float32  bfloat16  float32    float32          float32, ZeRO: bfloat16 (see below)
    fp16    float32  float16   float32    float32          float32, ZeRO: float16; loss scaled

`master` is what the optimizer updates, `compute` what the matrix products run in, `reduction`
what crosses the network when gradients are summed. How each strategy realises bf16 and fp16, both
called low here:

    single, ddp   float32 parameters under torch.autocast(low); gradients, and with them the
                  all-reduce, are float32; the residual stream and the norms stay float32.
                  ddp's `compression` casts each bucket on its way: reduction low, the rest as is
    fsdp2, hsdp   float32 sharded parameters; MixedPrecisionPolicy(param_dtype=low,
                  reduce_dtype=float32): gathered, and everything between, in low; gradient shards
                  and their reduce-scatter float32, hsdp's all-reduce of the shards too; all three
                  low under `reduce_dtype` but the shards.
                  `cpu_offload` moves shards, gradients and optimizer, and changes no dtype
    fsdp1         the same with MixedPrecision: float32 flat parameters, a cast shard gathered,
                  gradients cast up before they are reduce-scattered; micro-batches are summed
                  low, where every other strategy of torch sums them in float32
    zero1..3      DeepSpeed's bf16 or fp16: low parameters and everything between, a separate
                  float32 master, set to the seed's unrounded weights. Gradients are stored low and
                  summed over ranks in float32 (`communication_data_type`); DeepSpeed alone would
                  sum low: `reduce_dtype` of the strategy asks for that

Optimizer state is float32 everywhere, and the model computes its loss from float32 logits.

fp32 is true float32: no TF32 in matrix products (`torch.get_float32_matmul_precision()` is
"highest", under bf16 and fp16 too). tf32 is fp32 with that setting at "high": every float32 matrix
product of a CUDA GPU from compute capability 8.0 on rounds its inputs to 10 bits of mantissa.

Under fp16 small gradients would become zero, so the loss is multiplied by a scale: gradients are
multiples of it from backward to the update, which divides it out, skips the step where one of them
overflowed on any rank, and halves the scale. All strategies, DeepSpeed's too, start from
INITIAL_LOSS_SCALE, halve at the first overflow and double after GROWTH_INTERVAL good steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from andromeda_scale.hardware.machine import cpu_has_fp16

# Libraries start from 65536 and search downwards by skipping steps. A strategy whose gradients
# round a little lower would skip one step less than another, and from then on train on other
# weights: neither their losses nor their times could be compared. 4096 is low enough to skip none.
INITIAL_LOSS_SCALE = 2.0**12
GROWTH_INTERVAL = 2000  # good steps until the scale doubles: longer than what is compared

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Policy:
    """dtype names of what every strategy must keep alike."""

    master: str
    compute: str
    reduction: str
    optimizer_state: str
    matmul: Literal["highest", "high"] = "highest"  # torch.set_float32_matmul_precision

    @property
    def mixed(self) -> bool:
        """Whether products run in another dtype than the master's."""
        return self.compute != self.master


POLICIES = {
    "fp32": Policy("float32", "float32", "float32", "float32"),
    "tf32": Policy("float32", "float32", "float32", "float32", matmul="high"),
    "bf16": Policy("float32", "bfloat16", "float32", "float32"),
    "fp16": Policy("float32", "float16", "float32", "float32"),
}


def element_bytes(dtype: str) -> int:
    """Bytes of one element of a dtype of the policies."""
    return _BYTES[dtype]


def reduction(asked: str | None, precision: str) -> str:
    """The dtype in which gradients cross the network: a strategy's option, or the policy's."""
    return asked or POLICIES[precision].reduction


def refused_reduction(asked: str | None, precision: str) -> str | None:
    """Why gradients cannot cross the network in the dtype asked for; None if they can."""
    compute = POLICIES[precision].compute
    if asked in (None, "float32", compute):
        return None
    return (
        f"strategy.reduce_dtype: {asked} under precision {precision}; use "
        f"{' or '.join(dict.fromkeys(('float32', compute)))}"
    )


def refusal(precision: str, device: str) -> str | None:
    """Why no strategy can train in this precision on this kind of device; None if all can."""
    if device == "cpu" and precision == "tf32":
        return "train.precision: tf32 is a mode of CUDA GPUs, not of a CPU; use fp32"
    if device == "cpu" and precision == "fp16" and not cpu_has_fp16():
        return "train.precision: fp16 needs a CPU with float16 instructions or a GPU; use bf16"
    return None
