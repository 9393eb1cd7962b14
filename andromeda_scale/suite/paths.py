"""Looks at paths that anybody may have written: too long, not ours to see, or no file. No torch."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from andromeda_scale.errors import UserError

# What a shell has opened already: `plan <(make-suite)`, `make-suite | ... plan /dev/stdin`.
_OPENED = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")


def exists(path: Path) -> bool:
    """Whether something is there. Raises UserError where that cannot be known."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:  # ValueError: a name no file system allows
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be looked up ({why}); give another path") from None
    return True


def refuse_endless(path: Path) -> None:
    """Raise UserError for a pipe or a device, whose reader may wait for ever.

    OSError where nothing is there.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or os.fspath(path).startswith(_OPENED)):
        raise UserError(f"{path}: is a pipe, a socket or a device; give the path of a file")
