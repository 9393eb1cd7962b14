"""The worker with few imports, in which the variable KILL ("rank:point") plants a death."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from andromeda_scale import worker
from andromeda_scale.contracts.planned import RankSpec

PRELOAD = ("torch", "torch.distributed")


def main(spec: RankSpec, beat: Callable[[str, int, int], None]) -> None:
    rank, _, point = spec.case.env.get("KILL", "").partition(":")

    def deadly(phase: str, step: int, total_steps: int) -> None:
        beat(phase, step, total_steps)
        if phase == "measure" and (str(spec.rank), str(step)) == (rank, point):
            os.kill(os.getpid(), signal.SIGKILL)

    worker.main(spec, deadly)
