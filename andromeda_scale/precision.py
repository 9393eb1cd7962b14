"""One precision policy for all strategies: which dtype holds what. No torch at import.

    policy  master   compute   reduction  optimizer state  gradients
    fp32    float32  float32   float32    float32          float32
    tf32    float32  float32   float32    float32          float32; products rounded to TF32
    bf16    float32  bfloat16  float32    float32          float32, ZeRO: bfloat16 (see below)
    fp16    float32  float16   float32    float32          float32, ZeRO: float16; loss scaled

`master` is what the optimizer updates, `compute` what the matrix products run in, `reduction`
what crosses the network when gradients are summed. How each strategy realises bf16:

    single, ddp  float32 parameters under torch.autocast(bfloat16); gradients, and with them the
                 all-reduce, are float32; the residual stream and the norms stay float32
    fsdp2        float32 sharded parameters; MixedPrecisionPolicy(param_dtype=bfloat16,
                 reduce_dtype=float32): gathered, and everything between, in bfloat16
    zero1..3     DeepSpeed's bf16: bfloat16 parameters and everything between, a separate float32
                 master, set to the seed's unrounded weights. Gradients are stored in bfloat16
                 and summed over ranks in float32 (`communication_data_type`); DeepSpeed alone
                 would sum in bfloat16: `reduce_dtype: bfloat16` of the strategy asks for that

fp32 is true float32: no TF32 in matrix products (`torch.get_float32_matmul_precision()` is
"highest"). The model computes its loss from float32 logits under every policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from andromeda_scale.machine import cpu_has_fp16

INITIAL_LOSS_SCALE = 2.0**12
GROWTH_INTERVAL = 2000

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


def refusal(precision: str, device: str) -> str | None:
    """Why no strategy can train in this precision on this kind of device; None if all can."""
    if device == "cpu" and precision == "tf32":
        return "train.precision: tf32 is a mode of CUDA GPUs, not of a CPU; use fp32"
    if device == "cpu" and precision == "fp16" and not cpu_has_fp16():
        return "train.precision: fp16 needs a CPU with float16 instructions or a GPU; use bf16"
    return None
