"""Weights are the same however the model is sharded, on real gloo processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from group import Group

from andromeda_scale.training import Train
from andromeda_scale.models.factory import ModelFactory

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


def _write_full_weights(
    rank: int, world_size: int, store: str, out: str, model: dict[str, Any]
) -> None:
    """Shard with FSDP2 on meta, materialise, and save the gathered parameters and the tables."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group(
        "gloo", store=dist.FileStore(store, world_size), rank=rank, world_size=world_size
    )
    factory = ModelFactory(model, Train(seq_len=8), seed=5)
    module = factory.build()
    mesh = init_device_mesh("cpu", (world_size,))
    for block in module.blocks:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    factory.materialise(module, "cpu")
    full = {name: p.full_tensor() for name, p in module.named_parameters()}
    tables = dict(module.named_buffers())
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    loss, _ = module(tokens, tokens)
    torch.save({"full": full, "tables": tables, "loss": loss.detach()}, f"{out}-{rank}")


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("model", [ANDROMEDA, LLAMA], ids=["andromeda", "llama"])
def test_sharded_weights_equal_the_single_models_exactly(
    group: Group, tmp_path: Path, model: dict[str, Any], world_size: int
) -> None:
    factory = ModelFactory(model, Train(seq_len=8), seed=5)
    single = factory.build()
    factory.materialise(single, "cpu")
    out = str(tmp_path / "weights")
    group.run(
        _write_full_weights,
        [(rank, world_size, str(tmp_path / "store"), out, model) for rank in range(world_size)],
    )
    expected = dict(single.named_parameters())
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    loss, _ = single(tokens, tokens)
    for rank in range(world_size):
        found = torch.load(f"{out}-{rank}")
        assert list(found["full"]) == list(expected)
        for name, parameter in expected.items():
            assert torch.equal(found["full"][name], parameter.detach()), name
        for name, table in single.named_buffers():
            assert torch.equal(found["tables"][name], table), name
        torch.testing.assert_close(found["loss"], loss.detach(), rtol=1e-6, atol=1e-6)
