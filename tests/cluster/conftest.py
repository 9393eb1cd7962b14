"""The cluster of these tests, started once, and mended between them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from cluster import Cluster
from slurm_packages import NoClusterError, install


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    try:
        install()
        started = Cluster(tmp_path_factory.mktemp("slurm"))
    except NoClusterError as error:
        if os.environ.get("CI"):
            pytest.fail(f"no SLURM cluster: {error}")
        pytest.skip(f"no SLURM cluster: {error}")
    yield started
    started.close()


@pytest.fixture
def cluster(running: Cluster) -> Iterator[Cluster]:
    """Four idle nodes, and nothing queued; made so again afterwards."""
    yield running
    running.mend()
