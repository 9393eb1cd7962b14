"""What each fact of a training step does to a comparison: the table of rules. No torch.

`unfair`: it changes the arithmetic or the work, so that rows that differ in it answer different
questions. `differs`: a lever, or a strategy's own way, that keeps the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

Flag = Literal["unfair", "differs"]


@dataclass(frozen=True)
class Rule:
    """What a fact does. A required fact that was not read back is unknown, never equal."""

    flag: Flag
    effect: str
    required: bool = False


_UNKNOWN = Rule("unfair", "no rule says what it does to a comparison")

# By the fact's whole name, or by a prefix that ends with a dot.
RULES: dict[str, Rule] = {
    "dtypes.master": Rule(
        "unfair",
        "what the optimizer updates: in 16 bits updates are lost to rounding, and 4 bytes per "
        "parameter and their traffic are saved",
        required=True,
    ),
    "dtypes.compute": Rule(
        "unfair",
        "what matrix products run in: 16 bits are several times as fast as float32, with 8 "
        "(bfloat16) or 11 (float16) bits of mantissa for 24",
        required=True,
    ),
    "dtypes.reduction": Rule(
        "unfair",
        "what crosses the network when gradients are summed: 16 bits halve the traffic, and sum "
        "in 8 (bfloat16) or 11 (float16) bits of mantissa",
        required=True,
    ),
    "dtypes.optimizer_state": Rule(
        "unfair",
        "moments in 16 bits save 4 bytes per parameter and lose small changes to rounding",
        required=True,
    ),
    "dtypes.gradients": Rule(
        "differs",
        "how gradients are stored: 16 bits save 2 bytes per parameter and round each once, before "
        "ranks are summed in the reduction's dtype",
        required=True,
    ),
    "dtypes.accumulation": Rule(
        "unfair",
        "what gradients of several micro-batches are summed in: 16 bits lose small ones, and save "
        "2 bytes per parameter and their traffic (DeepSpeed: strategy.grad_accum_dtype)",
    ),
    "dtypes.parameters": Rule(
        "differs",
        "what forward reads: 16 bits beside a float32 master, or float32 cast under autocast "
        "again and again; the products are the same, memory is not",
        required=True,
    ),
    "matmul_precision": Rule(
        "unfair", "high: float32 products are rounded to TF32, 11 bits of mantissa for 24", True
    ),
    "optimizer.kernel": Rule(
        "differs", "fused: one kernel for all parameters; a faster update, the same result"
    ),
    "optimizer.": Rule("unfair", "another update rule: other work and memory, another model"),
    "optimizer.class": Rule(
        "unfair", "another update rule: other work and memory, another model", required=True
    ),
    "gradient_clipping": Rule(
        "unfair",
        "clipping scales the update, and costs a norm over all ranks in every step",
        required=True,
    ),
    "loss_scale.": Rule(
        "differs", "a power of two on loss and gradients of fp16, divided out before the update"
    ),
    "loss_scale.skipped_steps": Rule(
        "unfair", "steps whose float16 gradients overflowed updated nothing: less work"
    ),
    "parity": Rule(
        "unfair",
        "unless it is ok, nothing shows that the first losses are those of one process on the same "
        "batches: it may be another model",
    ),
    "mode": Rule("unfair", "another part of a step: no backward, or no update", required=True),
    "seq_len": Rule("unfair", "other work: tokens and attention per sequence", required=True),
    "global_batch_size": Rule("unfair", "other work: sequences per step", required=True),
    "micro_batch_size": Rule("differs", "the same step in other pieces: memory against overhead"),
    "grad_accum": Rule("differs", "the same step in other pieces: memory against overhead"),
    "data.fingerprint": Rule("unfair", "other tokens: losses cannot be compared", required=True),
    "threads": Rule("unfair", "other compute per rank", required=True),
    "device_name": Rule("unfair", "other hardware", required=True),
    "hardware.": Rule("unfair", "other hardware"),
    "software.": Rule("unfair", "other code"),
    "variables.": Rule("unfair", "a variable that changes how libraries compute or communicate"),
    "checkpointing.": Rule(
        "differs", "activations computed again in backward: less memory, up to a third more FLOPs"
    ),
    "loss.": Rule(
        "differs", "logits and loss computed in parts: less memory, rounded elsewhere, no more work"
    ),
    "compile.": Rule("differs", "blocks compiled by torch: fused kernels, the same arithmetic"),
    "attention.": Rule("differs", "another kernel of the same function"),
    "buckets.": Rule("differs", "how gradients are cut for the network: overlap and memory"),
    "engine.grad_accum_dtype": Rule(
        "differs", "what gradients are kept in until the update (several: dtypes.accumulation)"
    ),
    "engine.": Rule("differs", "how DeepSpeed cuts and keeps what it sends"),
    "mesh.": Rule("differs", "which ranks share a shard: traffic within and between groups"),
    "units.": Rule("differs", "how parameters are cut for the network: overlap and memory"),
    "update.": Rule("differs", "when weights are updated and norms taken, not what they are"),
    # Settings of a suite that no fact shows.
    "train.learning_rate": Rule("unfair", "other updates: another model after the first step"),
    "train.compile": Rule("differs", "how torch compiles: fused kernels, the same arithmetic"),
    "train.loss_chunks": Rule("differs", "logits and loss in parts: less memory, the same work"),
    "train.attention_backend": Rule("differs", "another kernel of the same function"),
    "train.update_streams": Rule("differs", "the update in two halves side by side: the same bits"),
    "train.weight_decay": Rule("unfair", "other updates: another model after the first step"),
    "seed": Rule("unfair", "other weights, and other tokens"),
    "data.prefetch": Rule("differs", "how far batches are read ahead: waiting for data"),
    "measure.": Rule("differs", "how much is warmed up and measured, not what is computed"),
    "collect": Rule("differs", "what is measured beside times, not what is computed"),
    "limits.": Rule("differs", "when a launch is ended, not what it computes"),
    "env.": Rule("unfair", "a variable: it may change how libraries compute or communicate"),
    "offload.": Rule("differs", "states on the host: less device memory, a slower update"),
}
# These say which strategy or driver a row is, which its name says.
IDENTITY = ("wrapper", "stage", "driver.", "engine.optimizer")


def is_identity(fact: str) -> bool:
    """Whether it says no more than the name of its row."""
    return f"{fact}.".startswith(tuple(f"{name.rstrip('.')}." for name in IDENTITY))


@cache
def rule_of(fact: str) -> Rule:
    """The rule of a fact: by its name, else by its longest prefix; without one it is unfair."""
    if fact in RULES:
        return RULES[fact]
    prefixes = [name for name in RULES if name.endswith(".") and f"{fact}.".startswith(name)]
    return RULES[max(prefixes, key=len)] if prefixes else _UNKNOWN


def required() -> tuple[str, ...]:
    """Facts that every row must have."""
    return tuple(name for name, rule in RULES.items() if rule.required)
