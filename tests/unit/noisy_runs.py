"""Runs whose launches vary as real ones do, around step times that a test chooses."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from merging import ENVIRONMENT
from run_files import rank_lines, write_plan, write_repeat

from andromeda_scale.suite.config import Case

STEPS = 20
LAUNCH_NOISE, STEP_NOISE = 0.003, 0.02


def other_torch(version: str = "9.9.0") -> dict[str, Any]:
    """This machine's environment with another torch."""
    found = copy.deepcopy(ENVIRONMENT)
    found["versions"]["torch"] = version
    return found


def noisy_run(
    directory: Path,
    cases: Sequence[tuple[Case, float]],
    *,
    repeats: int = 5,
    seed: int = 0,
    environment: Mapping[str, Any] | None = None,
    status: Mapping[str, dict[str, Any]] | None = None,
    noise: float = 1.0,
) -> Path:
    """A run of (case, seconds a step); every case's tokens are what its batch says.

    `status` is by case id, for launches that failed.
    """
    rng = np.random.default_rng(seed)
    write_plan(directory, [case for case, _ in cases], repeats)
    for case, step_s in cases:
        sequences = case.train.micro_batch_size * case.train.grad_accum
        tokens = STEPS * sequences * case.train.seq_len
        for repeat in range(repeats):
            launch = step_s * np.exp(noise * LAUNCH_NOISE * rng.standard_normal())
            steps = launch * np.exp(noise * STEP_NOISE * rng.standard_normal(STEPS))
            lines = [
                line
                for rank in range(case.world.size)
                for line in rank_lines(rank, steps.tolist(), tokens=tokens, compute_s=[0.1] * 20)
            ]
            found = (status or {}).get(case.case_id)
            write_repeat(directory, case, repeat, lines, found, dict(environment or ENVIRONMENT))
    return directory
