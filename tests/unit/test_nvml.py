"""NVML as drivers answer it that this machine need not have: a library of their answers."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from andromeda_scale.collectors.energy import open_meters
from andromeda_scale.collectors.system import _Gpus
from andromeda_scale.hardware import environment, machine
from andromeda_scale.hardware.nvml import Nvml


class NVMLError(Exception):
    pass


class Library(SimpleNamespace):
    """Two GPUs of a driver; as in NVML, what is not to be had is an NVMLError."""

    NVMLError = NVMLError
    nvmlMemory_v2, NVML_TEMPERATURE_GPU, NVML_CLOCK_SM, NVML_CLOCK_MEM = 2, 0, 1, 2
    opened = 0

    def __getattr__(self, name: str) -> object:
        def fail(*arguments: object) -> None:
            raise NVMLError(name)

        return fail

    def nvmlInit(self) -> None:
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> bytes:
        return f"GPU-{handle}".encode()

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "a GPU"

    def nvmlDeviceGetMemoryInfo(self, handle: int, version: int = 1) -> SimpleNamespace:
        return SimpleNamespace(total=100, used=7, reserved=3)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    found = Library()
    monkeypatch.setitem(sys.modules, "pynvml", found)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return found


def test_what_a_driver_keeps_is_not_there_for_programs(library: Library) -> None:
    assert machine._gpus() == (97, 97)

    def old(handle: int, version: int | None = None) -> SimpleNamespace:
        if version:
            raise NVMLError
        return SimpleNamespace(total=100)

    library.nvmlDeviceGetMemoryInfo = old
    assert machine._gpus() == (100, 100)
    assert library.opened == 0


def test_what_a_gpu_does_not_say_is_none_and_all_else_is_told(library: Library) -> None:
    assert environment._gpus() == (
        None,  # this driver does not tell its version
        [{"name": "a GPU", "uuid": f"GPU-{i}", "memory_bytes": 100} for i in (0, 1)],
    )
    sampled = _Gpus()
    sampled.sample()
    series = sampled.close()["GPU-1"]
    assert series["memory_used_bytes"] == [7]
    assert series["power_w"] == [None]
    meters, why = open_meters()
    assert not [meter for meter in meters if meter.kind == "gpus"]
    assert "a GPU (GPU-1) has no energy counter" in why
    assert library.opened == 0


def test_energy_is_of_the_gpus_that_count_it_until_all_meters_are_closed(library: Library) -> None:
    def counter(handle: int) -> int:
        if handle == 0:
            raise NVMLError
        return 2500

    library.nvmlDeviceGetTotalEnergyConsumption = counter
    meters = [meter for meter in open_meters()[0] if meter.kind == "gpus"]
    assert [(meter.key, meter.read()) for meter in meters] == [("GPU-1", 2.5)]
    assert library.opened == 1
    for meter in meters:
        meter.close()
    assert library.opened == 0


def test_a_gpu_that_is_lost_is_left_out(library: Library) -> None:
    def handle(index: int) -> int:
        if index == 0:
            raise NVMLError("GPU is lost")
        return index

    library.nvmlDeviceGetHandleByIndex = handle
    with Nvml() as nvml:
        assert [gpu.uuid for gpu in nvml.gpus] == ["GPU-1"]
    library.nvmlDeviceGetCount = lambda: 1
    with Nvml() as nvml:
        assert (nvml.gpus, nvml.missing) == ([], "GPU 0: GPU is lost")


def test_without_a_driver_there_are_no_gpus_and_it_says_why(library: Library) -> None:
    def fails() -> None:
        raise NVMLError("Driver Not Loaded")

    library.nvmlInit = fails
    assert machine._gpus() == ()
    assert environment._gpus() == (None, [])
    assert _Gpus().close() == {}
    assert "no GPU: Driver Not Loaded" in open_meters()[1]
