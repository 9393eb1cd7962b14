"""srun's own forms: agents, and torchrun, started by hand in an allocation."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest
from cluster import Cluster
from submitted import LIMIT_S, Login

FORMS = {
    "agents": (["-m", "andromeda_scale.agent"], []),
    "torchrun": (
        ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-id=1"],
        ["--rdzv-backend=c10d", "--rdzv-endpoint=n1:29500", "-m", "andromeda_scale.agent"],
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("form", FORMS)
def test_agents_that_srun_started_make_the_table(
    form: str, cluster: Cluster, tmp_path: Path
) -> None:
    login = Login(cluster, tmp_path, "world: [1, 2x1]\n")
    first, second = FORMS[form]
    done = cluster.run(
        *("srun", "--nodes=2", "--nodelist=n1,n2", "--ntasks-per-node=1", "--mpi=none"),
        *(sys.executable, *first, *second, "x.yaml", "--run-dir", "run"),
        cwd=tmp_path, environment=login.environment, timeout_s=LIMIT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "does it run on nodes?" in done.stdout
    assert set(login.words().values()) == {"ok"}
    ranks = pd.read_parquet(tmp_path / "run" / "ranks.parquet")
    two = ranks[ranks["world_size"] == 2]
    assert set(zip(two["rank"], two["host"], strict=True)) == {(0, "n1"), (1, "n2")}
