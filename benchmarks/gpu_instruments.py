"""The tables of `gpu_results.py` that instruments of the package print: ceilings, faults, cost.

Each is one command, which writes its records into a folder; the table is printed from them alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import overhead
import pandas as pd

from andromeda_scale import selftest
from andromeda_scale.merge import probe
from andromeda_scale.report.probe import probe_table

HERE = Path(__file__).parent
# Large enough that the GPU decides, and not the host.
LARGE = ("--model=cs336-small", "--seq-len=512", "--micro-batch-size=8")


@dataclass(frozen=True)
class Instrument:
    """A command with the folder `{run}` that it makes, its record there, and what that says.

    `printed` gives the table and whether all in it is well. `rehearsal` has the command on a CPU.
    """

    question: str
    command: Sequence[str]
    rehearsal: Sequence[str]
    record: str
    printed: Callable[[Path], tuple[str, bool]]

    def run(self, folder: Path, *, rehearse: bool, **environment: str) -> None:
        """Measure; of what was written the record is kept, in `folder`."""
        words = (*self.command, *self.rehearsal) if rehearse else self.command
        with tempfile.TemporaryDirectory() as scratch:
            measured = Path(scratch) / self.record.partition(".")[0]
            command = [sys.executable, *(word.format(run=measured) for word in words)]
            subprocess.run(command, check=False, env={**os.environ, **environment})
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(measured / self.record, folder)


def _probe(file: Path) -> tuple[str, bool]:
    points = pd.read_parquet(file)
    return probe_table(points, []).to_markdown(), bool(probe.ceilings(points, file.parent))


def _selftest(file: Path) -> tuple[str, bool]:
    findings = selftest.read_findings(file)
    return selftest.to_table(findings), not any(one.failed for one in findings)


def _overhead(file: Path) -> tuple[str, bool]:
    found = pd.read_parquet(file)
    return overhead.to_markdown(found), all(overhead.table_of(found)["claim"].str.match("holds"))


PACKAGE = ("-m", "andromeda_scale.cli")
INSTRUMENTS = {
    "probe": Instrument(
        "What do this machine's GPUs, memory and links reach?",
        (*PACKAGE, "probe", "--run-dir={run}", "--quiet"),
        ("--device=cpu", "--quick", "--world=1"),
        probe.FILE,
        _probe,
    ),
    "selftest": Instrument(
        "What do the instruments find of known truths?",
        (*PACKAGE, "selftest", "--run-dir={run}", "--quick", "--quiet"),
        ("--device=cpu",),
        selftest.RECORD,
        _selftest,
    ),
    "overhead": Instrument(
        "How much longer is the worker's step than one of a bare loop in the same process?",
        (str(HERE / "overhead.py"), "--records={run}/overhead.parquet", "--strategy", "single",
         "ddp", "fsdp2", "--seconds=15", *LARGE),
        ("--model=andromeda-tiny", "--seq-len=32", "--seconds=2", "--device=cpu", "--world=1"),
        "overhead.parquet",
        _overhead,
    ),
}  # fmt: skip
