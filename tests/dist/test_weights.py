"""Weights are the same however the model is sharded, on real gloo processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from group import Group, tiny_case
from training_run import full_parameters, make_strategy

from andromeda_scale.contracts.planned import RankSpec
from andromeda_scale.models.factory import ModelFactory
from andromeda_scale.rank import runtime
from andromeda_scale.suite.training import Train

# Odd sizes: the shards of two ranks differ.
ANDROMEDA = {
    "family": "andromeda",
    "vocab_size": 257,
    "d_model": 33,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 36,
    "alibi_num_heads": 2,
}
# One row in the table: a rank that holds nothing of it.
LLAMA = {
    "family": "llama",
    "vocab_size": 1,
    "d_model": 34,
    "d_ff": 51,
    "num_layers": 2,
    "num_heads": 1,
    "tied_head": True,
}


WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "fsdp2": ("fsdp2", {}),
    "offload": ("fsdp2", {"cpu_offload": True}),
    "hsdp": ("hsdp", {}),
    "fsdp1": ("fsdp1", {}),
}


def _write_full_weights(spec: RankSpec, out: str) -> None:
    """Build, and save the gathered parameters, the tables and a loss."""
    rt = runtime.start(spec)
    runtime.init_process_group(spec, rt)
    strategy = make_strategy(spec.case)
    state = strategy.build(ModelFactory(spec.case.model, spec.case.train, seed=5), rt)
    full, tables = full_parameters(state), dict(state.module.named_buffers())
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    loss, _ = strategy.forward(state, tokens, tokens)
    torch.save({"full": full, "tables": tables, "loss": loss.detach()}, f"{out}-{rt.rank}")


@pytest.mark.parametrize(
    ("way", "world_size"), [("fsdp2", 1), *((way, 2) for way in WAYS), ("hsdp", 4)]
)
@pytest.mark.parametrize("model", [ANDROMEDA, LLAMA], ids=["andromeda", "llama"])
def test_sharded_weights_equal_the_single_models_exactly(
    group: Group, tmp_path: Path, model: dict[str, Any], way: str, world_size: int
) -> None:
    factory = ModelFactory(model, Train(seq_len=8), seed=5)
    single = factory.build()
    factory.materialise(single, "cpu")
    name, options = WAYS[way]
    case = tiny_case({"name": name, "options": options}, model=model, train={"seq_len": 8})
    specs = group.specs(case, world_size)
    out = str(tmp_path / "weights")
    group.run(_write_full_weights, [(spec, out) for spec in specs])
    expected = dict(single.named_parameters())
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    loss, _ = single(tokens, tokens)
    for rank in range(world_size):
        found = torch.load(f"{out}-{rank}")
        assert list(found["full"]) == list(expected)
        for parameter, value in expected.items():
            assert torch.equal(found["full"][parameter], value.detach()), parameter
        for table, value in single.named_buffers():
            assert torch.equal(found["tables"][table], value), table
        torch.testing.assert_close(found["loss"], loss.detach(), rtol=1e-6, atol=1e-6)
