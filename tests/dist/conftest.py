"""Fixtures of tests that need real process groups."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from group import Group, Line


@pytest.fixture(scope="session")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    """Starts groups of gloo ranks on this machine's CPU (see `group.py`)."""
    before = os.environ.get("DS_ACCELERATOR")
    os.environ["DS_ACCELERATOR"] = "cpu"  # the forkserver imports DeepSpeed
    yield Group(tmp_path_factory.mktemp("records"))
    if before is None:
        del os.environ["DS_ACCELERATOR"]
    else:
        os.environ["DS_ACCELERATOR"] = before


@pytest.fixture(scope="session")
def run_case(group: Group) -> Callable[..., list[list[Line]]]:
    """run_case(case, world_size) -> the record lines of each rank."""
    return group.run_case
