"""The `slurm:` section of a suite: what `submit` asks of SLURM. No torch."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from andromeda_scale.suite.schema import Schema, shown, with_tuples

# One line of text: a directive ends where its line does.
Line = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]+$")]

_TIME = re.compile(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d(:\d\d)?)?")
# What `submit` says itself: without it a sweep would not be one.
_TAKEN = ("nodes", "ntasks-per-node", "output", "array", "dependency", "no-kill", "signal", "wrap")


class Container(Schema):
    """An image in which agents run; `python` must be there, with this package."""

    image: Line
    runtime: Literal["apptainer", "pyxis"] = "apptainer"
    options: tuple[Line, ...] = ()  # of apptainer exec, or of pyxis' srun


def _container(value: Any) -> Any:
    if isinstance(value, str):
        return {"image": value}
    if not isinstance(value, dict | Container | None):
        raise ValueError(f"{shown(value)} is no container; use the path of an image, quoted")
    return with_tuples(value)


class Slurm(Schema):
    """Every value stands in the script as one quoted word; shell code belongs into a template."""

    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    time: Line | None = None  # as for sbatch: "02:00:00"
    gres: Line | None = None  # of each node: gpu:8
    constraint: Line | None = None
    # Above the largest world: spares, which take over where a node is lost
    nodes: Annotated[int, Field(gt=0, le=10**5)] | None = None
    array: bool = False  # a job a case and one that merges, where long allocations are forbidden
    exclusive: bool = True  # whole nodes: who shares one measures its neighbour
    modules: tuple[Line, ...] = ()
    container: Annotated[
        Container | None,
        BeforeValidator(_container, json_schema_input_type=Line | Container | None),
    ] = None
    python: Line | None = None  # null: the one that submits; python in a container
    extra: tuple[Line, ...] = ()  # further options of sbatch: --mem=0
    template: Line | None = None  # an sbatch script of yours, for one of slurm/

    @field_validator("time", mode="before")
    @classmethod
    def _time_is_text(cls, value: Any) -> Any:
        if isinstance(value, int):  # seconds for one reader, and minutes for sbatch
            raise ValueError(f"{value} is a number; quote it as sbatch reads it: '02:00:00'")
        if isinstance(value, str) and not _TIME.fullmatch(value):
            raise ValueError(f"{value!r} is no time limit; use HH:MM:SS or D-HH:MM:SS")
        return value

    @field_validator("extra")
    @classmethod
    def _extra_are_options(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for line in value:
            name = line.partition("=")[0].partition(" ")[0]
            if not line.startswith("-") or name in ("-", "--"):
                raise ValueError(f"{line!r} is no option of sbatch; write --name=value")
            if name.removeprefix("--") in _TAKEN or name[:2] in ("-N", "-o", "-a", "-d", "-k"):
                raise ValueError(f"{line!r} is submit's to say; world and slurm.nodes set the size")
        return value
