"""Runs of tests that can be merged, and changes to their records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from run_files import make_case, rank_lines, write_plan, write_repeat

from andromeda_scale.hardware import environment
from andromeda_scale.merge import merge_run

ENVIRONMENT = environment.collect()


def even_run(directory: Path, *, world: int = 2, repeats: int = 3) -> tuple[Path, Any]:
    """A run of one ddp case whose every rank and repeat takes 0.1 s a step for 4 steps."""
    case = make_case("ddp", world)
    write_plan(directory, [case], repeats)
    for repeat in range(repeats):
        lines = [line for rank in range(world) for line in rank_lines(rank, [0.1] * 4)]
        write_repeat(directory, case, repeat, lines, environment=ENVIRONMENT)
    return directory, case


def half_measured_run(directory: Path) -> Path:
    """A run of one case that was measured and one that was not."""
    case, other = make_case("ddp"), make_case("ddp", world=2)
    write_plan(directory, [case, other], repeats=1)
    write_repeat(directory, case, 0, rank_lines(0, [0.1] * 4))
    return directory


def place_of(directory: Path, case: Any, repeat: int) -> Path:
    return directory / "cases" / case.case_id / str(repeat)


def case_row(directory: Path) -> dict[str, Any]:
    (row,) = merge_run(directory).cases.to_dict("records")
    return row


def change_line(place: Path, rank: int, phase: str, change: Any, keep: bool = False) -> None:
    """Change a rank's line of a phase (or kind), or add the changed one after it."""
    lines = []
    for text in (place / "node-0.jsonl").read_text().splitlines():
        line = json.loads(text)
        if line["rank"] == rank and phase in (line.get("phase"), line["kind"]):
            lines += [line] if keep else []
            line = change(json.loads(text))
        lines.append(line)
    (place / "node-0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
