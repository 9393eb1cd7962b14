"""The doctor's answers: here, where everything works, and where pieces are broken for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from andromeda_scale.commands import doctor, doctor_probes
from andromeda_scale.hardware.machine import Machine
from andromeda_scale.registry import DRIVERS, STRATEGIES

LIMIT_S = 240
TWO_GPUS = Machine(cpu_cores=2, gpus=(1 << 30, 1 << 30))


def test_where_everything_works_every_check_says_what_it_found(tmp_path: Path) -> None:
    checks = {check.name: check for check in doctor.examine(tmp_path)}
    needed = {"python", f"run directory {tmp_path}", "torch", "gloo all-reduce", "quickstart"}
    assert needed <= {check.name for check in checks.values() if check.needed and check.ok}
    named = {"machine", "shared memory", "C++ compiler", "Python headers", "ninja", "cuda"}
    named |= {"precisions", "launcher mpirun", "launcher srun"} | set(doctor._PACKAGES)
    assert named <= set(checks)
    assert checks["gloo all-reduce"].detail == "2 processes agree"
    for name in ("deepspeed", "accelerate", "transformers", "launcher torchrun"):
        assert checks[name].ok, checks[name].detail
    assert all(name in checks["driver native"].detail for name in STRATEGIES)
    for driver in DRIVERS:
        assert "ddp" in checks[f"driver {driver}"].detail.partition(" unavailable")[0]
    for check in checks.values():
        assert check.detail
        assert check.ok or check.remedy


def test_a_package_that_cannot_be_imported_is_named_with_what_it_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deepspeed.py").write_text("raise OSError('its library is not for this CPU')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    _, broken = doctor_probes.torch_facts(("torch", *doctor._PACKAGES))
    assert broken == {"deepspeed": "OSError: its library is not for this CPU"}
    check = doctor._package("deepspeed", broken["deepspeed"])
    assert not check.ok
    assert "zero1, zero2 and zero3 will read unavailable" in check.detail
    assert check.remedy == "pip install --force-reinstall deepspeed"
    native, accelerate = doctor._strategies("cpu", broken)
    assert native.detail.startswith("single, ddp, fsdp2")
    for line in (native, accelerate):
        assert "zero1, zero2, zero3 unavailable: deepspeed cannot be imported" in line.detail


def test_without_torch_the_quickstart_would_not_run_and_the_status_is_one(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13 is missing')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "andromeda_scale.cli", "doctor"], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
        timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAIL  torch: ImportError: libcudart.so.13 is missing" in done.stdout
    assert 'pip install --force-reinstall "torch>=2.11"' in done.stdout


def test_what_is_missing_or_small_is_named_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = doctor._package("no-such-package", None)
    assert (missing.ok, missing.remedy) == (False, "pip install no-such-package")
    assert not doctor._disk(Path("/proc/runs")).ok
    monkeypatch.setattr(doctor, "MIN_FREE_BYTES", 1 << 60)
    full = doctor._disk(tmp_path)
    assert (full.ok, full.needed) == (False, True)
    shared = doctor._shared_memory(tmp_path / "none", TWO_GPUS)
    assert (shared.ok, shared.remedy) == (False, "docker run --shm-size=8g (or --ipc=host)")
    assert doctor._shared_memory(tmp_path / "none", Machine(cpu_cores=2)).ok
    # A GPU that the driver shows and torch cannot use: `device: auto` would mean it.
    lost = list(doctor._torch({"torch": "2.13.0", "gpus": [], "cuda": "13.0"}, {}, TWO_GPUS))[-1]
    assert lost.name == "cuda"
    assert not lost.ok


def test_a_child_that_hangs_or_fails_is_an_answer() -> None:
    hanging = [sys.executable, "-c", "import time; time.sleep(600)"]
    assert doctor_probes.run(hanging, 0.5) == "no answer within 0 s"
    failing = [sys.executable, "-c", "raise SystemExit('no driver')"]
    assert doctor_probes.run(failing, 30.0) == "no driver"
    assert doctor_probes.all_reduce("no_such_backend", 1) is not None
