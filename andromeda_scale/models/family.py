"""What a suite, the planner and a rank ask of a model family. No torch."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, ClassVar

from andromeda_scale.cost.model import Shape
from andromeda_scale.suite.schema import Schema
from andromeda_scale.suite.training import Train, loss_chunks

if TYPE_CHECKING:
    from torch import nn

SHALLOW_LAYERS = 2  # of the model on which `parity: shallow` compares first steps


class Family(Schema):
    """Base of every family's configuration, whose fields are the keys of `model`.

    Each has a `vocab_size`: the ids that data may hold. `build` gives a module whose `blocks`
    lists its decoder blocks (empty: the model is one unit) and whose forward takes tokens and
    labels, (B, T) int64, and returns (summed loss in float32, number of tokens). Parameters are
    on meta; a buffer has its value, or computes it again whenever the module is moved.
    """

    requires: ClassVar[tuple[str, ...]] = ()  # packages; a missing one: the case is `unavailable`
    preload: ClassVar[tuple[str, ...]] = ()  # modules that are imported before ranks are forked
    extra: ClassVar[str] = ""  # of this package, which installs them
    in_a_row: ClassVar[bool] = True  # several blocks can be called as one module

    @property
    def label(self) -> str:
        """What the model is called where nobody named it; "": the family's name."""
        return ""

    def shape(self) -> Shape | None:
        """What the closed forms need; None: nothing is estimated, and no FLOPs are counted."""
        return None

    def shallow(self) -> dict[str, Any]:
        """Options of a model of the same widths with at most SHALLOW_LAYERS layers.

        Raises ValueError where there is none.
        """
        if "num_layers" not in type(self).model_fields:
            raise ValueError(f"{self.label or type(self).__name__} cannot be had with fewer layers")
        options = self.model_dump(mode="json", exclude_defaults=True)
        return options | {"num_layers": min(getattr(self, "num_layers"), SHALLOW_LAYERS)}  # noqa: B009

    def refuses(self, train: Train) -> str | None:
        """Why the model cannot do such a step; the reason starts with the key to change."""
        return None

    def loss_chunks(self, train: Train) -> int:
        """Parts in which the model computes the loss of a micro-batch."""
        return loss_chunks(train, getattr(self, "vocab_size"))  # noqa: B009  each family has its own

    def missing(self) -> str | None:
        """The package that this family needs and that is not installed here, and its remedy."""
        for package in self.requires:
            if importlib.util.find_spec(package) is None:
                return f"needs {package}; pip install 'andromeda-scale[{self.extra}]'"
        return None

    def wrong_here(self) -> str | None:
        """What this installation shows to be wrong, as "key: problem; remedy", without torch."""
        return None

    def remark(self) -> str | None:
        """What a plan says of the model as this installation sees it, without torch."""
        return None

    def build(self, train: Train) -> nn.Module:
        """The module, on torch's current default device where the family has no other rule."""
        raise NotImplementedError  # each family has its own
