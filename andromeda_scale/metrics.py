"""The registry of numbers: name -> unit, direction, rules across ranks and launches, format.

Every numeric column of the results is here; tables and documentation are made from it. Names
carry their unit; shares are 0..1 in data and percent in print. Imports nothing heavy.
"""

from __future__ import annotations

from andromeda_scale.formats import (
    binary,
    milliseconds,
    percent,
    rate,
    scientific,
    significant,
    times,
)
from andromeda_scale.metric import Better, Metric
from andromeda_scale.metrics_devices import DEVICE_METRICS

_SLOWEST = "a job is as fast as its slowest rank at every step"
_PER_STEP = "max per step"

METRICS: dict[str, Metric] = {
    "step_time_s": Metric(
        "s", "lower", _PER_STEP, _SLOWEST, "geometric mean", "measure", milliseconds,
        "median over the steps of max over ranks of the step's wall time",
    ),
    "step_time_p95_s": Metric(
        "s", "lower", _PER_STEP, _SLOWEST, "geometric mean", "measure", milliseconds,
        "95th percentile over the steps of max over ranks of the step's wall time",
    ),
    "step_time_p99_s": Metric(
        "s", "lower", _PER_STEP, _SLOWEST, "geometric mean", "measure", milliseconds,
        "99th percentile over the steps of max over ranks of the step's wall time",
    ),
    "step_time_mad_s": Metric(
        "s", "lower", _PER_STEP, _SLOWEST, "mean", "measure", milliseconds,
        "median over the steps of |max over ranks of the step's wall time - step_time_s|",
    ),
    "window_step_s": Metric(
        "s", "lower", "max", "the window ends when the last rank ends it", "geometric mean",
        "measure", milliseconds,
        "(max over ranks of the window's wall time) / steps: the t of strong scaling",
    ),
    "tokens_per_s": Metric(
        "tokens/s", "higher", "sum of tokens / max of window",
        "all ranks' tokens are one job's work, done when the last rank is", "geometric mean",
        "measure", rate,
        "tokens really processed by all ranks / max over ranks of the window's wall time",
    ),
    "tokens_per_s_per_gpu": Metric(
        "tokens/s", "higher", "sum of tokens / max of window", "tokens_per_s shared by its ranks",
        "geometric mean", "measure", rate,
        "tokens_per_s / world_size (a rank is one accelerator, or one CPU process)",
    ),
    "speedup": Metric(
        "1", "higher", "as tokens_per_s", "it is a ratio of two jobs", "geometric mean",
        "measure", times,
        "X(n)/X(n0), X = tokens_per_s, n0 = base_world_size of the same strategy and settings",
    ),
    "efficiency": Metric(
        "1", "higher", "as tokens_per_s", "it is a ratio of two jobs", "geometric mean",
        "measure", percent,
        "weak: (X(n)/n) / (X(n0)/n0), X = tokens_per_s; strong: n0 t(n0) / (n t(n)), "
        "t = window_step_s",
    ),
    "efficiency_common": Metric(
        "1", "higher", "as tokens_per_s", "it is a ratio of two jobs", "geometric mean",
        "measure", percent,
        "efficiency against the best per-GPU throughput of any strategy at the smallest world",
    ),
    "mfu": Metric(
        "1", "higher", "as tokens_per_s", "all ranks' work over all ranks' peak",
        "geometric mean", "measure", percent,
        "tokens_per_s * flops_per_token / (world_size * peak), by flop_convention; empty for a "
        "device without a known peak",
    ),
    "peak_memory_bytes": Metric(
        "bytes", "lower", "max", "the fullest rank decides whether a model fits", "max",
        "measure", binary,
        "peak of the measured window; CUDA: allocated by torch, CPU: resident set",
    ),
    "peak_allocated_bytes": Metric(
        "bytes", "lower", "max", "the fullest rank decides whether a model fits", "max",
        "measure, CPU: inspect", binary,
        "the most that torch's allocator held in a step, libraries and process left out",
    ),
    "imbalance": Metric(
        "1", "lower", "max / mean - 1 per step", "others wait for the excess of the slowest",
        "mean", "profile", percent,
        "mean over steps of max over ranks of compute_s / mean over ranks of compute_s - 1",
    ),
    "imbalance_persistent": Metric(
        "1", "lower", "max / mean - 1 of medians", "the part that is always the same rank's",
        "mean", "profile", percent,
        "max over ranks of the rank's median compute_s / mean of those medians - 1",
    ),
    "imbalance_transient": Metric(
        "1", "lower", "difference", "the part that moves from rank to rank", "mean", "profile",
        percent,
        "imbalance - imbalance_persistent",
    ),
    "charged_s": Metric(
        "s", "lower", "max", "the rank that others wait for most", "mean", "profile", milliseconds,
        "seconds per step of others' exposed waiting for this rank: of the time between two "
        "arrivals at a collective, each rank still missing has an equal share",
    ),
    "late_s": Metric(
        "s", "lower", "max", "the rank that others wait for most", "mean", "profile", milliseconds,
        "max of median and mean over steps of charged_s - exposed_wait_s, blamed or not: in runs "
        "without a slow rank it is the null floor",
    ),
    "blame_s": Metric(
        "s", "lower", "the blamed rank", "the one that others wait for most", "mean", "profile",
        milliseconds,
        "charged_s - exposed_wait_s of blamed_rank, median over steps (persistent) or mean "
        "(transient); empty: nobody is blamed",
    ),
    "blame_floor_s": Metric(
        "s", "none", "as stored", "of this machine, kind of device and world", "max", "selftest",
        milliseconds,
        "the null floor of blame_s in calibration.json; empty: none stored",
    ),
    "blamed_clock_mhz": Metric(
        "MHz", "none", "the blamed rank", "its device", "mean", "measure", significant,
        "median over the samples of the measured window of the blamed rank's GPU clock",
    ),
    "blamed_temperature_c": Metric(
        "C", "none", "the blamed rank", "its device", "mean", "measure", significant,
        "highest temperature of the blamed rank's GPU in the samples of the measured window",
    ),
    "blamed_power_w": Metric(
        "W", "none", "the blamed rank", "its device", "mean", "measure", significant,
        "mean over the samples of the measured window of the blamed rank's GPU power",
    ),
    "profile_slowdown": Metric(
        "1", "lower", _PER_STEP, _SLOWEST, "mean", "profile", times,
        "step_time_s of the profile phase / step_time_s: what the profiler costs",
    ),
    "setup_s": Metric(
        "s", "lower", "max", "training starts when the last rank is ready", "mean", "setup",
        significant,
        "from the start of the worker to the model built, wrapped and placed",
    ),
    "first_step_s": Metric(
        "s", "lower", "max", _SLOWEST, "mean", "warmup", significant,
        "wall time of the very first step: lazy allocation, autotuning, compilation",
    ),
    "compile_cold_s": Metric(
        "s", "lower", "max", "training starts when the last rank has compiled", "mean", "warmup",
        significant,
        "seconds torch.compile took in launches that found some graph not in its cache on disk",
    ),
    "compile_warm_s": Metric(
        "s", "lower", "max", "training starts when the last rank has compiled", "mean", "warmup",
        significant,
        "seconds torch.compile took in launches that found every graph in its cache on disk",
    ),
    "parity_loss_difference": Metric(
        "1", "lower", "rank 0", "losses are of the global batch, equal on every rank", "max",
        "warmup", scientific,
        "max over the compared steps of |loss - loss of the reference| / |loss of the reference|",
    ),
    "parity_norm_difference": Metric(
        "1", "lower", "max", "the norm is the whole gradient's, equal on every rank", "max",
        "warmup", scientific,
        "max over the compared steps of |norm - the reference's| / the reference's gradient norm",
    ),
    "estimate_error": Metric(
        "1", "none", "max", "an estimate is of the fullest rank", "max", "plan", percent,
        "estimated_memory_bytes of the plan / peak_allocated_bytes - 1",
    ),
}  # fmt: skip

