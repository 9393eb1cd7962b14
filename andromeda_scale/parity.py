"""Same model? The first losses of a case against its single-process reference. No torch.

The first PARITY_STEPS steps from the initial weights see the same global batches under every
strategy, so their mean losses differ by rounding alone. The first loss tests weights, data and
forward; the later ones the averaging of gradients and the update.

The tolerance lies between rounding and faults. Largest relative difference to the reference:

    all strategies, 2 gloo ranks, a small Andromeda     fp32 8.6e-8   bf16 2.9e-5
    ddp, fsdp2, zero2, one H200, 0.97 B parameters                    bf16 1.7e-4
    gradients not reduced, 2 gloo ranks, at step 5      fp32 1.5e-3   bf16 1.5e-3

A constant factor on the gradient is not found: Adam's update does not depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PARITY_STEPS = 5

# The first Adam step moves every weight by the learning rate, along the sign of its gradient. Where
# rounding decides a sign, the two runs part; at a large rate they part chaotically, however right
# both are. On a GPU, 0.97 B parameters in bf16, the largest difference between strategies over the
# first 5 losses was 2 % at a rate of 1e-3, 0.15 % at 1e-5, 0.02 % at 1e-6, where the loss itself
# fell by 29 %. So these steps have a rate of their own: small, and still moving the loss, which
# falls by about rate x |gradient|_1, that is with the square root of the number of parameters.
_MOVE = 0.03

# Relative tolerance of a mean loss.
_TOLERANCE = {"fp32": 2e-5, "bf16": 1e-3}


@dataclass(frozen=True)
class Mismatch:
    """The first step whose loss is not the reference's, or is not finite."""

    step: int
    loss: float
    reference: float | None
    tolerance: float

    def __str__(self) -> str:
        if self.reference is None:
            return f"loss {self.loss} at step {self.step} is not finite"
        return (
            f"loss {self.loss:.7g} at step {self.step} is not the reference's "
            f"{self.reference:.7g} within {self.tolerance:g} (relative)"
        )


def learning_rate(num_parameters: int) -> float:
    """The learning rate of the first PARITY_STEPS steps; afterwards the suite's own counts."""
    return _MOVE / math.sqrt(num_parameters)


def tolerance(precision: str) -> float:
    """Largest relative difference of a mean loss that rounding explains."""
    return _TOLERANCE[precision]


def mean_losses(per_rank: Sequence[dict[str, Any]]) -> tuple[float, ...]:
    """Loss per token of the global batch at each step, from every rank's `losses` values."""
    return tuple(
        sum(sums) / sum(tokens)
        for sums, tokens in zip(
            zip(*(r["loss_sum"] for r in per_rank), strict=True),
            zip(*(r["tokens"] for r in per_rank), strict=True),
            strict=True,
        )
    )


def reference_losses(lines: Sequence[dict[str, Any]]) -> tuple[float, ...]:
    """Mean losses of the first steps from a reference's record lines.

    Raises ValueError when the record holds fewer than PARITY_STEPS of them.
    """
    found: list[float] = []
    for line in lines:
        if line.get("kind") == "phase" and "losses" in line["values"]:
            found.extend(mean_losses([line["values"]["losses"]]))
    if len(found) < PARITY_STEPS:
        raise ValueError(f"the reference recorded {len(found)} losses, not {PARITY_STEPS}")
    return tuple(found[:PARITY_STEPS])


def largest_difference(losses: Sequence[float], reference: Sequence[float]) -> float | None:
    """The largest relative difference of the losses that both have; None without any."""
    pairs = list(zip(losses, reference, strict=False))
    return max((abs(a - b) / abs(b) for a, b in pairs), default=None)


def compare(
    losses: Sequence[float], reference: Sequence[float] | None, precision: str
) -> Mismatch | None:
    """The first mismatch; without a reference only NaN and inf are."""
    limit = tolerance(precision)
    for step, loss in enumerate(losses):
        if not math.isfinite(loss):
            return Mismatch(step, loss, None, limit)
        if reference is None or step >= len(reference):
            continue
        expected = reference[step]
        if not abs(loss - expected) <= limit * abs(expected):
            return Mismatch(step, loss, expected, limit)
    return None
