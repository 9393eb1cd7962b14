"""Configuration of a model of the user's own: `module:callable`. No torch.

The module is found from the directory where the command was typed, and imported by ranks alone:
what can be said of it before is read from its source. The rest lies in `custom_net.py`.
"""

from __future__ import annotations

import ast
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from andromeda_scale.models.family import Family
from andromeda_scale.registry import is_callable_name
from andromeda_scale.suite.schema import Width
from andromeda_scale.suite.training import Segment, Train

if TYPE_CHECKING:
    from torch import nn

BYTES = 256


class CustomConfig(Family):
    """A module of yours: what `callable(**kwargs)` returns.

    Its forward(tokens, labels), both (B, T) int64, returns (the sum of the float32 losses of all
    tokens, B * T); labels are the next tokens already. Parameters are built on meta, so the
    constructor may not need their values; buffers are computed on the CPU, and keep value and
    dtype under every strategy. `blocks`: the dotted path of the list of blocks in the module, which
    sharding, compilation and checkpointing take one by one; without it the model is one unit.
    """

    in_a_row: ClassVar[bool] = False
    callable: str
    vocab_size: Width = BYTES  # ids that data may hold
    kwargs: dict[str, Any] = Field(default_factory=dict)
    blocks: str | None = None

    @field_validator("callable")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not is_callable_name(value):
            raise ValueError(f"{value!r} names nothing to call; use package.module:callable")
        return value

    @property
    def label(self) -> str:
        return self.callable.rpartition(":")[2]

    def loss_chunks(self, train: Train) -> int:
        return 1  # as far as anybody can know

    def refuses(self, train: Train) -> str | None:
        if train.compiling and train.compiling.whole:
            return (
                f"train.compile: whole: true, and {self.label} is of others, whose forward may not "
                "be one graph; use compile: true"
            )
        if train.loss_chunks not in ("auto", 1):
            return (
                f"train.loss_chunks: {train.loss_chunks} cannot be had of {self.callable}, which "
                "computes its loss itself; use auto"
            )
        if train.attention is not None:
            return (
                f"train.attention: {train.attention} cannot be chosen for {self.callable}, whose "
                "attention is its own; set null, or give it a name in model.kwargs"
            )
        if self.blocks is None:
            for key, asked, off in (
                ("compile", train.compile, "false"),
                ("activation_checkpointing", train.activation_checkpointing != "none", "none"),
            ):
                if asked:
                    return (
                        f"train.{key}: goes block by block, and model.blocks names none; name the "
                        f"list of blocks in {self.callable}, or set {off}"
                    )
        if isinstance(train.activation_checkpointing, Segment):
            return (
                "train.activation_checkpointing: {segment: K} needs a model that gives its blocks "
                f"in a row, and {self.callable} calls them itself; use block or {{every: K}}"
            )
        return None

    def wrong_here(self) -> str | None:
        module, _, attribute = self.callable.partition(":")
        spec = find_module(module)
        here = os.getcwd()
        if spec is None:
            return f"callable: there is no module {module} in {here} or installed; mend the name"
        if not spec.origin or not spec.origin.endswith(".py"):
            return None
        try:
            tree = ast.parse(Path(spec.origin).read_bytes())
        except OSError as error:
            return f"callable: {spec.origin} cannot be read ({error.strerror}); mend the file"
        except (SyntaxError, ValueError) as error:
            line, why = getattr(error, "lineno", None) or 0, getattr(error, "msg", error)
            return f"callable: {spec.origin} is not Python, line {line}: {why}; mend that line"
        names = _bound_names(tree)
        first = attribute.partition(".")[0]
        if names is not None and first not in names:
            return f"callable: {spec.origin} defines no {first}; name what it defines"
        return None

    def build(self, train: Train) -> nn.Module:
        """The module: parameters on meta, buffers computed on the CPU."""
        from andromeda_scale.models.custom_net import Custom

        return Custom(self, train)


def find_module(name: str) -> ModuleSpec | None:
    """Where a module lies, without importing it or the packages above it."""
    path: list[str] | None = [os.getcwd(), *sys.path]
    spec = None
    parts = name.split(".")
    for index in range(len(parts)):
        spec = PathFinder.find_spec(".".join(parts[: index + 1]), path)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or ())
    return spec


def _bound_names(tree: ast.Module) -> set[str] | None:
    """Names a module may define; None where only running it can tell."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
    return None if names & {"*", "__getattr__", "globals", "setattr", "exec"} else names
