"""Efficiency over 1, 2, 4 nodes whose links have known rates, beside the closed form.

    python benchmarks/network_scaling.py [--rates 1000,200,50] [--repeats 3] [--plot FILE]

Needs root on Debian. The nodes are those of tests/cluster: a SLURM of network namespaces on this
machine, whose links the kernel limits (tc tbf). One `submit` a rate. DDP of one small model, whose
gradients have S bytes; each rank also waits `--pause` seconds a step for its data, which stands for
the compute of an accelerator: real compute of four ranks would share this machine's cores.

Closed form: a ring sends 2 S (n-1)/n bytes from each of n ranks; a link of r bit/s carries
r/8 * 1448/1514 of them a second (the rest of a frame are headers); nothing overlaps with a pause.
    t_n = t_1 + 2 S (n-1)/n / (r/8 * 1448/1514),    efficiency = t_1 / t_n
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "cluster"))
from cluster import Cluster  # noqa: E402  tests are no package
from slurm_packages import install  # noqa: E402

GOODPUT = 1448 / 1514
SIZE = (720, 420)  # of the plot, pixels
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


def rows(cases: pd.DataFrame, rate: float) -> pd.DataFrame:
    """Measured and closed form, a row a world; efficiencies in percent."""
    base = cases[cases["world_size"] == 1].iloc[0]
    worlds = cases.sort_values("world_size").reset_index(drop=True)
    n = worlds["world_size"]
    predicted_s = base["step_time_s"] + sent_s(n, base["num_parameters"], rate)
    return pd.DataFrame(
        {
            "rate": rate,
            "nodes": n,
            "step_ms": 1e3 * worlds["step_time_s"],
            "form_ms": 1e3 * predicted_s,
            "efficiency": 100 * worlds["efficiency"],
            "low": 100 * worlds["efficiency_low"],
            "high": 100 * worlds["efficiency_high"],
            "form": 100 * base["step_time_s"] / predicted_s,
        }
    )


def sent_s(nodes: Any, num_parameters: float, rate: float) -> Any:
    """Seconds in which a link of `rate` Mbit/s carries a ring's part of fp32 gradients."""
    return 2 * 4 * num_parameters * (nodes - 1) / nodes / (rate * 1e6 / 8 * GOODPUT)


def table(found: pd.DataFrame) -> str:
    """The rows as Markdown; a world of one is the base."""
    shown = [
        {
            "link Mbit/s": f"{row.rate:g}",
            "nodes": row.nodes,
            "step ms": f"{row.step_ms:.0f}",
            "closed form ms": f"{row.form_ms:.0f}",
            "efficiency %": "base" if row.nodes == 1 else _interval(row),
            "closed form %": "" if row.nodes == 1 else f"{row.form:.1f}",
            "difference": "" if row.nodes == 1 else f"{row.efficiency - row.form:+.1f}",
        }
        for row in found.itertuples()
    ]
    return str(pd.DataFrame(shown).to_markdown(index=False, disable_numparse=True))


def _interval(row: Any) -> str:
    between = "" if pd.isna(row.low) else f" [{row.low:.1f}, {row.high:.1f}]"
    return f"{row.efficiency:.1f}{between}"


def plot(found: pd.DataFrame, file: Path) -> None:
    """Measured points with their intervals on the closed form's lines, as a PNG by chromium."""
    from plotly import graph_objects as go
    from plotly.colors import qualitative

    figure = go.Figure()
    for (rate, of_rate), color in zip(
        found.groupby("rate", sort=False), qualitative.Safe, strict=False
    ):
        base = of_rate.iloc[0]
        worst = of_rate.iloc[-1]
        # t_n = t_1 + a (n-1)/n, with a as the last row's closed form has it
        full_ms = (worst["form_ms"] - base["form_ms"]) * worst["nodes"] / (worst["nodes"] - 1)
        nodes = np.linspace(1, worst["nodes"], 60)
        line = 100 / (1 + full_ms / base["form_ms"] * (nodes - 1) / nodes)
        points = of_rate[of_rate["nodes"] > 1]
        up, down = points["high"] - points["efficiency"], points["efficiency"] - points["low"]
        bars = {"type": "data", "array": up, "arrayminus": down, "symmetric": False}
        more = {"mode": "markers", "marker": {"color": color, "size": 9}, "error_y": bars}
        name = f"{rate:g} Mbit/s"
        figure.add_scatter(x=nodes, y=line, mode="lines", line={"color": color}, showlegend=False)
        figure.add_scatter(x=points["nodes"], y=points["efficiency"], name=name, **more)
    figure.update_layout(
        template="plotly_white", width=SIZE[0], height=SIZE[1], margin={"t": 30, "r": 20},
        xaxis={"title": "nodes", "tickvals": found["nodes"].unique()},
        yaxis={"title": "efficiency %", "range": [0, 105]},
        title={"text": "lines: closed form; points: measured, 95 %", "font": {"size": 13}},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "plot.html"
        figure.write_html(page, config={"staticPlot": True})
        page.write_text(page.read_text().replace("<body>", '<body style="margin:0">'))
        chromium = ["chromium", "--headless=new", "--no-sandbox", "--hide-scrollbars"]
        size = f"--window-size={SIZE[0]},{SIZE[1]}"
        wanted = [size, "--virtual-time-budget=10000", f"--screenshot={file.absolute()}"]
        subprocess.run(
            [*chromium, *wanted, page.as_uri()], check=True, capture_output=True, timeout=120
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", default="1000,200,50", help="Mbit/s of each link")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="a PNG to write, too (needs chromium)")
    parser.add_argument("--pause", type=float, default=0.3, help="seconds a rank waits for data")
    arguments = parser.parse_args()
    install()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = SUITE.format(pause_s=arguments.pause, repeats=arguments.repeats)
        (folder / "x.yaml").write_text(text, encoding="utf-8")
        cluster = Cluster(folder / "cluster")
        try:
            rates = map(float, arguments.rates.split(","))
            found = pd.concat([rows(measured(cluster, folder, rate), rate) for rate in rates])
        finally:
            cluster.close()
    print(table(found))
    if arguments.plot is not None:
        plot(found, arguments.plot)


if __name__ == "__main__":
    main()
