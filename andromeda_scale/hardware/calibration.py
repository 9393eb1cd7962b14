"""What this machine is known to reach, and to blame by chance: kept between runs. No torch.

One JSON object per kind of hardware, in ${XDG_CACHE_HOME:-~/.cache}/andromeda_scale/calibration/:

    hardware   what of a fingerprint it holds for
    ceilings   by `andromeda-scale probe`
    floors     by `andromeda-scale selftest`: {"<device>/<world_size>": {"blame_s": seconds, ...}}
    problem    only in what `load` and `read` return: why nothing, or not everything, could be read

A run directory gets a copy, so that a merge needs nothing but the run directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from andromeda_scale.hardware.environment import HARDWARE

Section = Literal["ceilings", "floors"]
FILE = "calibration.json"  # the copy in a run directory


def directory() -> Path:
    """Where calibrations lie; a relative XDG_CACHE_HOME is none, as its specification says."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    cache = Path(given) if os.path.isabs(given) else Path(os.path.expanduser("~")) / ".cache"
    return cache / "andromeda_scale" / "calibration"


def path_of(hardware: Mapping[str, Any]) -> Path:
    """The file of a kind of hardware; `hardware` may be a whole fingerprint."""
    text = json.dumps(_kind(hardware), sort_keys=True, default=str)
    return directory() / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def load(hardware: Mapping[str, Any]) -> dict[str, Any]:
    """What is stored for this hardware; empty if nothing is. Never raises for a damaged file."""
    return read(path_of(hardware))


def read(path: Path) -> dict[str, Any]:
    """The sections of a calibration file, in a cache or in a run directory."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        return {"problem": f"{path}: cannot be read ({error.strerror})"}
    except (ValueError, RecursionError):
        return {"problem": f"{path}: is not a JSON file; delete it and calibrate again"}
    if not isinstance(found, dict):
        return {"problem": f"{path}: holds no object; delete it and calibrate again"}
    known: dict[str, Any] = {}
    for name in (*get_args(Section), "hardware"):
        if isinstance(found.get(name), dict):
            known[name] = found[name]
        elif name in found:
            known["problem"] = f"{path}: {name}: is no object; delete it and calibrate again"
    if isinstance(found.get("problem"), str):  # of the file that a run directory has a copy of
        known.setdefault("problem", found["problem"])
    return known


def store(hardware: Mapping[str, Any], section: Section, values: Mapping[str, Any]) -> Path:
    """Replace one section, whole or not at all; returns the file. Raises OSError."""
    path = path_of(hardware)
    kept = {name: value for name, value in load(hardware).items() if name in get_args(Section)}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"hardware": _kind(hardware), **kept, section: values}, indent=1)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text + "\n")
    os.replace(file.name, path)
    return path


def _kind(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    return {name: fingerprint.get(name) for name in HARDWARE}
