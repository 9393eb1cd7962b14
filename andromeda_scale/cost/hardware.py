"""Peaks of known devices, from configs/hardware/devices.yaml. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from pydantic import Field, PositiveFloat, TypeAdapter

from andromeda_scale.suite import resources, safe_yaml
from andromeda_scale.suite.schema import Schema


class DeviceEntry(Schema):
    """One entry of devices.yaml: devices of equal speed."""

    names: tuple[str, ...] = Field(min_length=1)  # whole names, as torch gives them
    peak_flops_per_s: Mapping[str, PositiveFloat]  # by precision, dense
    memory_bytes_per_s: PositiveFloat
    source: str = Field(min_length=1)


@dataclass(frozen=True)
class Peak:
    """What a device can do at best, and who says so."""

    flops_per_s: float
    memory_bytes_per_s: float
    source: str


def peak_flops(device_name: str, precision: str) -> Peak | None:
    """The peak of a device by its whole name; None when device or precision is not listed."""
    device = _devices().get(_key(device_name))
    if device is None or precision not in device.peak_flops_per_s:
        return None
    return Peak(device.peak_flops_per_s[precision], device.memory_bytes_per_s, device.source)


@cache
def _devices() -> dict[str, DeviceEntry]:
    entries, _ = safe_yaml.read(resources.find("hardware", "devices"))
    devices = TypeAdapter(list[DeviceEntry]).validate_python(entries)
    return {_key(name): device for device in devices for name in device.names}


def _key(device_name: str) -> str:
    # Old drivers leave out the maker's name: "A100-SXM4-40GB".
    return " ".join(device_name.lower().split()).removeprefix("nvidia ")
