"""What one would write by hand: FSDP2, DDP or one GPU, compiled blocks, fused AdamW; no records.

    torchrun --nproc-per-node 2 benchmarks/bare_loop.py llama-3.1-8b --strategy fsdp2

From this package it takes the model alone. The last line that rank 0 prints is one of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import time

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from andromeda_scale.models.factory import ModelFactory
from andromeda_scale.planning.model_file import resolve_model
from andromeda_scale.suite.training import Train

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--strategy", choices=("single", "ddp", "fsdp2"), default="fsdp2")
parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON", dest="sets")
parser.add_argument("--reduce", choices=("float32", "bfloat16"), default="bfloat16")
parser.add_argument("--keep", action="store_true", help="blocks stay gathered until backward")
parser.add_argument("--warmup", type=int, default=5)
parser.add_argument("--steps", type=int, default=20)
asked = parser.parse_args()
train = Train.model_validate(
    {key: json.loads(v) for key, _, v in (s.partition("=") for s in asked.sets)}
)
# What it is compared with shall do the same work.
for key, followed in {
    "grad_accum": [1],
    "mode": ["train_step"],
    "precision": ["fp32", "bf16"],
    "optimizer": [Train().optimizer],
    "compile": [False, True],
    "attention_backend": ["auto"],
}.items():
    if getattr(train, key) not in followed:
        raise ValueError(f"train.{key}: the loop does not follow {getattr(train, key)}")

cuda, rank = torch.cuda.is_available(), int(os.environ["LOCAL_RANK"])
device = torch.device("cuda", rank) if cuda else torch.device("cpu")
if cuda:
    torch.cuda.set_device(device)
dist.init_process_group("nccl" if cuda else "gloo")
low = train.precision == "bf16"

factory = ModelFactory(resolve_model(asked.model, "command line")[1], train, 0)
model = module = factory.build()
if train.compile:
    for block in module.blocks:
        block.forward = torch.compile(block.forward)
if asked.strategy == "fsdp2":
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    mixed = (
        MixedPrecisionPolicy(torch.bfloat16, getattr(torch, asked.reduce))
        if low
        else MixedPrecisionPolicy()
    )
    for block in module.blocks:
        fully_shard(block, mesh=mesh, mp_policy=mixed, reshard_after_forward=not asked.keep)
    fully_shard(module, mesh=mesh, mp_policy=mixed, reshard_after_forward=False)
factory.materialise(module, device)
if asked.strategy == "ddp":
    model = DistributedDataParallel(module, gradient_as_bucket_view=True)
optimizer = torch.optim.AdamW(
    module.parameters(), train.learning_rate, weight_decay=train.weight_decay, fused=True
)
autocast = torch.autocast(device.type, torch.bfloat16, enabled=low and asked.strategy != "fsdp2")
order = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def run(steps: int) -> float:
    """Seconds of so many steps."""
    if cuda:
        torch.cuda.synchronize()
    dist.barrier()
    start = time.perf_counter()
    for _ in range(steps):
        ids = torch.randint(factory.config.vocab_size, (2, train.micro_batch_size, train.seq_len))
        tokens, labels = (ids.pin_memory() if cuda else ids).to(device, non_blocking=True)
        with autocast, sdpa_kernel(order, set_priority=True):
            loss, count = model(tokens, labels)
        (loss / count).backward()
        if train.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), train.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


run(asked.warmup)
step_s = torch.tensor(run(asked.steps) / asked.steps, device=device)
dist.all_reduce(step_s, op=dist.ReduceOp.MAX)
if dist.get_rank() == 0:
    peak = torch.cuda.max_memory_allocated() if cuda else None
    print(json.dumps({"step_s": step_s.item(), "peak_allocated_bytes": peak}), flush=True)
dist.destroy_process_group()
