"""Tiny models of others, for tests: two config.json and a module of callables."""

from __future__ import annotations

from typing import Any

# As their authors publish them, in small; dropout and dtype are what a published file would ask.
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-05,
    "attention_dropout": 0.1,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
}
GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 256,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}

CALLABLES = '''
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Each position with the mean of those before it."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x):
        mean = x.cumsum(1) / torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        return x + self.down(F.gelu(self.up(self.norm(mean))))


class Model(nn.Module):
    def __init__(self, width=32, depth=2, returns=None):
        super().__init__()
        self.table = nn.Embedding(256, width)
        self.gate = nn.Parameter(torch.full((width,), 3.0))
        self.layers = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 256, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("decay", torch.linspace(1, 0.5, width))
        self.returns = returns

    def forward(self, tokens, labels):
        x = self.table(tokens) * self.decay * self.gate
        for layer in self.layers:
            x = layer(x)
        logits = self.head(x).float().flatten(0, 1)
        losses = F.cross_entropy(logits, labels.flatten(), reduction="none")
        if self.returns is not None:
            return self.returns(x, losses, labels)
        return losses.sum(), labels.numel()


def no_loss():
    return Model(returns=lambda x, losses, labels: x)


def nothing():
    return Model(returns=lambda x, losses, labels: None)


def mean_of_rows():
    return Model(returns=lambda x, losses, labels: (losses.view(labels.shape), labels.numel()))


def rounded():
    return Model(returns=lambda x, losses, labels: (losses.sum().bfloat16(), labels.numel()))


def detached():
    return Model(returns=lambda x, losses, labels: (losses.sum().detach(), labels.numel()))


def rows():
    return Model(returns=lambda x, losses, labels: (losses.sum(), len(labels)))


def count_in_tensor():
    return Model(returns=lambda x, losses, labels: (losses.sum(), torch.tensor(labels.numel())))


def a_number():
    return 7


def empty():
    return nn.Identity()


def from_a_weight():
    model = Model()
    model.register_buffer("start", model.gate.detach().clone())
    return model
'''