_MEANS = "step time is cut on every rank; means over ranks and steps add up to the step"
_PARTS: tuple[tuple[str, Better, str], ...] = (
    ("profile_step_s", "lower", "mean over steps of max over ranks of the profiled step"),
    ("compute_s", "none", "seconds per step computing: kernels or operators, no collectives"),
    ("optimizer_compute_s", "none", "the part of compute_s that lies in the update"),
    ("comm_total_s", "lower", "seconds per step in which any collective executes: |union I|"),
    ("comm_exposed_s", "lower", "seconds per step with collectives and no compute: |I - C|"),
    ("comm_overlapped_s", "none", "comm_total_s - comm_exposed_s"),
    ("exposed_wait_s", "lower", "exposed seconds per step before the last rank has arrived"),
    ("exposed_transfer_s", "lower", "comm_exposed_s - exposed_wait_s"),
    ("data_s", "lower", "seconds per step getting the next batch, hidden by nothing"),
    ("host_s", "lower", "seconds per step in none of the other classes: Python, launches"),
    ("forward_s", "none", "seconds per step in forward, communication included"),
    ("backward_s", "none", "seconds per step in backward, communication included"),
    ("optimizer_s", "none", "seconds per step in the update, or in dropping the gradients"),
    ("data_part_s", "none", "seconds per step in getting batches, whatever runs beside it"),
    ("residual_s", "lower", "seconds per step in none of these four parts"),
    ("end_skew_s", "lower", "seconds per step from the end of a rank's step to the longest's"),
)
METRICS |= {
    name: Metric("s", better, "mean", _MEANS, "mean", "profile", milliseconds, meaning)
    for name, better, meaning in _PARTS
}
_EXTREMES = {
    "least_data_s": ("min", "data_s"),
    "least_host_s": ("min", "host_s"),
    "least_transfer_s": ("min", "exposed_transfer_s"),
    "most_compute_s": ("max", "compute_s"),
}
METRICS |= {
    name: Metric(
        "s", "none", f"{rule} per step", "no rank spends less, or more: what factors are made of",
        "mean", "profile", milliseconds, f"mean over steps of the {rule} over ranks of {of}",
    )
    for name, (rule, of) in _EXTREMES.items()
}  # fmt: skip
_FACTORS = {
    "data_eff": "T1/T: T profile_step_s, T1 = T - least_data_s",
    "host_eff": "T2/T1: T2 = T1 - least_host_s",
    "transfer_eff": "T3/T2: T3 = T2 - least_transfer_s",
    "serialisation_eff": "most_compute_s/T3: 1 less what ranks wait beyond their imbalance",
    "load_balance": "compute_s/most_compute_s",
    "compute_scaling": "compute per token (strong: over all ranks) of the base / that of the row",
}
METRICS |= {
    name: Metric(
        "1", "higher", "of all ranks", "seconds are summed over steps and launches before they "
        "are divided", "mean", "profile", percent, meaning,
    )
    for name, meaning in _FACTORS.items()
}  # fmt: skip
METRICS["explained_efficiency"] = Metric(
    "1", "higher", "of all ranks", "it is a ratio of two jobs", "mean", "profile", percent,
    "product of data_eff, host_eff, transfer_eff, serialisation_eff and load_balance / that of "
    "the base * compute_scaling",
)  # fmt: skip
METRICS["profile_efficiency"] = Metric(
    "1", "higher", _PER_STEP, "it is a ratio of two jobs", "mean", "profile", percent,
    "efficiency of the profiled steps, t = profile_clock_step_s: within 1 % explained_efficiency",
)  # fmt: skip
METRICS["profile_clock_step_s"] = Metric(
    "s", "lower", _PER_STEP, _SLOWEST, "mean", "profile", milliseconds,
    "mean over the profiled steps of max over ranks of the step's wall time, as phase measure "
    "times it and not as the profiler does",
)  # fmt: skip
METRICS["comm_wire_bytes"] = Metric(
    "bytes", "lower", "mean", "ranks of a group move the same", "mean", "profile", binary,
    "bytes a rank's collectives move per step, as the backend ran them",
)  # fmt: skip
METRICS["comm_exposed_share"] = Metric(
    "1", "lower", "mean / max of step", "exposed seconds of a mean rank in the job's step",
    "mean", "profile", percent,
    "comm_exposed_s / profile_step_s",
)  # fmt: skip
METRICS |= {
    "mfu_of_mamf": Metric(
        "1", "higher", "as tokens_per_s", "all ranks' work over all ranks' ceiling",
        "geometric mean", "measure", percent,
        "tokens_per_s * flops_per_token / (world_size * mamf), mamf: the best matmul rate that "
        "probe measured on this device in this precision; on a CPU with a rank's threads",
    ),
    "busbw_gbps": Metric(
        "GB/s", "higher", "mean", "ranks of a group move the same in the same time", "mean",
        "profile", significant,
        "bytes of a step * factor / seconds of a step that are transfer and no waiting; of a case: "
        "of its collective with the most wire bytes (busbw_op); G = 1e9",
    ),
    "busbw_probe_gbps": Metric(
        "GB/s", "none", "max of time", "a collective is over when its last rank is", "mean",
        "probe", significant,
        "what probe reached with that collective alone, over as many ranks, at the mean message "
        "size, interpolated on logarithms; beyond the largest probed message that one's",
    ),
    "busbw_share": Metric(
        "1", "higher", "mean", "ranks of a group move the same in the same time", "mean",
        "profile", percent,
        "busbw_gbps / busbw_probe_gbps",
    ),
}  # fmt: skip

METRICS |= DEVICE_METRICS

# What a case was, beside its numbers: columns that identify a row and decide what may be compared.
SETTINGS: dict[str, str] = {
    "strategy": "how the model is spread over ranks, without its options",
    "options": "options of the strategy that were set, key=value",
    "driver": "who wraps the model",
    "model": "name of the model's configuration",
    "model_config": "the model's shape, canonical JSON",
    "regime": "weak or strong scaling",
    "mode": "forward, forward_backward or train_step",
    "seq_len": "tokens per sequence",
    "micro_batch_size": "sequences per rank and micro-batch",
    "grad_accum": "micro-batches per step",
    "global_batch_size": "sequences per step over all ranks",
    "precision": "fp32 or bf16",
    "other": "every other setting that differs from its default, canonical JSON",
    "device_name": "the accelerator, or the processor, as it names itself",
    "threads_per_rank": "intra-op CPU threads of each rank",
    "software": "versions and commit the numbers were made with",
}
