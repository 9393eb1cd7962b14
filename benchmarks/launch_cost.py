"""What a launch costs: seconds of a repeat outside its phases, here and under a cold torchrun.

    python benchmarks/launch_cost.py [--suite quickstart] [--strategy ddp] [--world 2] [--repeats 5]

Both run the same worker on the same case. `here` is a sweep by the driver, `cold` a torchrun per
repeat whose processes import what a forkserver has imported already. Blocks of repeats alternate
in ABBA order. Outside is the wall time of a repeat minus its longest rank's phases; `here` also
pays a start once a sweep, which is printed apart and added in the last column.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from andromeda_scale.contracts.planned import Plan, PlannedRepeat, RankSpec
from andromeda_scale.hardware.machine import detect_machine
from andromeda_scale.launch import driver
from andromeda_scale.launch.run_dir import RunDir
from andromeda_scale.planning.plan import make_plan
from andromeda_scale.planning.suite_file import read_suite

WORKER = "andromeda_scale.worker:main"


@dataclass
class Cost:
    """Seconds of each repeat, and of starting each sweep."""

    wall_s: list[float]
    outside_s: list[float]
    start_s: list[float]


def one_case(arguments: argparse.Namespace) -> Plan:
    """A plan of the one case to be launched `repeats` times, without a reference."""
    sets = [f"world={arguments.world}", "parity='off'", f"measure.repeats={arguments.repeats}"]
    axes = [f"strategy={arguments.strategy}"]
    suite, name, *_ = read_suite(arguments.suite, [*sets, *arguments.sets], axes)
    plan = make_plan(suite, name, detect_machine())
    items = tuple(item for item in plan.repeats if item.case_id == plan.repeats[0].case_id)
    if items[0].skip is not None:
        sys.exit(f"the case cannot run here: {items[0].skip}")
    return plan.model_copy(update={"repeats": items})


def run_here(plan: Plan, path: Path, cost: Cost) -> None:
    """One sweep by the driver."""
    run_dir = RunDir.create(path, plan, "", {})
    started_s = time.monotonic()
    outcome = driver.run(run_dir, quiet=True)
    total_s = time.monotonic() - started_s
    if outcome.statuses.get("ok") != len(plan.repeats):
        sys.exit(f"the driver's repeats did not end ok: {dict(outcome.statuses)} in {path}")
    walls = []
    for item in plan.repeats:
        status = run_dir.status(item) or {}
        walls.append(status["seconds"])
        cost.outside_s.append(status["outside_s"])
    cost.wall_s += walls
    cost.start_s.append(total_s - sum(walls))


def run_cold(item: PlannedRepeat, plan: Plan, path: Path, cost: Cost) -> None:
    """One repeat in a torchrun of its own."""
    path.mkdir(parents=True)
    case = plan.cases[item.case_id]
    spec = {"case": case.model_dump(mode="json"), "item": item.model_dump(mode="json")}
    (path / "spec.json").write_text(json.dumps(spec))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    program = [f"--nproc-per-node={case.world.size}", __file__, "--rank-of", str(path)]
    started_s = time.monotonic()
    ended = subprocess.run([*torchrun, *program], capture_output=True, text=True, check=False)
    wall_s = time.monotonic() - started_s
    longest_s = 0.0
    for rank in range(case.world.size):
        text = (path / f"rank-{rank}.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        if lines[-1].get("status") != "ok":
            sys.exit(f"rank {rank} under torchrun did not end ok: {lines[-1]}\n{ended.stderr}")
        phases = [line for line in lines if line["kind"] == "phase"]
        longest_s = max(longest_s, sum(p["end_s"] - p["start_s"] for p in phases))
    cost.wall_s.append(wall_s)
    cost.outside_s.append(wall_s - longest_s)


def be_a_rank(path: Path) -> None:
    """What torchrun starts: the imports of a forkserver, then the worker."""
    import os

    from andromeda_scale.launch import preload

    os.environ["DS_ACCELERATOR"] = json.loads((path / "spec.json").read_text())["item"]["device"]
    preload.import_all(WORKER)
    from andromeda_scale.worker import main

    rank = int(os.environ["RANK"])
    spec = RankSpec.model_validate(
        json.loads((path / "spec.json").read_text())
        | {
            "rank": rank,
            "world_size": int(os.environ["WORLD_SIZE"]),
            "local_rank": int(os.environ["LOCAL_RANK"]),
            "node_rank": 0,
            "store_host": os.environ["MASTER_ADDR"],
            "store_port": int(os.environ["MASTER_PORT"]),
            "store_prefix": "cold",
            "record_path": str(path / f"rank-{rank}.jsonl"),
        }
    )
    main(spec, lambda phase, step, total: None)
    os._exit(0)


def show(here: Cost, cold: Cost, repeats: int) -> None:
    """The table; reach: a tenth of cold."""
    table = Table("", "wall s", "outside s", "least", "most", "ratio", "outside s with start")
    base_s = statistics.median(cold.outside_s)
    for name, cost in (("here", here), ("cold torchrun", cold)):
        outside_s = statistics.median(cost.outside_s)
        start_s = statistics.median(cost.start_s) / repeats if cost.start_s else 0.0
        table.add_row(
            name,
            f"{statistics.median(cost.wall_s):.2f}",
            f"{outside_s:.3f}",
            f"{min(cost.outside_s):.3f}",
            f"{max(cost.outside_s):.3f}",
            f"{outside_s / base_s:.3f}",
            f"{outside_s + start_s:.3f}",
        )
    console = Console()
    console.print(table)
    started = ", ".join(f"{s:.2f}" for s in here.start_s)
    console.print(
        f"medians of {len(here.wall_s)} and {len(cold.wall_s)}; start of a sweep {started} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--suite", default="quickstart")
    parser.add_argument("--strategy", default="ddp")
    parser.add_argument("--world", default="2")
    parser.add_argument("--repeats", type=int, default=5, help="in each of four blocks")
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE")
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank_of is not None:
        be_a_rank(arguments.rank_of)
    plan = one_case(arguments)
    here, cold = Cost([], [], []), Cost([], [], [])
    with tempfile.TemporaryDirectory() as directory:
        for number, block in enumerate("ABBA"):
            path = Path(directory) / f"{number}{block}"
            if block == "A":
                run_here(plan, path, here)
            else:
                for item in plan.repeats:
                    run_cold(item, plan, path / str(item.repeat), cold)
    show(here, cold, arguments.repeats)


if __name__ == "__main__":
    main()
