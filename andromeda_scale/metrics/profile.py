"""The numbers of profiled steps: where seconds and bytes went, and ceilings beside them."""

from __future__ import annotations

from andromeda_scale.metrics.formats import binary, milliseconds, percent, significant
from andromeda_scale.metrics.metric import Better, Metric

_SLOWEST = "a job is as fast as its slowest rank at every step"
_PER_STEP = "max per step"

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
PROFILE_METRICS: dict[str, Metric] = {
    name: Metric("s", better, "mean", _MEANS, "mean", "profile", milliseconds, meaning)
    for name, better, meaning in _PARTS
}
# Classes of a profiled step; they add up to it.
PROFILE_METRICS |= {
    f"{name}_share": Metric(
        "1", "none", "mean / max of step", "seconds of a mean rank in the job's step", "mean",
        "profile", percent, f"{name}_s / profile_step_s",
    )
    for name in ("compute", "exposed_wait", "exposed_transfer", "data", "host", "end_skew")
}  # fmt: skip
_EXTREMES = {
    "least_data_s": ("min", "data_s"),
    "least_host_s": ("min", "host_s"),
    "least_transfer_s": ("min", "exposed_transfer_s"),
    "most_compute_s": ("max", "compute_s"),
}
PROFILE_METRICS |= {
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
PROFILE_METRICS |= {
    name: Metric(
        "1", "higher", "of all ranks", "seconds are summed over steps and launches before they "
        "are divided", "mean", "profile", percent, meaning,
    )
    for name, meaning in _FACTORS.items()
}  # fmt: skip
PROFILE_METRICS |= {
    f"{name}_vs_base": Metric(
        "1", "higher", "of all ranks", "it is a ratio of two jobs", "geometric mean", "profile",
        significant, f"{name} / that of the base: what the class costs of the efficiency",
    )
    for name in _FACTORS if name != "compute_scaling"
}  # fmt: skip
PROFILE_METRICS["explained_efficiency"] = Metric(
    "1", "higher", "of all ranks", "it is a ratio of two jobs", "mean", "profile", percent,
    "product of data_eff, host_eff, transfer_eff, serialisation_eff and load_balance / that of "
    "the base * compute_scaling",
)  # fmt: skip
PROFILE_METRICS["profile_efficiency"] = Metric(
    "1", "higher", _PER_STEP, "it is a ratio of two jobs", "mean", "profile", percent,
    "efficiency of the profiled steps, t = profile_clock_step_s: within 1 % explained_efficiency",
)  # fmt: skip
PROFILE_METRICS["profile_clock_step_s"] = Metric(
    "s", "lower", _PER_STEP, _SLOWEST, "mean", "profile", milliseconds,
    "mean over the profiled steps of max over ranks of the step's wall time, as phase measure "
    "times it and not as the profiler does",
)  # fmt: skip
PROFILE_METRICS["ablation_s"] = Metric(
    "s", "lower", "mean", _MEANS, "mean", "inspect", milliseconds,
    "seconds per step by which blocks of steps are longer with communication than without, ABBA: "
    "exposed communication without a profiler, and what communication takes from compute",
)  # fmt: skip
PROFILE_METRICS["ablation_error_s"] = Metric(
    "s", "lower", "mean", _MEANS, "mean", "inspect", milliseconds,
    "half of the 95 % t interval of ablation_s over launches; of one launch, and under 3, over its "
    "pairs of blocks",
)  # fmt: skip
PROFILE_METRICS["contention_s"] = Metric(
    "s", "lower", "mean", _MEANS, "mean", "inspect", milliseconds,
    "seconds per step by which communication slows compute down: compute_s less that of profiled "
    "steps without communication. With what is exposed it makes up ablation_s",
)  # fmt: skip
PROFILE_METRICS["comm_wire_bytes"] = Metric(
    "bytes", "lower", "mean", "ranks of a group move the same", "mean", "profile", binary,
    "bytes a rank's collectives move per step, as the backend ran them",
)  # fmt: skip
PROFILE_METRICS["comm_tcp_bytes"] = Metric(
    "bytes", "lower", "mean", "ranks of a group move the same", "mean", "profile", binary,
    "bytes that came in per step over a rank's TCP connections, as its kernel counted them (gloo)",
)  # fmt: skip
PROFILE_METRICS["comm_loopback_bytes"] = Metric(
    "bytes", "lower", "sum / world_size", "the device carries what all ranks send", "mean",
    "profile", binary,
    "bytes per step and rank of all packets on the loopback device, less what others sent (gloo, "
    "one host)",
)  # fmt: skip
PROFILE_METRICS["comm_exposed_share"] = Metric(
    "1", "lower", "mean / max of step", "exposed seconds of a mean rank in the job's step",
    "mean", "profile", percent,
    "comm_exposed_s / profile_step_s",
)  # fmt: skip
PROFILE_METRICS |= {
    "mfu_of_mamf": Metric(
        "1", "higher", "as tokens_per_s", "all ranks' work over all ranks' ceiling",
        "geometric mean", "measure", percent,
        "tokens_per_s * flops_per_token / (world_size * mamf), mamf: the best matmul rate that "
        "probe measured on this device in this precision; on a CPU with a rank's threads",
    ),
    "busbw_gbps": Metric(
        "GB/s", "higher", "mean", "ranks of a group move the same in the same time", "mean",
        "profile", significant,
        "bytes * factor / seconds in which one or more transfer, of the median step; of a case: "
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
