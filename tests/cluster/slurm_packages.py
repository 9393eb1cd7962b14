"""The programs of a cluster: whether they are here, and their packages where they are not."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "iproute2")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "munged", "ip", "tc", "unshare", "nsenter")


class NoClusterError(Exception):
    """Why no cluster can be started here."""


def install() -> None:
    """Install SLURM and munge where that is allowed. Raises NoClusterError where it is not."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if os.geteuid() != 0:
        raise NoClusterError("needs root: network namespaces, and a munged of its own")
    if missing and shutil.which("apt-get") is None:
        raise NoClusterError(f"{', '.join(missing)} not found, and no apt-get to install them")
    if missing:
        _apt_install()


def _apt_install() -> None:
    policy = Path("/usr/sbin/policy-rc.d")  # keeps apt from starting daemons of its own
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
            done = subprocess.run(
                ["apt-get", "-qq", *command], env=environment, capture_output=True, text=True,
                timeout=240, check=False,
            )  # fmt: skip
            if done.returncode:
                raise NoClusterError(f"apt-get {command[0]} failed: {done.stderr.strip()[-300:]}")
    finally:
        if ours:
            policy.unlink()
