"""The GPUs of this node as their driver tells of them through NVML. Empty without a driver."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True)
class Gpu:
    handle: Any  # what NVML's functions are called with
    uuid: str
    name: str


class Nvml(AbstractContextManager["Nvml"]):
    """NVML's library, open from here to `close`; opened as often as it likes to be.

    `functions` is the module whose functions `ask` calls, `gpus` are those that answer, in NVML's
    order, and `missing` says why there are none.
    """

    def __init__(self) -> None:
        self.functions: Any = None
        self.gpus: list[Gpu] = []
        self.missing = ""
        try:
            import pynvml
        except ImportError:
            self.missing = "nvidia-ml-py is not installed"
            return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self.missing = str(error)
            return
        self.functions = pynvml
        for index in range(self.ask(pynvml.nvmlDeviceGetCount) or 0):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                uuid, name = pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle)
            except pynvml.NVMLError as error:  # fallen off the bus, or not this user's
                self.missing = f"GPU {index}: {error}"
                continue
            self.gpus.append(Gpu(handle, _text(uuid), _text(name)))
        if self.gpus:
            self.missing = ""

    def ask(self, function: Callable[..., _T], *arguments: Any, **keywords: Any) -> _T | None:
        """What `function` answers, None where this GPU or driver does not."""
        try:
            return function(*arguments, **keywords)
        except self.functions.NVMLError:
            return None

    def driver(self) -> str | None:
        if not self.functions:
            return None
        version = self.ask(self.functions.nvmlSystemGetDriverVersion)
        return None if version is None else _text(version)

    def memory_bytes(self, gpu: Gpu) -> int | None:
        info = self.ask(self.functions.nvmlDeviceGetMemoryInfo, gpu.handle)
        return None if info is None else int(info.total)

    def usable_bytes(self, gpu: Gpu) -> int | None:
        """Bytes of a GPU that programs may have: all but what its driver keeps for itself."""
        read = self.functions.nvmlDeviceGetMemoryInfo
        info = self.ask(read, gpu.handle, version=self.functions.nvmlMemory_v2)
        if info is None:  # a driver before 510 does not tell them apart
            return self.memory_bytes(gpu)
        return int(info.total - info.reserved)

    def close(self) -> None:
        if self.functions:
            with suppress(self.functions.NVMLError):  # whatever was asked is answered already
                self.functions.nvmlShutdown()

    def __exit__(self, *exception: object) -> None:
        self.close()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
