"""Efficiency over 1, 2, 4 nodes whose links have known rates, beside the closed form.

    python benchmarks/network_scaling.py [--rates 1000,200,50] [--repeats 3]      (root, Debian)

The nodes are those of tests/cluster: a SLURM of network namespaces on this machine, whose links
the kernel limits (tc tbf). One `submit` a rate. DDP of one small model, whose gradients have S
bytes; each rank also waits `--pause` seconds a step for its data, which stands for the compute of
an accelerator: real compute of four ranks would share this machine's cores.

Closed form: a ring sends 2 S (n-1)/n bytes from each of n ranks; a link of r bit/s carries
r/8 * 1448/1514 of them a second (the rest of a frame are headers); nothing overlaps with a pause.
    t_n = t_1 + 2 S (n-1)/n / (r/8 * 1448/1514),    efficiency = t_1 / t_n
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import pandas as pd

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "cluster"))
from cluster import Cluster, install  # noqa: E402

GOODPUT = 1448 / 1514
SUITE = """\
question: what does a limited link leave of the second and the fourth node?
model: andromeda-tiny
data: {{source: random}}
train: {{seq_len: 32}}
world: [1, 2x1, 4x1]
strategy: ddp
parity: "off"
collect: []
threads_per_rank: 1
faults: [{{kind: data, delay_s: {pause_s}}}]
measure: {{warmup: {{min_steps: 3, max_steps: 3}}, steps: 15, repeats: {repeats}, profile_steps: 0}}
device: cpu
"""


def measured(cluster: Cluster, folder: Path, rate: float) -> pd.DataFrame:
    """The cases of the suite with every link at `rate` Mbit/s."""
    cluster.limit_links(rate)
    run = folder / f"at-{rate:g}"
    submit = ["submit", "x.yaml", "--wait", "--run-dir", str(run)]
    done = cluster.run(
        sys.executable, "-m", "andromeda_scale.cli", *submit, cwd=folder, timeout_s=1800,
        environment={"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return pd.read_parquet(run / "results.parquet")


def rows(cases: pd.DataFrame, rate: float) -> list[dict[str, object]]:
    """Measured and closed form, a row a world."""
    base = cases[cases["world_size"] == 1].iloc[0]
    found = []
    for _, case in cases.sort_values("world_size").iterrows():
        n = case["world_size"]
        sent = 2 * 4 * case["num_parameters"] * (n - 1) / n
        predicted_s = base["step_time_s"] + sent / (rate * 1e6 / 8 * GOODPUT)
        expected = base["step_time_s"] / predicted_s
        found.append(
            {
                "link Mbit/s": f"{rate:g}",
                "nodes": n,
                "step ms": f"{1e3 * case['step_time_s']:.0f}",
                "closed form ms": f"{1e3 * predicted_s:.0f}",
                "efficiency %": "base" if n == 1 else _interval(case),
                "closed form %": "" if n == 1 else f"{100 * expected:.1f}",
                "difference": "" if n == 1 else f"{100 * (case['efficiency'] - expected):+.1f}",
            }
        )
    return found


def _interval(case: pd.Series) -> str:
    low, high = (100 * case[f"efficiency_{end}"] for end in ("low", "high"))
    between = "" if pd.isna(low) else f" [{low:.1f}, {high:.1f}]"
    return f"{100 * case['efficiency']:.1f}{between}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", default="1000,200,50", help="Mbit/s of each link")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pause", type=float, default=0.3, help="seconds a rank waits for data")
    arguments = parser.parse_args()
    install()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = SUITE.format(pause_s=arguments.pause, repeats=arguments.repeats)
        (folder / "x.yaml").write_text(text, encoding="utf-8")
        cluster = Cluster(folder / "cluster")
        try:
            table = [
                row
                for rate in map(float, arguments.rates.split(","))
                for row in rows(measured(cluster, folder, rate), rate)
            ]
        finally:
            cluster.close()
    print(pd.DataFrame(table).to_markdown(index=False, disable_numparse=True))


if __name__ == "__main__":
    main()
