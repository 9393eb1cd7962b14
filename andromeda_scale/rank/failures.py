"""How an exception of a rank becomes a status. No torch at import."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from andromeda_scale.contracts.records import Status
from andromeda_scale.metrics.formats import binary

_UNITS = {"B": 1, "bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE = r"([\d.]+) (bytes|KiB|MiB|GiB|TiB|B)\b"
_REQUESTED = re.compile(rf"[Tt]ried to allocate {_SIZE}")
_FREE = re.compile(rf"of which {_SIZE} is free")
_UNALLOCATED = re.compile(rf"{_SIZE} is reserved by PyTorch but unallocated")
_OUT_OF_MEMORY = (
    "can't allocate memory",  # torch's CPU allocator
    "Cannot allocate memory",  # the operating system
    "out of memory",  # CUDA, also through NCCL
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_DETAIL_LINES = 30


class RepeatEnd(Exception):
    """The repeat ends here with a status of its own."""

    status: Status = "crashed"


class Invalid(RepeatEnd):
    """What was built is not what was asked."""

    status = "invalid"


class DoesNotFit(RepeatEnd):
    """It ran, and used more memory than it may."""

    status = "oom"

    def __init__(self, message: str, used_bytes: int, capacity_bytes: int) -> None:
        super().__init__(message)
        self.room = {"used_bytes": used_bytes, "capacity_bytes": capacity_bytes}


class UnavailableHere(RepeatEnd):
    """Something this case needs is missing on this machine."""

    status = "unavailable"


class Diverged(RepeatEnd):
    """The losses are not the reference's, or not finite: every rank finds the same.

    `odd_ranks`: whose they are, of a world whose other ranks are well; () if it is all of them.
    """

    status = "diverged"

    def __init__(self, message: str, odd_ranks: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.odd_ranks = list(odd_ranks)


def end_of(error: BaseException) -> dict[str, Any]:
    """`status`, `cause` (one line) and `detail` of an end line.

    detail: {"traceback": its last lines}, for oom also requested_bytes and free_bytes (null where
    the error does not tell) or, of what ran in too much memory, used_bytes and capacity_bytes; for
    diverged also odd_ranks.
    """
    tail = "".join(traceback.format_exception(error)).splitlines()[-_DETAIL_LINES:]
    if isinstance(error, RepeatEnd):
        detail: dict[str, Any] = {"traceback": [] if error.__cause__ is None else tail}
        if isinstance(error, Diverged):
            detail["odd_ranks"] = error.odd_ranks
        if isinstance(error, DoesNotFit):
            detail |= error.room
        return {"status": error.status, "cause": _first_line(error), "detail": detail}
    for link in _chain(error):
        if _is_out_of_memory(link):
            return {
                "status": "oom",
                "cause": _in_pieces(str(link)) + _first_line(link),
                "detail": {
                    "requested_bytes": _bytes(_REQUESTED, str(link)),
                    "free_bytes": _bytes(_FREE, str(link)),
                    "traceback": tail,
                },
            }
    # Ranks ignore the signals that stop a run: a KeyboardInterrupt here is the model's own.
    cause = f"{type(error).__name__}: {_first_line(error)}"
    return {"status": "crashed", "cause": cause, "detail": {"traceback": tail}}


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from: a compiler wraps what it failed of."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    return isinstance(error, RuntimeError | OSError) and any(x in text for x in _OUT_OF_MEMORY)


def _in_pieces(text: str) -> str:
    """What to set where there was enough memory, and only not in one piece; '' elsewhere.

    Torch's allocator keeps freed segments of sizes that nothing asks for any more; segments that
    grow leave no such gaps. Not so where a limit of the process refused, or where pools of CUDA
    graphs hold what is unallocated, which nothing else may use.
    """
    if " allowed;" in text or "private pools" in text or "expandable_segments:True" in _allocator():
        return ""
    asked, free, idle = (_bytes(p, text) for p in (_REQUESTED, _FREE, _UNALLOCATED))
    if asked is None or free is None or idle is None or not free < asked <= free + idle:
        return ""
    return (
        f"{binary(asked)} were free, in pieces; "
        "set env.PYTORCH_CUDA_ALLOC_CONF: expandable_segments:True. "
    )


def _allocator() -> str:
    """How torch's allocator was set."""
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    return ",".join(os.environ.get(name, "") for name in names)


def _bytes(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(text)
    return round(float(found[1]) * _UNITS[found[2]]) if found else None


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip()[:500] if lines else type(error).__name__
