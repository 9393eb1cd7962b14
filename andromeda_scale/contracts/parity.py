"""Same model? The first losses and gradient norms of a case against a reference's. No torch.

The first PARITY_STEPS steps from the initial weights see the same global batches under every
strategy, so their mean losses and gradient norms differ by rounding alone. The first loss tests
weights, data and forward, the first norm backward and the averaging over ranks and micro-batches,
the later ones the update.

The tolerance lies between rounding and faults. Largest relative differences of right strategies
to the reference (ddp, fsdp1, fsdp2, hsdp, zero1, zero2, zero3 on two gloo ranks; Llama and
Andromeda of 0.03 to 13 M parameters, up to 16 layers; up to three seeds), and the smallest of
planted faults (ddp; two models, two seeds, fp32 and bf16 alike), at step 0 and over all steps:

                                              step 0           all steps
                                            loss    norm     loss    norm
    rounding   fp32                        4.3e-8  2.9e-7   8.9e-8  3.2e-7
               fp16                        9.8e-6  7.0e-5   4.7e-5  1.4e-4
               bf16                        1.1e-4  1.3e-3   5.3e-4  3.7e-3
    tolerance  fp32                          5e-6    5e-5     2e-5    1e-4
               fp16, tf32                    1e-4    5e-4     3e-4    2e-3
               bf16                          5e-4    3e-3   1.5e-3    1e-2
    faults     gradients not reduced            0    0.11   1.9e-3    0.11
               gradients twice as large         0     1.0        0     1.0
               gradients 1 % too large          0  1.0e-2        0  1.0e-2
               ranks read one rank's batch 1.4e-4  6.7e-3   4.0e-3  9.0e-2
               one rank's weights: a seed  2.6e-3    0.15   6.3e-3    0.22
               mask one token off          9.1e-5  6.4e-3   9.2e-4  1.3e-2
               one rank never updates           0       0   2.3e-2  3.3e-2
               learning rate 10 % off           0       0   4.2e-3  1.8e-2
               one rank's q_proj reversed  1.5e-5  5.6e-4   3.1e-5  8.1e-4

The last is found in fp32 and not in bf16, where it is smaller than rounding. The largest of bf16
are zero3's on a model with biases: DeepSpeed's stage 3 rounds a product before it adds the bias.
TF32 is a mode of GPUs; its products have fp16's mantissa. One H200, 0.97 B parameters, bf16: losses
of ddp, fsdp2 and zero2 were within 1.7e-4.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from andromeda_scale.suite.schema import Schema

PARITY_STEPS = 5

# The first Adam step moves every weight by the learning rate, along the sign of its gradient. Where
# rounding decides a sign, the two runs part; at a large rate they part chaotically, however right
# both are. On a GPU, 0.97 B parameters in bf16, the largest difference between strategies over the
# first 5 losses was 2 % at a rate of 1e-3, 0.15 % at 1e-5, 0.02 % at 1e-6, where the loss itself
# fell by 29 %. So these steps have a rate of their own: small, and still moving the loss, which
# falls by about rate x |gradient|_1, that is with the square root of the number of parameters.
_MOVE = 0.03


@dataclass(frozen=True)
class Tolerance:
    """Largest relative differences that rounding explains."""

    loss: float
    norm: float


# By precision, the finest first: at the first step, where the weights are the same, and after
# updates, which magnify rounding.
_TOLERANCES = {
    "fp32": (Tolerance(5e-6, 5e-5), Tolerance(2e-5, 1e-4)),
    "tf32": (Tolerance(1e-4, 5e-4), Tolerance(3e-4, 2e-3)),
    "fp16": (Tolerance(1e-4, 5e-4), Tolerance(3e-4, 2e-3)),
    "bf16": (Tolerance(5e-4, 3e-3), Tolerance(1.5e-3, 1e-2)),
}
_PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


class First(Schema):
    """Mean losses of the global batch and gradient norms of the first steps of one launch.

    There are fewer norms than losses where warm-up was shorter than PARITY_STEPS, and none in mode
    forward. A norm is None where it was not finite: under fp16 a step that the scaler skipped.
    """

    losses: tuple[float, ...]
    norms: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Seen:
    """The same of a launch under way, whose losses may be many and not finite."""

    losses: Sequence[float]
    norms: Sequence[float | None] = ()


@dataclass(frozen=True)
class Mismatch:
    """The first step whose loss or gradient norm is not the reference's, or is not finite."""

    what: str  # loss or gradient norm
    step: int
    value: float | None  # None: a norm that is not finite
    reference: float | None
    tolerance: float
    remark: str = ""
    whose: str = "the reference's"

    def __str__(self) -> str:
        if self.reference is None or self.value is None:
            value = "inf or nan" if self.value is None else f"{self.value:.7g}"
            fault = "" if self.value is not None and math.isfinite(self.value) else " is not finite"
            text = f"{self.what} {value} at step {self.step}{fault}"
        else:
            text = (
                f"{self.what} {self.value:.7g} at step {self.step} is not {self.whose} "
                f"{self.reference:.7g} within {self.tolerance:g} (relative)"
            )
        return f"{text}: {self.remark}" if self.remark else text


