"""What works here, and the command that mends what does not. Whatever may hang or crash runs in a
child (`doctor_probes`)."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from andromeda_scale.commands import doctor_probes
from andromeda_scale.errors import UserError
from andromeda_scale.hardware.distortion import distortions
from andromeda_scale.hardware.machine import Machine, detect_machine
from andromeda_scale.registry import DRIVERS, STRATEGIES, load
from andromeda_scale.suite import precision
from andromeda_scale.suite.training import Train
from andromeda_scale.suite.world import World

MIN_FREE_BYTES = 100 << 20  # of disk, for a run's records and tables
MIN_SHARED_BYTES = 512 << 20  # of /dev/shm where GPUs talk through it; Docker gives 64 MiB

# Packages that may be missing, and what is unavailable without each.
_PACKAGES = {
    "deepspeed": "zero1, zero2 and zero3",
    "accelerate": "driver accelerate",
    "transformers": "Hugging Face models, and zero1 to zero3 by driver accelerate",
}
# What `report --to` sends results with, and the package of each.
_TRACKERS = {"tensorboard": "tensorboard", "mlflow": "mlflow-skinny", "wandb": "wandb"}
# Programs that start agents, and what brings each.
_LAUNCHERS = {
    "torchrun": "pip install torch",
    "accelerate": "pip install accelerate",
    "deepspeed": "pip install deepspeed",
    "mpirun": "apt install openmpi-bin",
    "srun": "apt install slurm-client, on a cluster that runs SLURM",
}


@dataclass(frozen=True)
class Check:
    """One line of the doctor's answer. `needed` marks what the quickstart cannot do without."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    needed: bool = False


def examine(run_parent: Path) -> Iterator[Check]:
    """Every check in turn, the quick ones first. `run_parent` is where runs are written."""
    machine = detect_machine()
    yield _python()
    yield _disk(run_parent)
    memory_gib = machine.memory_bytes / 2**30
    yield Check("machine", True, f"{machine.cpu_cores} cores, {memory_gib:.0f} GiB of memory")
    yield _shared_memory(Path("/dev/shm"), machine)
    yield _variables(machine)
    yield from _build_tools()
    yield from (_launcher(name, remedy) for name, remedy in _LAUNCHERS.items())
    facts, broken = doctor_probes.torch_facts(("torch", *_PACKAGES))
    yield from _torch(facts, broken, machine)
    yield from (_package(name, broken.get(name)) for name in _PACKAGES)
    yield from (_tracker(name, package) for name, package in _TRACKERS.items())
    if facts:
        device = "cuda" if facts["gpus"] else "cpu"
        yield _precisions(facts, device)
        yield from _groups(facts)
        yield from _strategies(device, broken)
    yield _quickstart(machine)


def _python() -> Check:
    found = sys.version.split()[0]
    ok = sys.version_info >= (3, 11)
    return Check("python", ok, found, "apt install python3.11", needed=True)


