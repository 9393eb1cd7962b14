"""The base of every schema, and the bounds that keep values on this planet. No torch."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

# Beyond what anybody runs, and below where an integer of a library or a clock overflows.
MAX_RANKS = 10**6
MAX_STEPS = 10**6
MAX_BATCH = 10**6  # sequences of a micro-batch; micro-batches of a step; a strong global batch
MAX_SECONDS = 1e7

Steps = Annotated[int, Field(ge=0, le=MAX_STEPS)]
Batch = Annotated[int, Field(gt=0, le=MAX_BATCH)]
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]
# What the shape of a model is made of; the families' configurations use them.
Width = Annotated[int, Field(gt=0, le=2**31)]
Layers = Annotated[int, Field(gt=0, le=10**5)]
# The kinds of device on which a rank computes.
Device = Literal["cpu", "cuda"]


def shown(value: Any) -> str:
    """A value as YAML writes it, cut to a line's length."""
    text = json.dumps(value) if isinstance(value, bool) or value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def share(value: Any) -> Any:
    """`2%` as 0.02; anything else as it is. Raises ValueError for a number that means neither."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError:
            raise ValueError(f"{shown(value)} is no percentage; use 2% or 0.02") from None
    return value


def with_tuples(value: Any) -> Any:
    """A mapping whose lists are tuples, for a validator that runs before the schema's own: what
    Python has touched is JSON no more, of which alone a strict schema takes a list for a tuple."""
    if not isinstance(value, dict):
        return value
    return {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}


Share = Annotated[
    float, BeforeValidator(share, json_schema_input_type=float | str), Field(gt=0.0, lt=1.0)
]


class Schema(BaseModel):
    """Base of every schema: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
