"""What a kill leaves behind: SIGKILL a rank, or the driver, at random moments of a sweep.

    python benchmarks/kills.py [--kills 10] [--seed 0]

Prints a line a kill. A killed rank must leave one `crashed` row that names it, and the sweep goes
on. A killed driver must leave no process, and one sweep that is killed and resumed so often must
end with exactly the plan: every launch once, ok, every record whole, every launch in the table.
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

import pandas as pd
import psutil

from andromeda_scale.launch.run_dir import RunDir

TAG = "ANDROMEDA_SCALE_KILLS"
SETTLE_S = 10.0  # after which nothing may be left
START_S = 8.0  # of a driver: imports, and its first launch
LAUNCH_S = 1.5


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
    _, left = seconds_to_end(word)
    fine = not left
    for item, status in RunDir.open(folder / "ranks").statuses():
        if item.role == "measure":
            row = RunDir.open(folder / "ranks").status(item) or {}
            print(f"rank killed in launch {item.repeat}: {status}, rank {row.get('rank')}: "
                  f"{row.get('cause')}")  # fmt: skip
            fine &= status == "crashed" and "SIGKILL" in str(row.get("cause"))
    print(f"processes left after {kills} killed ranks: {left}")
    return fine


def kill_drivers(folder: Path, kills: int, moments: random.Random) -> bool:
    """One sweep, killed and resumed until it has ended."""
    path = folder / "driver"
    fine, left_s = True, 0.0
    for count in range(kills):
        before = num_ended(path)
        driver, word = start(path, 3 * kills)  # more launches than can end before the last kill
        wait_s = LAUNCH_S * moments.random()
        if wanted := moments.randrange(3):  # else before a launch has ended: imports, the first one
            while num_ended(path) < before + wanted and driver.poll() is None:
                time.sleep(0.01)
        else:
            wait_s = START_S * moments.random()
        time.sleep(wait_s)
        hit = driver.poll() is None
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        seconds, left = seconds_to_end(word)
        left_s = max(left_s, seconds)
        now = num_ended(path)
        print(f"driver kill {count}: {now - before} launches ended, {now} in all; "
              f"{left} processes left after {seconds:.1f} s", flush=True)  # fmt: skip
        fine &= hit and not left
    driver, _ = start(path, 3 * kills)
    status = driver.wait()
    run = RunDir.open(path)
    broken = list(problems(run))
    print(*broken, sep="\n", end="\n" if broken else "")
    ended = f"{num_ended(path)} of {len(run.plan.repeats)} launches"
    print(f"driver killed {kills} times, every process gone within {left_s:.1f} s")
    print(f"resumed: exit {status}, {ended}, {len(broken)} problems")
    return fine and not broken and status == 0


def num_ended(run: Path) -> int:
    try:
        return len([*run.glob("cases/*/*/status.json"), *run.glob("references/*/*/status.json")])
    except FileNotFoundError:
        return num_ended(run)  # a directory was renamed under this look


def seconds_to_end(word: str) -> tuple[float, int]:
    """(seconds until a sweep's processes were gone, how many are left after SETTLE_S)."""
    start_s = time.monotonic()
    while left := len(list(tagged(word))):
        if time.monotonic() - start_s > SETTLE_S:
            break
        time.sleep(0.02)
    return time.monotonic() - start_s, left


def problems(run: RunDir) -> Iterator[str]:
    """What a finished run may not hold: launches that are not planned or not ok, lines that are no
    JSON, ranks without their one end line, anything half moved, a table of other launches."""
    planned = {str(run.case_dir(item)) for item in run.plan.repeats}
    there = {str(path) for path in run.path.glob("*/*/*") if path.is_dir()}  # nobody runs it now
    yield from (f"missing: {path}" for path in planned - there)
    yield from (f"not planned: {path}" for path in there - planned)
    yield from (f"left: {path}" for path in run.path.glob("running/*"))
    for item, word in run.statuses():
        if word != "ok":
            yield f"{word}: {item.case_id} {item.repeat}"
        text = (run.case_dir(item) / "node-0.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        ends = sorted(line["rank"] for line in lines if line["kind"] == "end")
        if ends != list(range(run.plan.cases[item.case_id].world.size)):
            yield f"end lines of ranks {ends}: {item.case_id} {item.repeat}"
    rows = pd.read_parquet(run.path / "results.parquet")
    measured = sum(item.role == "measure" for item in run.plan.repeats)
    if rows["num_repeats_ok"].sum() != measured:
        yield f"results.parquet: {rows['num_repeats_ok'].tolist()} launches of {measured}"


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
