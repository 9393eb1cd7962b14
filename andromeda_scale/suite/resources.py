"""Finds the files the package ships, or a user's own in their place, and copies them. No torch.

In a wheel they lie below andromeda_scale/shipped, in the repository at its top.
"""

from __future__ import annotations

import difflib
import os.path
import shutil
from pathlib import Path
from typing import Literal

from andromeda_scale.errors import UserError
from andromeda_scale.suite import paths

Kind = Literal["suites", "models", "hardware", "deepspeed"]

_PACKAGE = Path(__file__).resolve().parents[1]
TOP = next(top for top in (_PACKAGE / "shipped", _PACKAGE.parent) if (top / "configs").is_dir())
SHIPPED = TOP / "configs"
_SUFFIXES = (".yaml", ".yml", ".json")
# What `init` copies: folders of files to edit. hardware/ is data about devices, not a choice.
_TO_EDIT = ("configs/suites", "configs/models", "configs/deepspeed", "launch", "slurm")


def names(kind: Kind) -> list[str]:
    """Names of the shipped files of one kind, sorted."""
    return sorted(f.stem for f in (SHIPPED / kind).glob("*") if f.suffix in _SUFFIXES)


def find(kind: Kind, name: str) -> Path:
    """The file at the path `name`, or the shipped file of that name.

    A name with a slash or a suffix is a path. Raises UserError naming the nearest known name.
    """
    if _is_path(name):
        if paths.exists(Path(name)):
            return Path(name)
        at = "" if Path(name).is_absolute() else f" in {Path.cwd()}"
        raise UserError(
            f"{name}: no such file{at}; give the path of a file, "
            f"or one of the shipped {kind}: {', '.join(names(kind))}"
        )
    for suffix in _SUFFIXES:
        if os.path.isfile(shipped := SHIPPED / kind / f"{name}{suffix}"):
            return shipped
    if name and os.path.isdir(name):
        return Path(name)  # its reader says what may be meant
    close = difflib.get_close_matches(name, names(kind), n=1)
    remedy = f"did you mean {close[0]}?" if close else f"use one of {', '.join(names(kind))}."
    raise UserError(
        f"{name}: no shipped {kind.removesuffix('s')} of this name; {remedy} "
        "A file of yours needs its suffix"
    )


def beside(kind: Kind, name: str, suite_folder: Path, folder: Path) -> str:
    """What `name` means for a suite: a path starts at `folder`; a name is first looked for in
    ../KIND of the suite's folder, where `init` puts its copies."""
    if _is_path(name):
        return str(folder / name)
    for suffix in _SUFFIXES:
        if os.path.isfile(near := suite_folder.parent / kind / f"{name}{suffix}"):
            return str(near)
    return name


def copy_to(folder: Path) -> list[Path]:
    """Copy what a user may edit into `folder`; the copies, sorted.

    Raises UserError naming the first file that is there already, with nothing written.
    """
    pairs = [
        (source, folder / Path(part).name / source.relative_to(TOP / part))
        for part in _TO_EDIT
        for source in sorted((TOP / part).rglob("*"))
        if source.is_file() and source.suffix in (*_SUFFIXES, ".sh", ".sbatch")
    ]
    taken = next((copy for _, copy in pairs if paths.exists(copy) or copy.is_symlink()), None)
    if taken is not None:
        raise UserError(f"{taken}: is there already; nothing was written, name another folder")
    try:
        for source, copy in pairs:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy)
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: cannot be written ({error.strerror}); name a folder "
            "that you own"
        ) from None
    return [copy for _, copy in pairs]


def _is_path(name: str) -> bool:
    return "/" in name or "\\" in name or name.endswith(_SUFFIXES)
