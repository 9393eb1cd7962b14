"""Where `report` and `compare` write: stdout, or a file that holds none of a run's records."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import typer

from andromeda_scale.errors import UserError
from andromeda_scale.launch.disk import write_atomic

# At the top of a run (see run_dir.py), beside its Parquet files.
_RECORDS = {"plan.json", "suite.yaml", "fingerprint.json", "calibration.json", "lock", "token"}
_RECORDS |= {"cases", "references", "parity", "probes", "searches", "running", "slurm", "tasks"}
# What a shell opened, even where that is a file: to be written to, and not to be replaced.
_OPENED = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/")


def deliver(text: str, output: Path | None) -> None:
    """Text on stdout, or in a file, whole or not at all. Raises UserError where the file cannot be
    written, and what was there before stays."""
    if output is None:
        typer.echo(text.rstrip("\n"))
        return
    try:
        if os.path.abspath(output).startswith(_OPENED) or not _is_file(output):
            output.write_text(text, encoding="utf-8")
        else:
            _replace(Path(os.path.realpath(output)), text)
    except OSError as error:
        raise UserError(
            f"{output}: cannot be written ({error.strerror}); name a file with "
            "--output, in a folder that exists, may be written and has room"
        ) from None


def refuse_records(output: Path, *runs: Path) -> None:
    """Raise UserError where a file to be written is one of a run's own, of these runs or others."""
    place = Path(os.path.realpath(output))  # unlike resolve it takes any name
    named = {os.path.realpath(run) for run in runs}
    for folder in place.parents:
        files = (folder / "plan.json", folder / "lock")
        if str(folder) in named or all(map(os.path.isfile, files)):
            first = place.relative_to(folder).parts[0]
            if first in _RECORDS or first.endswith(".parquet"):
                raise UserError(
                    f"{output}: is one of the run's own files ({folder}), which would be lost; "
                    "name another file with --output, such as table.md"
                )
            return


def _is_file(output: Path) -> bool:
    """Whether a file is there, or nothing; no pipe, device or folder."""
    try:
        return stat.S_ISREG(output.stat().st_mode)
    except FileNotFoundError:
        return True


def _replace(place: Path, text: str) -> None:
    try:
        write_atomic(place, text)
    except OSError:
        place.with_name(f".{place.name}.{os.getpid()}").unlink(missing_ok=True)
        raise
