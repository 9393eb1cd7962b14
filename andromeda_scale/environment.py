"""What a result was measured on and with: versions, code, hardware, variables. No torch."""

from __future__ import annotations

from typing import Any


def collect() -> dict[str, Any]:
    """Everything about this node and its software that explains a number; never a secret."""
    raise NotImplementedError


def fingerprint(environment: dict[str, Any]) -> dict[str, Any]:
    """The part of `collect()` that must be equal for results to stand in one table."""
    raise NotImplementedError
