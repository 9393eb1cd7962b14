"""The modules of the Hugging Face family. Their configuration lies in `huggingface.py`."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from andromeda_scale.models.adopted import Adopted, in_words, parameters_on_meta
from andromeda_scale.models.huggingface import ATTENTION, HuggingFaceConfig
from andromeda_scale.models.layers import INIT_STD
from andromeda_scale.models.loss import NextTokenLoss
from andromeda_scale.rank.failures import Invalid
from andromeda_scale.suite.training import Train

_OUR_NAMES = {theirs: ours for ours, theirs in ATTENTION.items()}


class HuggingFace(Adopted):
    """A causal language model of transformers with the loss of all families.

    Its own loss is left out: it would shift labels that are shifted already. So are losses that
    some mixtures of experts add.
    """

    def __init__(self, config: HuggingFaceConfig, train: Train) -> None:
        model = _build(config.config, train)
        blocks = largest_list(model)
        if blocks is None:
            raise Invalid(f"model.config: {type(model).__name__} has no list of decoder blocks")
        super().__init__(model, list(blocks), train)
        self.loss = NextTokenLoss(config.loss_chunks(train), compiled=bool(train.compile))
        self._labels: Tensor | None = None
        if config.loss_chunks(train) > 1:
            head = model.get_output_embeddings()
            head.loss = self.loss
            head.forward = MethodType(self._loss_of, head)
        for module in model.modules():
            module.init_std = getattr(model.config, "initializer_range", INIT_STD)

    @property
    def ends(self) -> list[list[nn.Module]]:
        """What looks tokens up and what projects to logits, where no parameter is in both."""
        # To mypy what a module has may be a Tensor, which cannot be called.
        first, last = self.model.get_input_embeddings(), self.model.get_output_embeddings()  # type: ignore[operator]
        return [] if first.weight is last.weight else [[first], [last]]

    def forward(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """(summed cross entropy in fp32, number of tokens); tokens, labels are (B, T) int64."""
        self._labels = labels
        found = self.model(input_ids=tokens, use_cache=False).logits
        if found.dim():
            found = self.loss.of_logits(found.flatten(0, 1), labels.flatten())
        return found, labels.numel()

    def _loss_of(self, head: nn.Linear, x: Tensor) -> Tensor:
        """In place of the head's forward, so that hooks of strategies find its weight in use."""
        assert self._labels is not None, "the head is called by forward"
        return self.loss(x, head.weight, head.bias, self._labels)

    def describe_loss(self) -> dict[str, Any]:
        """How many parts the last loss took."""
        return self.loss.describe()

    def describe_attention(self) -> dict[str, Any]:
        """The kernel in force, by our name where we have one."""
        # To mypy a Tensor or a Module.
        found = str(self.model.config._attn_implementation)  # type: ignore[union-attr]
        return {"kernel": _OUR_NAMES.get(found, found)}


def largest_list(model: nn.Module) -> nn.ModuleList | None:
    """The decoder blocks: of the outermost lists of modules the one with most parameters."""
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    outermost = [m for n, m in lists.items() if not any(n.startswith(f"{o}.") for o in lists)]
    return max(outermost, key=lambda m: sum(p.numel() for p in m.parameters()), default=None)


def _build(written: dict[str, Any], train: Train) -> Any:
    """The model of transformers, float32; raises Invalid where transformers refuses it."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    kind = written["model_type"]
    asked = {} if train.attention is None else {"attn_implementation": ATTENTION[train.attention]}
    try:
        config = CONFIG_MAPPING[kind].from_dict(dict(written))
        _make_deterministic(config)
        with parameters_on_meta():
            make: Any = AutoModelForCausalLM.from_config
            model = make(config, dtype=torch.float32, **asked)
    except Exception as error:  # whatever classes of others raise for values they do not take
        raise Invalid(f"model.config: transformers refuses it: {in_words(error)}") from error
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


def _make_deterministic(config: Any) -> None:
    """No cache, no dropout, no noise in a router; a class that can be an encoder is a decoder."""
    for key, value in config.to_dict().items():
        drawn = "drop" in key or "jitter" in key
        if drawn and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(config, key, 0.0)
    config.use_cache = False
    for key in ("is_decoder", "causal"):  # the second is XLM's
        if getattr(config, key, None) is False:
            setattr(config, key, True)
