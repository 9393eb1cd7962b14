"""What unit tests share."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer.testing

# An app's commands are worked out from their signatures: once is enough for all CliRunners.
typer.testing._get_command = cache(typer.testing._get_command)

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small products: a second thread mostly waits

_VERSION_3 = 0x20080522
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Run the test without root's right to read and write whatever permissions say."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    before = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then the upper halves
    assert libc.capget(header, before) == 0
    without = (ctypes.c_uint32 * 6)(*before)
    without[0] &= ~(1 << _CAP_DAC_OVERRIDE | 1 << _CAP_DAC_READ_SEARCH)
    assert libc.capset(header, without) == 0, "capabilities cannot be dropped"
    try:
        yield
    finally:
        libc.capset(header, before)


@pytest.fixture(scope="session")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with something in every figure, which tests only read (see `pages.py`)."""
    from pages import rich_run  # not before OMP_NUM_THREADS is set

    return rich_run(tmp_path_factory.mktemp("rich"))