# Other optimizers go other ways at that rate. These factors let their loss fall like Adam's; the
# update of `_LINEAR` ones (radam: in its first 5 steps) is a multiple of the gradient, not of its
# signs, and needs no root of the number of parameters.
_FACTORS = {"rmsprop": 0.2, "adadelta": 300.0}
_LINEAR = {"sgd": _MOVE / 3, "radam": _MOVE / 3}


def learning_rate(num_parameters: int, optimizer: str = "adamw") -> float:
    """The learning rate of the first PARITY_STEPS steps; afterwards the suite's own counts."""
    rate = _FACTORS.get(optimizer, 1.0) * _MOVE / math.sqrt(num_parameters)
    return _LINEAR.get(optimizer, rate)


def rounding(precision: str, dtypes: Iterable[str | None] = ()) -> str:
    """The precision by which to judge: the coarsest of the policy's and of the dtypes used.

    A strategy may be asked to reduce float32 gradients in bfloat16; that rounds as bf16 does.
    """
    return coarsest(precision, *(_PRECISIONS[name] for name in dtypes if name in _PRECISIONS))


def coarsest(*precisions: str) -> str:
    """The precision that rounds most; a word that is none counts for nothing."""
    return next(name for name in reversed(_TOLERANCES) if name in precisions)


def tolerance(precision: str, step: int) -> Tolerance:
    """What rounding explains in this precision at this step."""
    return _TOLERANCES[precision][min(step, 1)]


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


def not_finite(per_rank: Sequence[dict[str, Any]]) -> list[int]:
    """The ranks whose own loss is not finite in the first step that has one; empty without."""
    for sums in zip(*(r["loss_sum"] for r in per_rank), strict=True):
        if ranks := [rank for rank, one in enumerate(sums) if not math.isfinite(one)]:
            return ranks
    return []


def norms(per_rank: Sequence[dict[str, Any]]) -> tuple[float | None, ...]:
    """The gradient norm at each step, None where it is not finite on some rank.

    It is the same on every rank; where gradients were not reduced it is not, and the largest
    counts.
    """
    steps = zip(*(r.get("gradient_norm", ()) for r in per_rank), strict=True)
    return tuple(max(step) if all(map(math.isfinite, step)) else None for step in steps)


