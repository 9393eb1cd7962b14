"""Configuration of the Hugging Face family: any causal language model of transformers. No torch.

transformers is not imported here, for its configuration classes import torch: what it knows is
read from its source (`huggingface_source.py`). The modules lie in `huggingface_net.py`.
"""

from __future__ import annotations

import difflib
import math
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import field_validator

from andromeda_scale.cost.model import Shape
from andromeda_scale.models.family import SHALLOW_LAYERS, Family
from andromeda_scale.models.huggingface_shapes import closed_form, has_plain_head
from andromeda_scale.models.huggingface_source import model_types, unread
from andromeda_scale.suite.kernels import MIN_FLEX_HEAD_DIM
from andromeda_scale.suite.training import Segment, Train

if TYPE_CHECKING:
    from torch import nn

# train.attention -> attn_implementation of transformers; null leaves it to the model's class.
ATTENTION = {"naive": "eager", "sdpa_causal": "sdpa", "flex": "flex_attention"}
_POSITIONS = ("max_position_embeddings", "n_positions")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
# Of which there is at least one wherever a file names a number.
_SIZES = (
    *_LAYERS,
    *("hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "ffn_dim", "head_dim"),
    *("num_attention_heads", "n_head", "num_heads", "num_key_value_heads"),
)


class HuggingFaceConfig(Family):
    """Any causal language model of Hugging Face: its config.json, with random weights.

    What the class draws at random in training is switched off: every probability of dropout is 0,
    in the configuration and in the modules, which stay in training mode.
    """

    requires: ClassVar[tuple[str, ...]] = ("transformers",)
    preload: ClassVar[tuple[str, ...]] = (
        "transformers.modeling_utils",
        "transformers.models.auto.modeling_auto",
    )
    extra: ClassVar[str] = "transformers"
    in_a_row: ClassVar[bool] = False

    config: dict[str, Any]

    @field_validator("config")
    @classmethod
    def _names_a_text_model(cls, value: dict[str, Any]) -> dict[str, Any]:
        kind, size = value.get("model_type"), value.get("vocab_size")
        if not isinstance(kind, str) or not kind:
            raise ValueError(
                'model_type: is missing; write the name of its class, such as "llama", or give a '
                "config.json as transformers saves it"
            )
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            inner = " (a model of text and more: use its text_config)" * ("text_config" in value)
            if size is None and not inner:
                raise ValueError(
                    f"vocab_size: is missing, so this {kind} is no model of text, or leaves its "
                    "size to transformers; use the config.json of a causal language model, or "
                    "write the number of its tokens"
                )
            raise ValueError(
                f"vocab_size: {size!r} is no number of tokens{inner}; write a positive integer"
            )
        for key in _SIZES:
            if isinstance(size := value.get(key), int | float) and size < 1:
                raise ValueError(f"{key}: {size} is not a positive integer; use 1 or more")
        for key, why in (
            ("auto_map", "its class is code outside transformers; use model: package.module:class"),
            ("quantization_config", "random weights are not quantised; remove it"),
        ):
            if value.get(key):
                raise ValueError(f"{key}: is set, and {why}")
        if key := _not_finite(value):
            raise ValueError(
                f"{key}: is not a finite number, which JSON cannot say; write a large one"
            )
        return value

    @property
    def vocab_size(self) -> int:
        """Ids that data may hold."""
        return int(self.config["vocab_size"])

    @property
    def label(self) -> str:
        return str(self.config["model_type"])

    def shape(self) -> Shape | None:
        """The closed form of decoders whose modules are known; None for all others."""
        return closed_form(self.config)

    def shallow(self) -> dict[str, Any]:
        key = next((key for key in _LAYERS if isinstance(self.config.get(key), int)), None)
        if key is None:
            raise ValueError(f"{self.label}: its config has none of {', '.join(_LAYERS)}")
        depth = self.config[key]
        changed = {key: min(depth, SHALLOW_LAYERS)}
        for name, value in self.config.items():
            if isinstance(value, list) and len(value) == depth:  # one entry a layer
                changed[name] = value[:SHALLOW_LAYERS]
        return {"config": self.config | changed}

    def loss_chunks(self, train: Train) -> int:
        return super().loss_chunks(train) if has_plain_head(self.config) else 1

    def refuses(self, train: Train) -> str | None:
        if train.compiling and train.compiling.whole:
            return (
                f"train.compile: whole: true, and {self.label} is of others, whose forward may not "
                "be one graph; use compile: true"
            )
        if train.loss_chunks not in ("auto", 1) and not has_plain_head(self.config):
            return (
                f"train.loss_chunks: {train.loss_chunks} needs logits that are the head's product "
                f"and no more, which is not known of {self.label}; use auto"
            )
        if train.attention == "sdpa_bias":
            return (
                "train.attention: sdpa_bias is a kernel of this package's own models; "
                f"use {', '.join(ATTENTION)}, or null for the model's default"
            )
        shape = self.shape()
        if train.attention == "flex" and shape and shape.head_dim < MIN_FLEX_HEAD_DIM:
            return (
                f"train.attention: flex needs heads of {MIN_FLEX_HEAD_DIM} dimensions or more, and "
                f"this model's have {shape.head_dim}; use another kernel, or wider heads"
            )
        if isinstance(train.activation_checkpointing, Segment):
            return (
                "train.activation_checkpointing: {segment: K} needs a model that gives its blocks "
                "in a row, and transformers calls them one by one; use block or {every: K}"
            )
        for key in _POSITIONS:
            most = self.config.get(key)
            if isinstance(most, int) and 0 < most < train.seq_len:
                return (
                    f"train.seq_len: {train.seq_len} is more than the model's {key} {most}; "
                    f"shorten it, or raise model.config.{key}"
                )
        return None

    def wrong_here(self) -> str | None:
        found = model_types()
        if found is None:
            return None
        if self.label in (causal := found[0]):
            return self._wrong_class(causal[self.label]) or self._misspelt()
        release = f"transformers {version('transformers')}"
        if self.label in found[1]:
            return (
                f"config.model_type: {self.label!r} has no causal language model in {release}; "
                "use a config of one, such as llama"
            )
        close = difflib.get_close_matches(self.label, causal, n=1)
        remedy = f"did you mean {close[0]}?" if close else "update transformers, or mend the name"
        return f"config.model_type: {self.label!r} is unknown to {release}; {remedy}"

    def _wrong_class(self, built: str) -> str | None:
        """transformers builds the causal model of `model_type`, whatever class the file names."""
        named = self.config.get("architectures") or [built]
        if isinstance(named, list) and built in named:
            return None
        return (
            f"config.architectures: {named!r} is not {built}, the causal language model of "
            f"model_type {self.label}; remove it to train that one, or mend model_type"
        )

    def _misspelt(self) -> str | None:
        for key, meant in (unread(self.config) or {}).items():
            if meant is not None:
                value = self.config[key]
                return (
                    f"config.{key}: {value!r} is given, and {self.label} has no such key; "
                    f"did you mean {meant}?"
                )
        return None

    def remark(self) -> str | None:
        keys = unread(self.config)
        if not keys:
            return None
        release = f"transformers {version('transformers')}"
        return f"model.config: {self.label} of {release} does not read {', '.join(keys)}"

    def build(self, train: Train) -> nn.Module:
        """The module: parameters on meta, buffers computed on the CPU."""
        from andromeda_scale.models.huggingface_net import HuggingFace

        return HuggingFace(self, train)


def _not_finite(value: Any, key: str = "") -> str:
    """The dotted key of the first number that is none; "" if all are."""
    if isinstance(value, float) and not math.isfinite(value):
        return key
    if isinstance(value, list):
        value = dict(enumerate(value))
    inner = value.items() if isinstance(value, dict) else ()
    found = (_not_finite(one, f"{key}.{name}".strip(".")) for name, one in inner)
    return next(filter(None, found), "")
