"""The seam of collectors: what watches a rank during the worker's phases. No torch here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

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


class Collector(ABC):
    """What watches a rank. Costs nothing in a phase it did not ask for.

    In phase "profile" the worker marks what it does with `record_function` ranges named
    `andromeda::step`, `andromeda::data`, `andromeda::forward`, `andromeda::backward`,
    `andromeda::update`, so a profiler can cut steps and parts. No range exists in "measure".
    """

    where: ClassVar[Literal["rank"]] = "rank"
    # What it needs of the timed window, to which ranks extend it.
    least_steps: ClassVar[int] = 0
    least_s: ClassVar[float] = 0.0
    phases: frozenset[Phase]

    @abstractmethod
    def start(self, phase: Phase, context: Context) -> None:
        """Begin a phase."""

    @abstractmethod
    def stop(self, phase: Phase) -> Mapping[str, Any]:
        """End the phase; return raw values for the record (JSON types only)."""


class NodeCollector(ABC):
    """What samples a node from its agent, one instance for a repeat. Built without arguments.

    Both kinds share the registry: `where` says who builds one. The worker takes the classes whose
    `where` is "rank", the agent those with "agent"; what `stop` returns goes into the node's line.
    """

    where: ClassVar[Literal["agent"]] = "agent"
    least_steps: ClassVar[int] = 0
    least_s: ClassVar[float] = 0.0

    @classmethod  # noqa: B027  most have nothing to see then
    def before_ranks(cls) -> None:
        """See the node before its first rank exists; the agent calls it once a run."""

    @abstractmethod
    def start(self) -> None:
        """Begin to sample."""

    @abstractmethod
    def stop(self) -> Mapping[str, Any]:
        """End sampling; return raw values for the node's line (JSON types only)."""
