"""The node under the ranks: CPU, memory, network, disk, GPUs, sampled by the agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal


class System:
    """Samples one node about once a second in a thread of the agent."""

    where: ClassVar[Literal["agent"]] = "agent"

    def __init__(self, period_s: float = 1.0) -> None:
        self.period_s = period_s

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> Mapping[str, Any]:
        raise NotImplementedError
