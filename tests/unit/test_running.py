"""What a failing collector costs: its own values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from andromeda_scale import registry
from andromeda_scale.collectors.base import Collector
from andromeda_scale.collectors.running import Collectors
from andromeda_scale.errors import CollectorUnavailable


class Counts(Collector):
    phases = frozenset({"profile"})

    def start(self, phase: str, context: Any) -> None: ...

    def stop(self, phase: str) -> Mapping[str, Any]:
        return {"count": 1}


class Breaks(Counts):
    def stop(self, phase: str) -> Mapping[str, Any]:
        raise AttributeError("no attribute 'extra_meta'")


class Absent(Counts):
    def start(self, phase: str, context: Any) -> None:
        raise CollectorUnavailable("no counter here")


def test_a_collector_that_fails_costs_its_own_values_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds = {"counts": Counts, "breaks": Breaks, "absent": Absent}
    monkeypatch.setattr(registry, "load", lambda kind, name: kinds[name])
    values: dict[str, Any] = {}
    with Collectors(["breaks", "absent", "counts"]).around("profile", None, values):
        pass
    assert values == {
        "breaks": {"error": "AttributeError: no attribute 'extra_meta'"},
        "absent": {"unavailable": "no counter here"},
        "counts": {"count": 1},
    }
