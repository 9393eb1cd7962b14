"""What works here, and what to install where it does not. Never hangs: all in children with a
time limit, so that a broken driver or a blocked network is an answer too."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from andromeda_scale.machine import detect_machine, torch_cuda_version

TORCH_LIMIT_S = 120.0  # a cold import from a slow disk takes tens of seconds
GROUP_LIMIT_S = 60.0

# What the torch child prints; each fact alone, so that one failure does not hide the others.
_TORCH_FACTS = """
import json, torch, torch.distributed as dist
facts = {"torch": torch.__version__, "cuda": torch.version.cuda, "gloo": dist.is_gloo_available(),
         "nccl": dist.is_nccl_available(), "gpus": []}
if torch.cuda.is_available():
    facts["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts["nccl_version"] = ".".join(map(str, torch.cuda.nccl.version()))
    x = torch.ones(64, 64, device="cuda")
    facts["matmul"] = float((x @ x).sum().item())
print(json.dumps(facts))
"""

# A real group of two processes: the smallest thing every case of a sweep depends on.
_ALL_REDUCE = """
import sys, datetime, torch, torch.distributed as dist
rank, path = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + path, rank=rank, world_size=2,
                        timeout=datetime.timedelta(seconds=30))
x = torch.full((1000,), float(rank + 1))
dist.all_reduce(x)
assert x.eq(3).all(), x
print("sum is right", flush=True)
"""


@dataclass(frozen=True)
class Check:
    """One line of the doctor's answer. `needed` marks what no sweep can do without."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    needed: bool = False


def examine(run_parent: Path) -> Iterator[Check]:
    """Every check in turn, the quick ones first. `run_parent` is where runs are written."""
    yield _python()
    yield _writable(run_parent)
    machine = detect_machine()
    memory_gib = machine.memory_bytes / 2**30
    yield Check("machine", True, f"{machine.cpu_cores} cores, {memory_gib:.0f} GiB of memory")
    for package, used_for in (("deepspeed", "zero1, zero2, zero3"), ("accelerate", "accelerate")):
        yield _package(package, used_for)
    yield from _torch()
    yield _compiler()
    yield _all_reduce()


def _python() -> Check:
    found = sys.version.split()[0]
    ok = sys.version_info >= (3, 11)
    return Check("python", ok, found, "apt install python3.11", needed=True)


def _writable(parent: Path) -> Check:
    name = f"run directory {parent}"
    existing = next(p for p in (parent, *parent.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            free_gib = shutil.disk_usage(existing).free / 2**30
    except OSError as error:
        remedy = f"chmod u+w {existing}, or give --run-dir a folder you own"
        return Check(name, False, f"cannot be written ({error.strerror})", remedy, needed=True)
    return Check(name, True, f"writable, {free_gib:.0f} GiB free", needed=True)


def _package(package: str, used_for: str) -> Check:
    try:
        return Check(package, True, version(package))
    except PackageNotFoundError:
        detail = f"missing; cases of {used_for} will read unavailable"
        return Check(package, False, detail, f"pip install {package}")


def _torch() -> Iterator[Check]:
    answer = _run([sys.executable, "-c", _TORCH_FACTS], TORCH_LIMIT_S)
    if isinstance(answer, str):
        yield Check("torch", False, answer, "pip install -c constraints.txt torch", needed=True)
        return
    facts: dict[str, Any] = json.loads(answer[-1])
    yield Check("torch", True, str(facts["torch"]), needed=True)
    reinstall = "pip install --force-reinstall -c constraints.txt torch"
    yield Check("gloo", bool(facts["gloo"]), "in torch", reinstall, needed=True)
    if facts["gpus"]:
        names = sorted(set(facts["gpus"]))
        yield Check(
            "cuda", True, f"{len(facts['gpus'])} x {', '.join(names)}, CUDA {facts['cuda']}"
        )
        yield Check("nccl", bool(facts["nccl"]), facts.get("nccl_version", "missing"), reinstall)
        return
    driver = shutil.which("nvidia-smi") is not None
    if torch_cuda_version() is None:
        detail = "this torch is a CPU build" + (", the machine has an NVIDIA driver" * driver)
        yield Check("cuda", not driver, detail, "pip install torch (a build for CUDA)")
    else:
        remedy = "look at nvidia-smi and CUDA_VISIBLE_DEVICES"
        yield Check("cuda", not driver, "no GPU can be used", remedy)


def _compiler() -> Check:
    found = next((path for c in ("g++", "clang++") if (path := shutil.which(c))), None)
    detail = found or "none; train.compile needs one on a CPU"
    return Check("C++ compiler", found is not None, detail, "apt install g++ python3-dev")


def _all_reduce() -> Check:
    """Two processes add their tensors over gloo."""
    name = "gloo all-reduce"
    remedy = "let the host name resolve (add it to /etc/hosts), or set GLOO_SOCKET_IFNAME=lo"
    command = [sys.executable, "-c", _ALL_REDUCE]
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        peer = _start([*command, "1", store])
        try:
            answer = _run([*command, "0", store], GROUP_LIMIT_S)
        finally:
            second = _finish(peer, 5.0)
    failure = next((a for a in (answer, second) if isinstance(a, str)), None)
    if failure:
        return Check(name, False, failure, remedy, needed=True)
    return Check(name, True, "2 processes agree", needed=True)


def _start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a limit must end the child's children too
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _finish(child: subprocess.Popen[str], limit_s: float) -> list[str] | str:
    """Lines of stdout, or in one line why there are none."""
    try:
        out, err = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        return f"no answer within {limit_s:.0f} s"
    finally:
        if child.poll() is None:  # out of time, or the user pressed Ctrl-C
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if child.returncode != 0:
        lines = [line for line in err.splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"ended with status {child.returncode}"
    return out.splitlines() or "said nothing"


def _run(command: list[str], limit_s: float) -> list[str] | str:
    return _finish(_start(command), limit_s)