def _disk(parent: Path) -> Check:
    name = f"run directory {parent}"
    existing = next(p for p in (parent, *parent.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            free = shutil.disk_usage(existing).free
    except OSError as error:
        remedy = f"chmod u+w {existing}, or give --run-dir a folder you own"
        return Check(name, False, f"cannot be written ({error.strerror})", remedy, needed=True)
    remedy = f"free {MIN_FREE_BYTES >> 20} MiB there, or give --run-dir another disk"
    detail = f"writable, {free / 2**30:.1f} GiB free"
    return Check(name, free >= MIN_FREE_BYTES, detail, remedy, needed=True)


def _shared_memory(folder: Path, machine: Machine) -> Check:
    """GPUs of one machine that cannot reach each other's memory talk through it."""
    several = len(machine.gpus) > 1
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        free, detail = 0, f"{folder}: {error.strerror}"
    else:
        detail = f"{free / 2**20:,.0f} MiB free in {folder}"
    ok = free >= MIN_SHARED_BYTES or not several
    return Check("shared memory", ok, detail, "docker run --shm-size=8g (or --ipc=host)")


def _variables(machine: Machine) -> Check:
    """Whether the shell holds what would distort every number."""
    found = distortions(os.environ, "cuda" if machine.gpus else "cpu")
    names = " ".join(line.partition("=")[0] for line in found)
    effects = "; ".join(line.partition("; ")[0] for line in found)
    return Check("variables", not found, effects or "none distorts a measurement", f"unset {names}")


def _build_tools() -> Iterator[Check]:
    compiler = next((path for c in ("g++", "clang++") if (path := shutil.which(c))), None)
    detail = compiler or "none; train.compile needs one"
    yield Check("C++ compiler", compiler is not None, detail, "apt install g++")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    detail = str(header) if header.exists() else f"{header} is missing; train.compile needs it"
    yield Check("Python headers", header.exists(), detail, "apt install python3-dev")
    ninja = shutil.which("ninja")
    detail = (
        ninja or "missing; DeepSpeed builds kernels of its own with it, which no suite asks for"
    )
    yield Check("ninja", ninja is not None, detail, "pip install ninja")


def _launcher(name: str, remedy: str) -> Check:
    # A script of this environment is there although the shell may not have activated it.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(name, path=path)
    detail = found or "missing; andromeda-scale run does without it"
    return Check(f"launcher {name}", found is not None, detail, remedy)


def _torch(
    facts: Mapping[str, Any], broken: Mapping[str, str], machine: Machine
) -> Iterator[Check]:
    if "torch" in broken or not facts:
        remedy = 'pip install --force-reinstall "torch>=2.11"'
        yield Check("torch", False, broken.get("torch", "says nothing"), remedy, needed=True)
        return
    yield Check("torch", True, str(facts["torch"]), needed=True)
    needed = bool(machine.gpus)  # then `device: auto` means them
    if facts["gpus"]:
        names = sorted(set(facts["gpus"]))
        detail = f"{len(facts['gpus'])} x {', '.join(names)}, CUDA {facts['cuda']}"
        yield Check("cuda", True, detail, needed=needed)
    elif facts["cuda"] is None:
        driver = shutil.which("nvidia-smi") is not None
        detail = "this torch is a CPU build" + (", the machine has an NVIDIA driver" * driver)
        remedy = "pip install --force-reinstall torch, a build for CUDA"
        yield Check("cuda", not driver, detail, remedy)
    else:
        detail = "no GPU can be used by torch"
        remedy = "run nvidia-smi; set CUDA_VISIBLE_DEVICES; install a driver for this CUDA"
        yield Check("cuda", not needed, detail, remedy, needed=needed)


def _package(name: str, error: str | None) -> Check:
    """Whether it is there and can be imported."""
    try:
        found = version(name)
    except PackageNotFoundError:
        detail = f"missing; {_PACKAGES.get(name, 'what needs it')} will read unavailable"
        return Check(name, False, detail, f"pip install {name}")
    if error is not None:
        detail = f"{found} cannot be imported ({error}); {_PACKAGES[name]} will read unavailable"
        return Check(name, False, detail, f"pip install --force-reinstall {name}")
    return Check(name, True, found)


def _tracker(name: str, package: str) -> Check:
    """Whether results can go there; not imported, for that takes seconds."""
    try:
        return Check(f"tracker {name}", True, version(package))
    except PackageNotFoundError:
        detail = f"missing; report --to {name} needs it, and nothing else"
        return Check(f"tracker {name}", False, detail, f"pip install {package}")


def _precisions(facts: Mapping[str, Any], device: str) -> Check:
    refused = {p: precision.refusal(p, device) for p in precision.POLICIES}
    if device == "cuda":
        ampere = tuple(facts["capability"]) >= (8, 0)
        refused["tf32"] = None if ampere else "needs compute capability 8.0"
        refused["bf16"] = None if facts["bf16"] else "would be emulated on this GPU"
    works = ", ".join(name for name, reason in refused.items() if reason is None)
    fails = [f"{n}: {r.partition(': ')[2] or r}" for n, r in refused.items() if r is not None]
    detail = "; ".join([f"{device} computes in {works}", *fails])
    return Check("precisions", True, detail)


def _groups(facts: Mapping[str, Any]) -> Iterator[Check]:
    """Processes that add their tensors: over gloo, and over NCCL where there are GPUs."""
    reinstall = 'pip install --force-reinstall "torch>=2.11"'
    remedy = "add this host's name to /etc/hosts, or: export GLOO_SOCKET_IFNAME=lo"
    yield _group("gloo", 2, bool(facts["gloo"]), remedy, reinstall)
    if facts["gpus"]:
        remedy = "run it again after: export NCCL_DEBUG=WARN"
        yield _group("nccl", min(2, len(facts["gpus"])), bool(facts["nccl"]), remedy, reinstall)


def _group(backend: str, size: int, in_torch: bool, remedy: str, reinstall: str) -> Check:
    name = f"{backend} all-reduce"
    if not in_torch:
        return Check(name, False, f"this torch has no {backend}", reinstall, needed=True)
    failure = doctor_probes.all_reduce(backend, size)
    processes = f"{size} process{'es' * (size > 1)}"
    detail = failure or f"{processes} agree{'s' * (size == 1)}"
    return Check(name, failure is None, detail, remedy, needed=True)


def _strategies(device: str, broken: Mapping[str, str]) -> Iterator[Check]:
    """What each driver can run on this kind of device, and why not the rest."""
    for driver in ("native", *DRIVERS):
        works, reasons = [], dict[str, list[str]]()
        for name in STRATEGIES:
            reason = _unavailable(name, driver, device, broken)
            if reason is None:
                works.append(name)
            else:
                reasons.setdefault(reason.replace(f"{name}'s", "its"), []).append(name)
        why = (f"{', '.join(names)} unavailable: {reason}" for reason, names in reasons.items())
        yield Check(f"driver {driver}", True, "; ".join([", ".join(works) or "nothing", *why]))


def _unavailable(name: str, driver: str, device: str, broken: Mapping[str, str]) -> str | None:
    """Why a strategy with its default options cannot run on two ranks under a driver."""
    strategy = load("strategy", name)
    world = World(ranks_per_node=2 if strategy.distributed else 1)
    packages = list(strategy.requires)
    if driver != "native":
        packages += load("driver", driver).requires_for(strategy)
    lacking = [package for package in packages if package in broken]
    if lacking:
        return f"{', '.join(lacking)} cannot be imported"
    reason: str | None = strategy.refuses(strategy.Options(), Train(), world, device)
    if reason is None and driver != "native":
        reason = load("driver", driver).refuses(strategy, Train(), world, device)
    return reason


def _quickstart(machine: Machine) -> Check:
    """Whether the first thing that anybody types has something to launch."""
    from andromeda_scale.planning.plan import make_plan, require_runnable
    from andromeda_scale.planning.suite_file import read_suite

    try:
        loaded = read_suite("quickstart")
        plan = make_plan(loaded.suite, loaded.name, machine, loaded.where)
        require_runnable(plan, loaded.where)
    except UserError as error:
        remedy = 'pip install --force-reinstall "andromeda-scale"'
        return Check("quickstart", False, str(error), remedy, needed=True)
    launches = [item for item in plan.repeats if item.skip is None]
    devices = ", ".join(sorted({item.device for item in launches}))
    return Check("quickstart", True, f"{len(launches)} launches on {devices}", needed=True)
