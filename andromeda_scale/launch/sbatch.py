"""Renders sbatch scripts: a template, and a suite's values quoted into it. Pure functions."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from andromeda_scale.errors import UserError
from andromeda_scale.suite.slurm import Slurm

NOTICE_S = 60  # before the time limit: to close the repeat, and to merge
_PLAIN = re.compile(r"[A-Za-z0-9_./:=,%@+-]+")
_BLANK = re.compile(r"@(\w+)@")
_BLANKS = ("directives", "setup", "agent")


def render(template: str, name: str, values: Mapping[str, str]) -> str:
    """The template `name` with every @blank@ filled in. Raises UserError where one is missing."""
    found = _BLANK.findall(template)
    for blank in dict.fromkeys((*_BLANKS, *found)):
        if blank not in values:
            raise UserError(
                f"{name}: @{blank}@ is no blank of a template; use @{'@, @'.join(_BLANKS)}@"
            )
        if found.count(blank) != 1:
            raise UserError(
                f"{name}: holds @{blank}@ {found.count(blank)} times; write it once, as in "
                "slurm/allocation.sbatch (`andromeda-scale init DIR` copies it)"
            )
    return _BLANK.sub(lambda match: values[match[1]], template)


def directives(slurm: Slurm, name: str, log: Path, *options: str) -> str:
    """The #SBATCH lines of a job: its section, its log, and what its form needs (`options`)."""
    output = str(log.parent).replace("%", "%%") + f"/{log.name}"
    lines = [f"--job-name={name}", f"--output={output}", "--open-mode=append", *options]
    for key in ("partition", "account", "qos", "time", "gres", "constraint"):
        if (value := getattr(slurm, key)) is not None:
            lines.append(f"--{key}={value}")
    lines += ["--exclusive"] * slurm.exclusive + list(slurm.extra)
    return "\n".join(f"#SBATCH {_directive(line)}" for line in lines)


def _directive(text: str) -> str:
    """One option as sbatch's own parser of scripts reads it, which is no shell's: in double quotes
    only a backslash and a quote need a backslash. `--mem 0` stays two words."""
    name, space, value = text.partition(" ")
    if space and "=" not in name:
        return f"{_quoted(name)} {_quoted(value)}"
    return _quoted(text)


def _quoted(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def setup(slurm: Slurm) -> str:
    """Shell lines before the agents start."""
    return "\n".join(f"module load {shlex.quote(module)}" for module in slurm.modules)


def agent(slurm: Slurm, arguments: Sequence[str], *, gpus: bool) -> str:
    """The words after `srun` that start one agent, within the container where there is one."""
    python = slurm.python or ("python" if slurm.container else sys.executable)
    words = [python, "-m", "andromeda_scale.agent", *arguments]
    if (box := slurm.container) is not None:
        if box.runtime == "pyxis":
            words = [f"--container-image={box.image}", *box.options, *words]
        else:
            gpu = ["--nv"] * gpus
            words = ["apptainer", "exec", *gpu, *box.options, box.image, *words]
    return shlex.join(words)
