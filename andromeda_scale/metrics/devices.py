"""The registry's numbers of memory and energy. Imports nothing heavy."""

from __future__ import annotations

from andromeda_scale.metrics.formats import binary, significant
from andromeda_scale.metrics.metric import Metric

NEARLY_FULL = 0.95  # of a device's memory, reserved by torch's allocator: a warning

ENERGY_STEPS, ENERGY_SECONDS = 100, 10.0  # of a window whose energy can be relied on

_FULLEST = "the fullest rank decides whether a model fits"

# (name, phase, meaning): bytes of one rank, of which the fullest counts.
_BYTES = (
    ("state_bytes", "inspect",
     "parameters, gradients, master copies and optimizer state between backward and update"),
    ("communication_buffers_bytes", "inspect",
     "live communication buffers at their fullest beside the states: DDP's buckets where gradients "
     "are no views of them, DeepSpeed's reduce buckets, units that FSDP or stage 3 has gathered"),
    ("activation_bytes", "inspect",
     "peak_allocated_bytes - states on the device - communication_buffers_bytes: what autograd "
     "saves, logits, temporaries"),
    ("start_memory_bytes", "inspect", "what torch's allocator held before a step"),
    ("peak_setup_bytes", "setup, CUDA", "the most torch's allocator held in building the model"),
    ("peak_forward_bytes", "inspect", "the most torch's allocator held in a forward"),
    ("peak_backward_bytes", "inspect", "the most torch's allocator held in a backward"),
    ("peak_update_bytes", "inspect", "the most torch's allocator held in an update"),
    ("peak_reserved_bytes", "measure, CUDA",
     "the most torch's allocator had taken from the device, used or not"),
    ("outside_allocator_bytes", "measure, CUDA",
     "used on the device by this and other processes, less what torch's allocator of this rank "
     "reserved: contexts, libraries, NCCL"),
    ("rss_bytes", "measure", "host memory resident at the window's end, shared pages included"),
    ("uss_bytes", "measure", "host memory that would be freed if this rank alone ended"),
    ("peak_rss_bytes", "measure", "the most host memory resident in the window"),
)  # fmt: skip

_ENERGY = "a job takes what all its devices take"

DEVICE_METRICS: dict[str, Metric] = {
    **{
        name: Metric("bytes", "lower", "max", _FULLEST, "max", phase, binary, meaning)
        for name, phase, meaning in _BYTES
    },
    "alloc_retries": Metric(
        "1", "lower", "max", "one rank that waits for its allocator delays all", "max",
        "measure, CUDA", significant,
        "allocations in the window that had to give memory back to the device and try again",
    ),
    "alloc_ooms": Metric(
        "1", "lower", "max", "one rank that waits for its allocator delays all", "max",
        "measure, CUDA", significant,
        "allocations in the window that failed and that the program survived",
    ),
    "energy_j": Metric(
        "J", "lower", "sum", _ENERGY, "mean", "measure", significant,
        "energy counters of the job's devices over the measured window: the ranks' GPUs, each over "
        "its rank's window, or on CPUs the packages of its nodes, whoever uses them",
    ),
    "joules_per_token": Metric(
        "J", "lower", "sum / sum", _ENERGY, "geometric mean", "measure", significant,
        "energy_j / tokens of the window",
    ),
    "power_w": Metric(
        "W", "lower", "sum", _ENERGY, "mean", "measure", significant,
        "sum over the job's devices of energy / window: mean watts of the job",
    ),
    "power_per_device_w": Metric(
        "W", "lower", "mean", "what one GPU or CPU package takes", "mean", "measure", significant,
        "power_w / number of the job's devices",
    ),
    "idle_power_w": Metric(
        "W", "none", "sum", _ENERGY, "mean", "before the first launch", significant,
        "mean watts of the same devices over two seconds before the run's first rank was started",
    ),
}  # fmt: skip
