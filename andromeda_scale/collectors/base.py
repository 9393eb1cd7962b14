"""The seam of collectors: what watches a rank during the worker's phases. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from andromeda_scale.contracts.records import Phase
from andromeda_scale.suite.config import Case


@dataclass(frozen=True)
class Context:
    """What a collector may look at.

    `gather` exchanges one picklable object with every rank of the case and returns the list in
    rank order; call it only in `stop`, outside any timed window, on every rank alike.
    """

    case: Case
    runtime: Any  # andromeda_scale.rank.runtime.Runtime
    strategy: Any  # the Strategy
    state: Any | None  # TrainState; None while phase "setup" starts
    gather: Callable[[Any], list[Any]]
    # Runs one more complete step, its update included, under the mark it is given (`train_step`):
    # only in `stop` of phase "inspect", on every rank alike.
    step: Callable[[Callable[[str], AbstractContextManager[object]]], None]
    directory: Path  # of the repeat: for files of a rank beside its record


class Collector(Protocol):
    """What watches a rank. Costs nothing in a phase it did not ask for.

    In phase "profile" the worker marks what it does with `record_function` ranges named
    `andromeda::step`, `andromeda::data`, `andromeda::forward`, `andromeda::backward`,
    `andromeda::update`, so a profiler can cut steps and parts. No range exists in "measure".
    """

    where: ClassVar[Literal["rank"]] = "rank"
    phases: frozenset[Phase]

    def start(self, phase: Phase, context: Context) -> None: ...

    def stop(self, phase: Phase) -> Mapping[str, Any]:
        """End the phase; return raw values for the record (JSON types only)."""
        ...


class NodeCollector(Protocol):
    """What samples a node from its agent, one instance for a repeat. Built without arguments.

    Both kinds share the registry: `where` says who builds one. The worker takes the classes whose
    `where` is "rank", the agent those with "agent"; what `stop` returns goes into the node's line.
    """

    where: ClassVar[Literal["agent"]] = "agent"

    # A class may have `before_ranks()`, which the agent calls once a run before its first rank
    # exists, and `least_steps`, `least_s`, to which ranks extend the timed window.

    def start(self) -> None: ...

    def stop(self) -> Mapping[str, Any]:
        """End sampling; return raw values for the node's line (JSON types only)."""
        ...
