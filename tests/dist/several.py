"""Ranks that run one case after another in one process group: a launch costs more than a case."""

from __future__ import annotations

import gc
from collections.abc import Sequence

from group import no_beat

from andromeda_scale import worker
from andromeda_scale.contracts.planned import RankSpec
from andromeda_scale.rank import runtime


def cases(specs: Sequence[RankSpec]) -> None:
    """The worker, once a case, on the process group of the first."""
    join = runtime.init_process_group
    joined: list[runtime.Control] = []

    def once(spec: RankSpec, rt: runtime.Runtime) -> runtime.Control:
        if not joined:
            joined.append(join(spec, rt))
        return joined[0]

    runtime.init_process_group = once
    for spec in specs:
        _forget_accelerate()
        worker.main(spec, no_beat)
        gc.unfreeze()
        gc.collect()


def _forget_accelerate() -> None:
    """accelerate keeps what the first Accelerator of a process was given."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
