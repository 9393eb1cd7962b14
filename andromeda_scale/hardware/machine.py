"""What a node offers, found without torch: cores, memory, GPUs that CUDA programs may use."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import psutil

from andromeda_scale.hardware.nvml import Nvml

_CGROUP = Path("/sys/fs/cgroup")
_CPUINFO = Path("/proc/cpuinfo")
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Machine:
    """One node, and how many alike nodes there are."""

    cpu_cores: int  # that this process may use
    gpus: Sequence[int] = ()  # memory in bytes of each GPU that may be used
    memory_bytes: int = 0
    nodes: int = 1


def detect_machine() -> Machine:
    """This machine within the limits of affinity, container and CUDA_VISIBLE_DEVICES."""
    return Machine(_cpu_cores(), _gpus() if torch_cuda_version() else (), host_memory_bytes())


def torch_cuda_version() -> str | None:
    """The CUDA version torch was built for, None for a CPU build or no torch at all.

    Read from torch/version.py, because importing torch takes seconds.
    """
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    version = Path(spec.origin).with_name("version.py")
    text = version.read_text(encoding="utf-8") if version.is_file() else ""
    found = re.search(r"^cuda\b[^=\n]*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return found.group(1) if found else None


@cache
def cpu_has_fp16() -> bool:
    """Whether this CPU computes in float16: oneDNN's condition, which DeepSpeed asks too.

    x86: AVX512-FP16, or the conversions of AVX-NE-CONVERT; arm: half-precision arithmetic.
    """
    try:
        words = set(_CPUINFO.read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return False  # no Linux: then torch's own products are all there is
    arm = {"fphp", "asimdhp"} <= words
    return arm or not words.isdisjoint({"avx512_fp16", "avx_ne_convert"})


def _cpu_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota, _, period = _cgroup("cpu.max").partition(" ")
    if quota.isdecimal() and period.isdecimal():
        cores = min(cores or 1, int(quota) // int(period))
    return max(1, cores or 1)


def host_memory_bytes() -> int:
    """What the node and its container leave to all processes together."""
    total = int(psutil.virtual_memory().total)
    limit = _cgroup("memory.max")
    return min(total, int(limit)) if limit.isdecimal() else total


def process_bytes(field: str) -> int | None:
    """What the kernel says of this process's memory (proc_pid_status(5)): VmHWM, VmRSS, VmData.

    None where there is no such field, or no Linux.
    """
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) * 1024 if found else None


def _cgroup(name: str) -> str:
    try:
        return (_CGROUP / name).read_text(encoding="ascii").strip()
    except OSError:
        return ""  # no cgroup v2 here: no such limit


def _gpus() -> tuple[int, ...]:
    """Usable bytes of the GPUs left visible, in NVML's order; () without a driver."""
    with Nvml() as nvml:
        variable = os.environ.get("CUDA_VISIBLE_DEVICES")
        visible = visible_devices(variable, [gpu.uuid for gpu in nvml.gpus])
        return tuple(nvml.usable_bytes(nvml.gpus[i]) or 0 for i in visible)


def visible_devices(variable: str | None, uuids: Sequence[str]) -> list[int]:
    """Indices that CUDA_VISIBLE_DEVICES leaves, by CUDA's rule: stop at the first unknown entry."""
    if variable is None:
        return list(range(len(uuids)))
    chosen: list[int] = []
    for entry in (part.strip() for part in variable.split(",")):
        matches = [i for i, uuid in enumerate(uuids) if entry and uuid.startswith(entry)]
        if entry.isdecimal() and int(entry) < len(uuids):
            matches = [int(entry)]
        if len(matches) != 1 or matches[0] in chosen:
            break
        chosen += matches
    return chosen
