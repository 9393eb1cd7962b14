"""Writing where space may end and readers may look at any moment."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from andromeda_scale.errors import UserError


def is_full(error: OSError) -> bool:
    """Whether an error says that there is no space left."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def full_disk(path: Path, error: OSError) -> str:
    """What to tell the user of a run directory without space."""
    why = os.strerror(error.errno or errno.ENOSPC)  # pyarrow's own words are longer
    return f"{path}: disk full ({why}); free space, then `andromeda-scale resume {path}`"


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that a reader sees all of it or what was there before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def make_writable(path: Path) -> None:
    """Make a run directory. Raises UserError where nothing can be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be used as the run directory ({error.strerror}); choose a writable "
            "one with --run-dir"
        ) from None
