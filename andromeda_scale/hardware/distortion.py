"""Variables that change every number while nothing fails: what debugging leaves in a shell."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

_OFF = ("", "0", "off", "false", "no", "n")


@dataclass(frozen=True)
class _Distortion:
    """What a variable does to a measurement, by which values, on which kind of device."""

    effect: str
    by: Callable[[str], bool] = lambda value: value.lower() not in _OFF
    device: str | None = None  # any


def _is(*words: str) -> Callable[[str], bool]:
    return lambda value: value.lower() in words


_ALLOCATIONS = "every allocation of host memory is checked or filled"
_VECTORS = "kernels of the CPU may not use its widest vectors"
_TABLE = {
    "ATEN_CPU_CAPABILITY": _Distortion(_VECTORS, device="cpu"),
    "CUDA_LAUNCH_BLOCKING": _Distortion(
        "every launch waits for its kernel, so nothing overlaps", device="cuda"
    ),
    "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": _Distortion(
        "a rank may use a part of its GPU only", lambda value: value != "100", device="cuda"
    ),
    "DNNL_MAX_CPU_ISA": _Distortion(_VECTORS, lambda v: v.lower() not in ("", "all"), "cpu"),
    "MALLOC_CHECK_": _Distortion(_ALLOCATIONS),
    "MALLOC_PERTURB_": _Distortion(_ALLOCATIONS),
    "NCCL_BLOCKING_WAIT": _Distortion("the host waits for every collective", device="cuda"),
    "NCCL_IB_DISABLE": _Distortion("NCCL leaves InfiniBand and RoCE unused", device="cuda"),
    "NCCL_P2P_DISABLE": _Distortion(
        "GPUs of a host talk through its memory, NVLink or not", device="cuda"
    ),
    "NCCL_SHM_DISABLE": _Distortion(
        "GPUs of a host that cannot reach each other talk through the network", device="cuda"
    ),
    "NVIDIA_TF32_OVERRIDE": _Distortion(
        "no product uses TF32, whatever the precision of a row", _is("0"), device="cuda"
    ),
    "ONEDNN_MAX_CPU_ISA": _Distortion(_VECTORS, lambda v: v.lower() not in ("", "all"), "cpu"),
    "PYTHONDEVMODE": _Distortion(_ALLOCATIONS, bool),
    "PYTHONMALLOC": _Distortion(_ALLOCATIONS, lambda value: value.endswith("debug")),
    "PYTHONTRACEMALLOC": _Distortion("Python traces each of its allocations"),
    "PYTORCH_NO_CUDA_MEMORY_CACHING": _Distortion(
        "every tensor is allocated and freed by the driver, which waits", device="cuda"
    ),
    "TORCH_DISTRIBUTED_DEBUG": _Distortion(
        "ranks compare every collective before it starts (DDP over gloo may die of that)",
        _is("detail"),
    ),
    "TORCH_NCCL_BLOCKING_WAIT": _Distortion("the host waits for every collective", device="cuda"),
}
NAMES = tuple(_TABLE)


def distortions(
    variables: Mapping[str, str], device: str, asked: Collection[str] = ()
) -> list[str]:
    """A line for each variable that distorts what is measured on a kind of device, and how.

    Those `asked` for by a suite's `env` are settings.
    """
    return [
        f"{name}={variables[name]}: {found.effect}; unset it, or set it in the suite's env"
        for name, found in _TABLE.items()
        if name in variables
        and name not in asked
        and found.device in (None, device)
        and found.by(variables[name])
    ]