def first(per_rank: Sequence[Iterable[dict[str, Any]]]) -> First:
    """What a launch recorded: of each rank the values of its phases, in their order.

    Raises ValueError when the record holds fewer than PARITY_STEPS losses, or what is no number.
    """
    losses: list[float] = []
    found: list[float | None] = []
    try:
        for phase in zip(*per_rank, strict=True):
            of_phase = [values["losses"] for values in phase if "losses" in values]
            if of_phase:
                if len(of_phase) < len(phase):
                    raise ValueError(f"only {len(of_phase)} of {len(phase)} ranks recorded losses")
                losses.extend(mean_losses(of_phase))
                found.extend(norms(of_phase))
        if len(losses) >= PARITY_STEPS:
            return First(losses=tuple(losses[:PARITY_STEPS]), norms=tuple(found[:PARITY_STEPS]))
    except (TypeError, KeyError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"its first losses cannot be read: {error}") from error
    raise ValueError(f"it recorded {len(losses)} losses, not {PARITY_STEPS}")


def largest_difference(
    values: Sequence[float | None], reference: Sequence[float | None]
) -> float | None:
    """The largest relative difference of the values that both have; None without any."""
    pairs = ((a, b) for a, b in zip(values, reference, strict=False))
    differences = [abs(a - b) / abs(b) for a, b in pairs if a is not None and b]
    return max(differences, default=None)


def skipped_steps(found: Sequence[float | None]) -> list[int]:
    """The compared steps without a finite norm, which compare nothing of the update."""
    return [step for step, norm in enumerate(found) if norm is None]


def compare(
    found: First | Seen,
    reference: First | None,
    precision: str,
    *,
    judged_as: str | None = None,
    world_size: int = 1,
    grad_accum: int = 1,
) -> Mismatch | None:
    """The first mismatch of losses and norms; without a reference only what is not finite.

    The tolerance is that of `judged_as` (`rounding`), or of the precision. A norm that is not
    finite is a step that fp16's scaler skips: alike in both runs it is no mismatch.
    """
    expected = reference or First(losses=())
    for step, loss in enumerate(found.losses):
        limit = tolerance(judged_as or precision, step)
        skips = _skips(found.norms[:step])
        if not math.isfinite(loss):
            return Mismatch("loss", step, loss, None, limit.loss, skips)
        known = expected.losses[step : step + 1]
        if known and not abs(loss - known[0]) <= limit.loss * abs(known[0]):
            return Mismatch("loss", step, loss, known[0], limit.loss, skips)
        if step < len(found.norms):
            norm, wanted = found.norms[step], expected.norms[step : step + 1]
            remark = _norm_fault(norm, wanted, precision, limit.norm, (world_size, grad_accum))
            if remark is not None:
                known_norm = wanted[0] if wanted else None
                return Mismatch("gradient norm", step, norm, known_norm, limit.norm, remark)
    return None


def _norm_fault(
    norm: float | None,
    wanted: Sequence[float | None],
    precision: str,
    limit: float,
    factors: tuple[int, int],
) -> str | None:
    """What is to be said of a norm that is not the wanted one (empty: nothing is asked of it)."""
    if norm is None and precision != "fp16":
        return ""
    if not wanted or (norm is None and wanted[0] is None):
        return None
    if norm is None or wanted[0] is None:
        where = "here" if norm is None else "in what it is compared with"
        return f"fp16's scaler skipped this step {where} alone"
    return (
        None
        if abs(norm - wanted[0]) <= limit * abs(wanted[0])
        else _factor(norm, wanted[0], *factors)
    )


def _skips(found: Sequence[float | None]) -> str:
    steps = skipped_steps(found)
    return f"fp16's scaler skipped step {', '.join(map(str, steps))}" if steps else ""


def _factor(norm: float, wanted: float, world_size: int, grad_accum: int) -> str:
    """The ratio of two norms, and what explains it."""
    if not wanted:
        return ""
    ratio = norm / wanted
    for count in (world_size, grad_accum, world_size * grad_accum):
        if count > 1 and math.isclose(ratio, count, rel_tol=0.02):
            return f"{count} times the reference's: gradients summed instead of averaged?"
        if count > 1 and math.isclose(ratio, 1 / count, rel_tol=0.02):
            return f"1/{count} of the reference's: gradients averaged twice?"
    return f"{ratio:.4g} times the reference's"
