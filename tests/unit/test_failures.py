"""How an exception becomes a status."""

from __future__ import annotations

import pytest

from andromeda_scale.rank.failures import Diverged, Invalid, UnavailableHere, end_of

# As torch 2.13 words them (c10/cuda/CUDACachingAllocator.cpp, c10/core/impl/alloc_cpu.cpp).
CUDA = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB "
    "of which 10.44 MiB is free. Including non-PyTorch memory, this process has 79.10 GiB"
)
CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 400000000000000 bytes. Error code 12 (Cannot allocate memory)"
)


# As torch 2.11 said where an eighth of the GPU was free and another lay in segments of other sizes.
IN_PIECES = (
    "CUDA out of memory. Tried to allocate 23.42 GiB. GPU 0 has a total capacity of 139.80 GiB of "
    "which 20.69 GiB is free. Including non-PyTorch memory, this process has 119.10 GiB memory in "
    "use. Of the allocated memory 105.44 GiB is allocated by PyTorch, and 11.99 GiB is reserved by "
    "PyTorch but unallocated."
)


class OutOfMemoryError(RuntimeError):
    """Named as torch's, which needs no import here."""


def test_cuda_out_of_memory_tells_requested_and_free_bytes() -> None:
    end = end_of(OutOfMemoryError(CUDA))
    assert end["status"] == "oom"
    assert end["detail"]["requested_bytes"] == 20 * 2**20
    assert end["detail"]["free_bytes"] == round(10.44 * 2**20)


def test_memory_that_was_there_in_pieces_is_said_with_what_to_set() -> None:
    cause = end_of(OutOfMemoryError(IN_PIECES))["cause"]
    assert cause.startswith("23.42 GiB were free, in pieces; set env.PYTORCH_CUDA_ALLOC_CONF: exp")
    assert "CUDA out of memory" in cause


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("11.99 GiB", "1.99 GiB"),  # not enough in all
        ("20.69 GiB is free", "30.69 GiB is free"),  # one piece: something else refused
        ("in use. Of", "in use. 100.00 GiB allowed; Of"),  # a limit of the process did
        ("by PyTorch, and", "by PyTorch, with 9.00 GiB allocated in private pools, and"),
    ],
)
def test_it_is_not_said_where_it_would_not_help(was: str, now: str) -> None:
    assert was in IN_PIECES
    cause = end_of(OutOfMemoryError(IN_PIECES.replace(was, now)))["cause"]
    assert cause.startswith("CUDA out of memory")


def test_it_is_not_said_to_whom_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    assert end_of(OutOfMemoryError(IN_PIECES))["cause"].startswith("CUDA out of memory")


def test_the_cpu_allocators_error_is_out_of_memory() -> None:
    end = end_of(RuntimeError(CPU))
    assert end["status"] == "oom"
    assert end["detail"]["requested_bytes"] == 400000000000000
    assert end["detail"]["free_bytes"] is None


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("NCCL error: unhandled cuda error, Cuda failure 2 'out of memory'"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    ],
)
def test_other_words_for_out_of_memory(error: BaseException) -> None:
    assert end_of(error)["status"] == "oom"


def test_out_of_memory_is_found_inside_what_wraps_it() -> None:
    try:
        try:
            raise OutOfMemoryError(CUDA)
        except RuntimeError as error:
            raise ValueError("backend compiler failed") from error
    except ValueError as wrapped:
        end = end_of(wrapped)
    assert end["status"] == "oom"
    assert end["cause"].startswith("CUDA out of memory")


@pytest.mark.parametrize(
    ("error", "status"),
    [(Invalid("x"), "invalid"), (UnavailableHere("x"), "unavailable"), (Diverged("x"), "diverged")],
)
def test_the_workers_own_ends_keep_their_status_and_words(error: Exception, status: str) -> None:
    assert {k: end_of(error)[k] for k in ("status", "cause")} == {"status": status, "cause": "x"}


def test_anything_else_crashed_with_one_line_and_a_tail() -> None:
    try:
        raise KeyError("line one\nline two")
    except KeyError as error:
        end = end_of(error)
    assert end["status"] == "crashed"
    assert "\n" not in end["cause"]
    assert end["cause"].startswith("KeyError: ")
    assert "test_failures.py" in "".join(end["detail"]["traceback"])


def test_a_message_that_speaks_of_memory_in_another_error_is_no_oom() -> None:
    assert end_of(KeyError("out of memory"))["status"] == "crashed"


def test_a_keyboard_interrupt_of_the_models_own_is_no_stop_of_the_run() -> None:
    end = end_of(KeyboardInterrupt("raised in forward"))
    assert (end["status"], end["cause"]) == ("crashed", "KeyboardInterrupt: raised in forward")
