"""The registry of numbers: name -> unit, direction, rules across ranks and launches, format.

Every numeric column of the results is here; tables and documentation are made from it. Names
carry their unit; shares are 0..1 in data and percent in print. Imports nothing heavy.
"""

from __future__ import annotations

from andromeda_scale.metrics.devices import DEVICE_METRICS
from andromeda_scale.metrics.formats import (
    binary,
    milliseconds,
    percent,
    rate,
    scientific,
    significant,
    times,
)
from andromeda_scale.metrics.metric import Metric
from andromeda_scale.metrics.profile import PROFILE_METRICS

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
    "step_autocorrelation": Metric(
        "1", "none", _PER_STEP, _SLOWEST, "mean", "measure", significant,
        "correlation of a step's time with the next one's: the error of their mean is "
        "sqrt((1 + r)/(1 - r)) times that of independent steps; empty under 8 steps",
    ),
    "half_width": Metric(
        "1", "lower", "as tokens_per_s", "it is tokens_per_s's own", "max", "measure", percent,
        "half of the 95 % interval of tokens_per_s over launches, relative: sqrt(high/low) - 1",
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
    "rank_hours_per_gtoken": Metric(
        "h", "lower", "as tokens_per_s", "every rank is paid for", "geometric mean",
        "measure", significant,
        "hours of one rank (a GPU, or a CPU process) per 1e9 tokens: 1e9 / tokens_per_s_per_gpu / "
        "3600; times the price of an hour it is the price of the tokens",
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
    "karp_flatt": Metric(
        "1", "lower", "as tokens_per_s", "it is a ratio of two jobs", "geometric mean",
        "measure", percent,
        "strong: (1/S - 1/p) / (1 - 1/p), S = speedup, p = world_size / base_world_size: the "
        "serial share a row alone implies; where it grows with p, overhead grows",
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
        "max over ranks of the rank's median compute_s / mean of those medians - 1, at most "
        "imbalance",
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
        "max of median and mean over steps of (charged_s - exposed_wait_s) / (ranks - 1), blamed "
        "or not: in runs without a slow rank it is the null floor",
    ),
    "blame_s": Metric(
        "s", "lower", "the blamed rank", "the one that others wait for most", "mean", "profile",
        milliseconds,
        "(charged_s - exposed_wait_s) / (ranks - 1) of blamed_rank, median over steps "
        "(persistent) or mean (transient); empty: nobody is blamed",
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

METRICS |= PROFILE_METRICS
METRICS |= DEVICE_METRICS

# What a reader asks, and the numbers that answer; every metric answers one question.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "How fast does it train?": (
        "tokens_per_s", "tokens_per_s_per_gpu", "step_time_s", "step_time_p95_s",
        "step_time_p99_s", "step_time_mad_s", "window_step_s", "rank_hours_per_gtoken",
    ),
    "How sure is it?": ("half_width", "step_autocorrelation"),
    "What does the next GPU buy?": ("speedup", "efficiency", "efficiency_common", "karp_flatt"),
    "How much of the device is used?": ("mfu", "mfu_of_mamf"),
    "Where does the time of a step go?": (
        "profile_step_s", "compute_s", "optimizer_compute_s", "comm_total_s", "comm_exposed_s",
        "comm_exposed_share", "comm_overlapped_s", "exposed_wait_s", "exposed_transfer_s",
        "data_s", "host_s", "end_skew_s", "compute_share", "exposed_wait_share",
        "exposed_transfer_share", "data_share", "host_share", "end_skew_share", "forward_s",
        "backward_s", "optimizer_s", "data_part_s", "residual_s", "profile_clock_step_s",
        "profile_slowdown",
    ),
    "What did the efficiency lose, and to what?": (
        "data_eff", "host_eff", "transfer_eff", "serialisation_eff", "load_balance",
        "data_eff_vs_base", "host_eff_vs_base", "transfer_eff_vs_base",
        "serialisation_eff_vs_base", "load_balance_vs_base", "compute_scaling",
        "explained_efficiency", "profile_efficiency", "least_data_s", "least_host_s",
        "least_transfer_s", "most_compute_s",
    ),
    "Whom do the others wait for?": (
        "imbalance", "imbalance_persistent", "imbalance_transient", "charged_s", "late_s",
        "blame_s", "blame_floor_s", "blamed_clock_mhz", "blamed_temperature_c", "blamed_power_w",
    ),
    "What crosses the network, and how fast?": (
        "comm_wire_bytes", "comm_tcp_bytes", "comm_loopback_bytes", "busbw_gbps",
        "busbw_probe_gbps", "busbw_share", "ablation_s", "ablation_error_s", "contention_s",
    ),
    "Does it fit into memory?": (
        "peak_memory_bytes", "peak_allocated_bytes", "estimate_error", "state_bytes",
        "communication_buffers_bytes", "activation_bytes", "start_memory_bytes",
        "peak_setup_bytes", "peak_forward_bytes", "peak_backward_bytes", "peak_update_bytes",
        "peak_reserved_bytes", "outside_allocator_bytes", "rss_bytes", "uss_bytes",
        "peak_rss_bytes", "alloc_retries", "alloc_ooms",
    ),
    "What does it cost in energy?": (
        "energy_j", "joules_per_token", "power_w", "power_per_device_w", "idle_power_w",
    ),
    "How long until the first step?": (
        "setup_s", "first_step_s", "compile_cold_s", "compile_warm_s",
    ),
    "Is it the same training?": ("parity_loss_difference", "parity_norm_difference"),
}  # fmt: skip

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
    "precision": "fp32, tf32, bf16 or fp16",
    "other": "every other setting that differs from its default, canonical JSON",
    "device_name": "the accelerator, or the processor, as it names itself",
    "threads_per_rank": "intra-op CPU threads of each rank",
    "software": "versions and commit the numbers were made with",
}
