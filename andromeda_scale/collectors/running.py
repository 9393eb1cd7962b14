"""The collectors of one rank, started and stopped together. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from andromeda_scale import registry
from andromeda_scale.collectors.base import Context
from andromeda_scale.contracts.records import Phase
from andromeda_scale.errors import CollectorUnavailable


class Collectors:
    """Those of a case that watch a rank; the agent builds the others.

    `least_steps`, `least_s`: what any of a case's collectors needs of the timed window.
    """

    def __init__(self, names: Sequence[str]) -> None:
        kinds = {name: registry.load("collector", name) for name in names}
        self.least_steps = max((kind.least_steps for kind in kinds.values()), default=0)
        self.least_s = max((kind.least_s for kind in kinds.values()), default=0.0)
        self._built = {name: kind() for name, kind in kinds.items() if kind.where == "rank"}

    @contextmanager
    def around(self, phase: Phase, context: Context, values: dict[str, Any]) -> Iterator[None]:
        """Start those that watch `phase`; after it, put what each found into `values` by name.

        One that cannot work here is recorded as {"unavailable": reason}, one that failed as
        {"error": reason}, and the rest goes on.
        """
        active = [name for name, c in self._built.items() if phase in c.phases]
        for name in active:
            self._guard(values, name, lambda c: c.start(phase, context))
        yield
        for name in active:
            if name not in values:
                self._guard(values, name, lambda c: dict(c.stop(phase)))

    def _guard(self, values: dict[str, Any], name: str, call: Callable[[Any], Any]) -> None:
        try:
            result = call(self._built[name])
        except CollectorUnavailable as error:
            result = {"unavailable": str(error)}
        except Exception as error:  # costs what this one would have said, not the repeat
            result = {"error": f"{type(error).__name__}: {error}"}
        if result is not None:
            values[name] = result
