"""Step times and throughput of one launch, from every rank's raw steps. No torch."""

from __future__ import annotations

import math

import numpy as np

from andromeda_scale.analysis.resampling import autocorrelation


def step_times(step_s: np.ndarray) -> dict[str, float]:
    """Order statistics of a job's steps from (ranks, steps) seconds.

    The job's step is the max over ranks of that step, never one rank's and never a mean over
    ranks; then median, percentiles and median absolute deviation over the steps,
    which one step has none of.
    """
    job = step_s.max(axis=0)
    spread = np.median(np.abs(job - np.median(job))) if len(job) > 1 else math.nan
    median, p95, p99 = np.quantile(job, [0.5, 0.95, 0.99])
    return {
        "step_time_s": float(median),
        "step_time_p95_s": float(p95),
        "step_time_p99_s": float(p99),
        "step_time_mad_s": float(spread),
        "step_autocorrelation": autocorrelation(job),
    }


def throughput(window_s: np.ndarray, tokens: np.ndarray, num_steps: int) -> dict[str, float]:
    """Tokens per second of a job from each rank's window and tokens, both of shape (ranks,).

    tokens_per_s = sum of tokens / max of windows: not tokens / median step, which would hide a
    third of the steps being slow.
    """
    window = float(window_s.max())
    tokens_per_s = float(tokens.sum()) / window
    return {
        "tokens_per_s": tokens_per_s,
        "tokens_per_s_per_gpu": tokens_per_s / len(window_s),
        "window_step_s": window / num_steps,
    }
