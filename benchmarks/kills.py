"""What a kill leaves behind: SIGKILL a rank, or the driver, at random moments of a sweep.

    python benchmarks/kills.py [--kills 10] [--seed 0]

Prints a line a kill. A killed rank must leave one `crashed` row that names it, and the sweep goes
on. A killed driver must leave no process, and the resumed sweep must end with exactly the plan.
Exit status 1 if anything else was found.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from andromeda_scale.launch.run_dir import RunDir

TAG = "ANDROMEDA_SCALE_KILLS"
SETTLE_S = 1.0  # after which nothing may be left


def command(run_dir: Path, repeats: int) -> list[str]:
    small = ["measure.steps=5", "measure.warmup={min_steps: 5, max_steps: 5}", "parity=full"]
    sets = [f"measure.repeats={repeats}", "measure.profile_steps=0", *small, "device=cpu"]
    program = "import sys; from andromeda_scale.cli import main; main()"
    return [
        *(sys.executable, "-c", program, "run", "quickstart", "--quiet", "--run-dir", str(run_dir)),
        *(word for key in sets for word in ("--set", key)),
        *("--axis", "strategy=ddp", "--axis", "world=2"),
    ]


def tagged(word: str) -> Iterator[psutil.Process]:
    """Every living process that this one's sweeps started."""
    for process in psutil.process_iter():
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get(TAG) == word:
                yield process
        except psutil.Error:
            continue


def ranks(word: str) -> list[psutil.Process]:
    """The ranks: children of a forkserver."""
    found = []
    for process in tagged(word):
        try:
            parent = process.parent()
            if parent and "andromeda_scale.launch.forkserver" in parent.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def start(run_dir: Path, repeats: int) -> tuple[subprocess.Popen[bytes], str]:
    word = f"{os.getpid()}-{time.monotonic_ns()}"
    driver = subprocess.Popen(
        command(run_dir, repeats),
        env={**os.environ, TAG: word},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return driver, word


def kill_ranks(folder: Path, kills: int, moments: random.Random) -> bool:
    """One sweep, a rank killed in each of its repeats."""
    driver, word = start(folder / "ranks", kills)
    killed: set[str] = set()
    while driver.poll() is None:
        running = [p.name for p in (folder / "ranks/running").glob("*_ddp_*")]
        alive = ranks(word)
        if running and running[0] not in killed and len(alive) == 2:
            time.sleep(moments.uniform(0, 0.5))
            victim = moments.choice(alive)
            if victim.is_running():
                victim.kill()
                killed.add(running[0])
        time.sleep(0.01)
    time.sleep(SETTLE_S)
    left = list(tagged(word))
    fine = not left
    for item, status in RunDir.open(folder / "ranks").statuses():
        if item.role == "measure":
            row = RunDir.open(folder / "ranks").status(item) or {}
            print(f"rank killed in launch {item.repeat}: {status}, rank {row.get('rank')}: "
                  f"{row.get('cause')}")  # fmt: skip
            fine &= status == "crashed" and "SIGKILL" in str(row.get("cause"))
    print(f"processes left after {kills} killed ranks: {len(left)}")
    return fine


def kill_drivers(folder: Path, kills: int, moments: random.Random) -> bool:
    """One sweep, killed and resumed until it has ended."""
    fine = True
    for count in range(kills):
        driver, word = start(folder / "driver", 2 * kills)
        time.sleep(moments.uniform(1.0, 14.0))
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        time.sleep(SETTLE_S)
        left = list(tagged(word))
        ended = len(list((folder / "driver").glob("cases/*/*/status.json")))
        print(f"driver kill {count}: {len(left)} processes left, {ended} launches ended so far")
        fine &= not left
    driver, _ = start(folder / "driver", 2 * kills)
    status = driver.wait()
    run = RunDir.open(folder / "driver")
    rows = sorted(str(p.parent.relative_to(run.path)) for p in run.path.glob("*/*/*/status.json"))
    whole = all(
        json.loads(line) for path in run.path.glob("*/*/*/node-*.jsonl") for line in path.open()
    )
    planned = len(run.plan.repeats)
    print(f"resumed: exit {status}, {len(rows)} of {planned} launches, each once, whole: {whole}")
    return fine and whole and status == 0 and len(rows) == planned


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        fine = kill_ranks(Path(folder), options.kills, moments)
        fine &= kill_drivers(Path(folder), options.kills, moments)
    print("nothing was left behind" if fine else "FAILED")
    sys.exit(not fine)


if __name__ == "__main__":
    main()
