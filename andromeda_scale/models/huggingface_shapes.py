"""Closed forms of Hugging Face configurations whose modules are known. No torch.

A size that a file leaves out has its class's default, which only transformers knows: then there is
no closed form. Tests hold each kind's number of parameters against the built model's; in a run,
FLOPs are counted only where both agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from andromeda_scale.cost.activations import ACTIVATION_SAVES
from andromeda_scale.cost.model import Shape

_Config = Mapping[str, Any]


class _Unknown(Exception):
    """The file does not say what the closed form needs."""


def closed_form(config: _Config) -> Shape | None:
    """What the closed forms need of a config.json; None where its modules are not known."""
    kind = _KINDS.get(config["model_type"])
    try:
        return kind(config) if kind else None
    except _Unknown:
        return None


def has_plain_head(config: _Config) -> bool:
    """Whether the kind's logits are known to be what its head gives, with nothing done to them."""
    return config["model_type"] in _KINDS


def _llama(c: _Config) -> Shape:
    """Llama, Mistral, Qwen2 and Qwen3: RMSNorm, SwiGLU, rotary positions, grouped queries."""
    kind = c["model_type"]
    if c.get("mlp_bias") or _has_window(c):
        raise _Unknown
    heads, width = _size(c, "num_attention_heads"), _size(c, "hidden_size")
    kv_heads = c.get("num_key_value_heads")
    if kv_heads is None and kind != "llama":  # another number in each class
        raise _Unknown
    head_dim = c.get("head_dim") or (128 if kind == "qwen3" else width // heads)
    biased = bool(c.get("attention_bias")) and kind in ("llama", "qwen3")
    return Shape(
        vocab_size=c["vocab_size"],
        d_model=width,
        num_layers=_size(c, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads or heads,
        head_dim=head_dim,
        d_ff=_size(c, "intermediate_size"),
        gated_ffn=True,
        activation=_activation(c, "hidden_act", "silu"),
        layer_norm=False,
        qk_norm=kind == "qwen3",
        qkv_bias=biased or kind == "qwen2",
        out_bias=biased,
        tied_head=bool(c.get("tie_word_embeddings", False)),
        rotary_dim=head_dim,
    )


def _gpt2(c: _Config) -> Shape:
    """LayerNorm, biases everywhere but at the head, a learned position table."""
    if c.get("add_cross_attention"):
        raise _Unknown
    heads, width = _size(c, "n_head"), _size(c, "n_embd")
    return Shape(
        vocab_size=c["vocab_size"],
        d_model=width,
        num_layers=_size(c, "n_layer"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        d_ff=c.get("n_inner") or 4 * width,
        gated_ffn=False,
        activation=_activation(c, "activation_function", "gelu_new"),
        layer_norm=True,
        qkv_bias=True,
        out_bias=True,
        num_positions=_size(c, "n_positions"),
        tied_head=bool(c.get("tie_word_embeddings", True)),
    )


def _gpt_neox(c: _Config) -> Shape:
    """LayerNorm, biases everywhere but at the head, positions that turn part of a head."""
    heads, width = _size(c, "num_attention_heads"), _size(c, "hidden_size")
    biased = bool(c.get("attention_bias", True))
    rotary = (c.get("rope_parameters") or {}).get("partial_rotary_factor", 0.25)
    return Shape(
        vocab_size=c["vocab_size"],
        d_model=width,
        num_layers=_size(c, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        d_ff=_size(c, "intermediate_size"),
        gated_ffn=False,
        activation=_activation(c, "hidden_act", "gelu"),
        layer_norm=True,
        qkv_bias=biased,
        out_bias=biased,
        tied_head=bool(c.get("tie_word_embeddings", False)),
        rotary_dim=int(width // heads * c.get("rotary_pct", rotary)),
    )


def _size(config: _Config, key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _Unknown
    return value


def _activation(config: _Config, key: str, default: str) -> str:
    name = config.get(key, default)
    if name not in ACTIVATION_SAVES:
        raise _Unknown
    return str(name)


def _has_window(c: _Config) -> bool:
    """Whether some layer may not see the whole sequence, which the FLOPs take for granted."""
    if c["model_type"].startswith("qwen"):
        return bool(c.get("use_sliding_window"))
    return c["model_type"] == "mistral" and c.get("sliding_window", 4096) is not None


_KINDS: dict[str, Callable[[_Config], Shape]] = {
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "qwen3": _llama,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
}
