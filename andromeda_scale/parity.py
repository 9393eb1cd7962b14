"""Same model? The first losses of a case against its single-process reference. No torch.

The first PARITY_STEPS steps from the initial weights see the same global batches under every
strategy, so their mean losses differ by rounding alone. The first loss tests weights, data and
forward; the later ones the averaging of gradients, clipping and the update.

The tolerance lies between rounding and faults, as measured on 2 gloo ranks: all strategies, with
and without accumulation, Andromeda and Llama of 2 and 4 layers, relative to the reference:

    largest difference     fp32, learning rate 1e-3: 1.8e-7; 1e-2: 2.1e-6
                           bf16, learning rate 1e-3: 6.7e-4; 1e-2: 3.5e-3 (fsdp2 and zero, whose
                           residual stream is bfloat16; single and ddp stay below 4.4e-5; 2.4e-3)
    faults at step 5, fp32 gradients not reduced 3.6e-3 to 1.0e-2, a micro-batch lost 2.0e-3 to
                           1.2e-2, not clipped 3.5e-4 to 2.5e-3, no weight decay 3.5e-5 to 1.9e-4

fp32 finds all of these; bf16 the large ones. A constant factor on the gradient is found by
neither: Adam's update does not depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PARITY_STEPS = 5

# Relative tolerance of a mean loss.
_TOLERANCE = {"fp32": 2e-5, "bf16": 5e-3}


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
