"""What a result was measured on and with: versions, code, hardware, variables. No torch."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from andromeda_scale.hardware import distortion
from andromeda_scale.hardware.machine import detect_machine, torch_cuda_version
from andromeda_scale.hardware.nvml import Nvml
from andromeda_scale.suite.secret import is_secret

_PACKAGE = Path(__file__).parents[1]

_PACKAGES = ("torch", "deepspeed", "accelerate", "transformers", "triton", "numpy")

# Variables that change what is measured. Everything else stays on the machine, and so does what a
# later library may keep under these prefixes if it looks like a secret.
_PREFIXES = (
    "ATEN_",
    "CUBLAS_",
    "CUDNN_",
    "DNNL_",
    "FI_",
    "GLOO_",
    "GOMP_",
    "KMP_",
    "MALLOC_",
    "MKLDNN_",
    "MKL_",
    "NCCL_",
    "OMP_",
    "ONEDNN_",
    "OPENBLAS_",
    "PYTORCH_TUNABLEOP_",
    "TORCHDYNAMO_",
    "TORCHINDUCTOR_",
    "TORCH_CUDNN_",
    "TORCH_FR_",
    "TORCH_NCCL_",
    "UCX_",
)
_NAMES = (
    *distortion.NAMES,
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUDA_DEVICE_ORDER",
    "CUDA_MODULE_LOADING",
    "CUDA_VISIBLE_DEVICES",
    "DS_ACCELERATOR",
    "LD_PRELOAD",
    "NVIDIA_VISIBLE_DEVICES",
    "PYTHONHASHSEED",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "SLURM_CPUS_PER_TASK",
    "SLURM_CPU_BIND",
    "SLURM_JOB_ID",
    "SLURM_JOB_NODELIST",
    "SLURM_NNODES",
    "SLURM_NTASKS",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCH_COMPILE_DISABLE",
    "TORCH_LOGS",
)


def collect(variables: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Everything about this node and its software that explains a number; never a secret.

    `variables` are those that ranks see. JSON values. GPUs are all that the driver shows;
    `cpu_cores` and `memory_bytes` are what affinity and container leave to this process. What
    cannot be found is null.
    """
    machine = detect_machine()
    driver, gpus = _gpus()
    return {
        "versions": _versions(),
        "git": git_state(_PACKAGE),
        "source_sha256": source_digest(_PACKAGE),
        "hostname": socket.gethostname(),
        "os": platform.system(),
        "os_release": _os_release(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu_model": _cpu_model(),
        "cpu_cores": machine.cpu_cores,
        "cpu_threads_online": os.cpu_count(),
        "memory_bytes": machine.memory_bytes,
        "gpu_driver": driver,
        "gpus": gpus,
        "slurm": {
            "job_id": os.environ.get("SLURM_JOB_ID"),
            "nodelist": os.environ.get("SLURM_JOB_NODELIST"),
        },
        "variables": relevant_variables(variables),
    }


HARDWARE = ("machine", "cpu_model", "cpu_cores", "gpus")  # of a fingerprint


def fingerprint(environment: dict[str, Any]) -> dict[str, Any]:
    """The part of `collect()` that must be equal for results to stand in one table.

    Code, library versions and hardware by kind: another host with the same is the same system.
    """
    names = [gpu["name"] for gpu in environment["gpus"]]
    return {
        **environment["versions"],
        "source_sha256": environment["source_sha256"],
        "machine": environment["machine"],
        "cpu_model": environment["cpu_model"],
        "cpu_cores": environment["cpu_cores"],
        "gpu_driver": environment["gpu_driver"],
        "gpus": ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)),
    }


def relevant_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables of the allow-list, without any whose name or value may hold a secret."""
    return {
        name: value
        for name, value in sorted(variables.items())
        if (name.startswith(_PREFIXES) or name in _NAMES) and not is_secret(name, value)
    }


@cache
def source_digest(package: Path) -> str:
    """Hash of a package's Python files: the code that ran, with or without a repository."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _versions() -> dict[str, str | None]:
    """Versions by name, from metadata: importing torch takes seconds."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("andromeda-scale", *_PACKAGES):
        found[name] = _version(name)
    found["cuda"] = torch_cuda_version()
    wheels = (_version(f"nvidia-nccl-cu{cuda}") for cuda in (13, 12, 11))
    found["nccl"] = next(filter(None, wheels), None)  # null: part of torch, or none
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_state(package: Path) -> dict[str, Any]:
    """Commit of the checkout whose top folder holds the package, and whether the package differs.

    Both are null where it was installed otherwise.
    """
    top = package.parent.resolve()
    root = _git(top, "rev-parse", "--show-toplevel")
    if root is None or Path(root).resolve() != top:
        return {"commit": None, "dirty": None}
    changes = _git(top, "status", "--porcelain", "--", package.name)
    return {
        "commit": _git(top, "rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
    }


def _git(directory: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(directory), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # no git here, no repository, or not ours to read
    return done.stdout.strip()


def _os_release() -> str | None:
    with suppress(OSError):  # no distribution says its name here
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    return None


def _cpu_model() -> str:
    with suppress(OSError):  # no /proc
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        if found:
            return found.group(1)
    return platform.processor() or platform.machine()


def _gpus() -> tuple[str | None, list[dict[str, Any]]]:
    """(driver version, every GPU of this node); (None, []) without a driver."""
    with Nvml() as nvml:
        return nvml.driver(), [
            {"name": gpu.name, "uuid": gpu.uuid, "memory_bytes": nvml.memory_bytes(gpu)}
            for gpu in nvml.gpus
        ]
