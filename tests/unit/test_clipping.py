"""Clipping is torch's, whichever kernel does it; norms are right however many squares they sum."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from andromeda_scale.models.factory import ModelFactory
from andromeda_scale.rank.runtime import Runtime
from andromeda_scale.strategies.common import local_norm, step_groups, update_in_parts
from andromeda_scale.strategies.single import Single
from andromeda_scale.suite.training import Train
from andromeda_scale.suite.world import World

MODEL = {"family": "llama", "vocab_size": 64, "d_model": 32, "d_ff": 64, "num_layers": 2}
RUNTIME = Runtime(torch.device("cpu"), "gloo", 0, 0, 1, World(), 1)


@pytest.mark.parametrize("max_norm", [0.01, 1e6], ids=["clipped", "free"])
@pytest.mark.parametrize("kernel", ["fused", "foreach"])
def test_an_update_moves_weights_as_after_torchs_clipping(kernel: str, max_norm: float) -> None:
    # An eps above the roots of its second moments, so that Adam's step depends on the length.
    optimizer = {"name": "adamw", "eps": 1.0} if kernel == "fused" else {"name": "sgd"}
    settings: dict[str, Any] = {"optimizer": optimizer, "learning_rate": 1.0, "seq_len": 16}
    train = Train.model_validate(settings | {"grad_clip": max_norm})
    strategy = Single(Single.Options(), train)
    state = strategy.build(ModelFactory(MODEL | {"num_heads": 2}, train, 0), RUNTIME)
    kinds = {"fused": torch.optim.AdamW, "foreach": torch.optim.SGD}
    copies = [torch.nn.Parameter(p.detach().clone()) for p in state.module.parameters()]
    of_adam = {"eps": 1.0} if kernel == "fused" else {}
    reference = kinds[kernel](copies, lr=1.0, weight_decay=train.weight_decay, **of_adam)
    for step in range(3):
        ids = torch.randint(64, (1, 17), generator=torch.Generator().manual_seed(step))
        loss, num_tokens = strategy.forward(state, ids[:, :-1], ids[:, 1:])
        strategy.backward(state, loss / num_tokens, last_micro_batch=True)
        for copy, parameter in zip(copies, state.module.parameters(), strict=True):
            copy.grad = None if parameter.grad is None else parameter.grad.clone()
        strategy.update(state)
        torch.nn.utils.clip_grad_norm_(copies, max_norm)
        reference.step()
    for copy, parameter in zip(copies, state.module.parameters(), strict=True):
        torch.testing.assert_close(parameter, copy, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 4096, 4097, 3 * 10**6 + 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_loses_nothing_beside_what_is_summed_already(size: int, dtype: torch.dtype) -> None:
    values = torch.randn(size, generator=torch.Generator().manual_seed(0))
    values[::3] *= 30  # torch's own norm of three million of these is 4e-4 too small
    values = values.to(dtype)
    found = local_norm([values, torch.zeros(0), torch.ones(3, 2).t()])
    expected = (values.double().square().sum() + 6).sqrt()
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_an_update_in_parts_moves_every_weight_as_in_one() -> None:
    sizes = (7, 3, 100, 40, 1)

    def weights() -> list[torch.nn.Parameter]:
        made = [torch.nn.Parameter(torch.arange(float(size))) for size in sizes]
        for weight in made:
            weight.grad = torch.full_like(weight, 0.5)
        return made

    whole, parts = weights(), weights()
    torch.optim.AdamW(whole, lr=0.1).step()
    made = torch.optim.AdamW(parts, lr=0.1)
    update_in_parts(made, [parts[1]], halves=True)
    groups = made.param_groups
    assert [sum(p.numel() for p in group["params"]) for group in groups] == [3, 100, 48]
    step_groups(made, groups[:1], None)
    step_groups(made, groups[1:], None)
    assert made.param_groups is groups
    for part, one in zip(parts, whole, strict=True):
        torch.testing.assert_close(part, one)
