"""What the update of a rank's shards costs a GPU: torch's fused kernel, in one part and in halves.

    python benchmarks/update_kernels.py llama-3.1-8b --shards 2

Prints medians, for the shards that one of so many ranks holds: of a fused AdamW, of one that clips
(`grad_scale`; its kernel then writes gradients back), of that one in two halves on two streams, of
a kernel that torch.compile writes for each tensor, as a bound, and of the gradient's norm. TB/s
count 28 bytes a parameter, of a norm 4. Without a GPU it is a rehearsal.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from andromeda_scale.models.factory import ModelFactory
from andromeda_scale.planning.model_file import resolve_model
from andromeda_scale.strategies import common
from andromeda_scale.suite.training import Train

CALLS = 12


def shards(model: str, num: int, device: torch.device) -> list[torch.nn.Parameter]:
    """Parameters of the shapes of FSDP2's first shards, with gradients."""
    factory = ModelFactory(resolve_model(model, "command line")[1], Train(), 0)
    shapes = [(-(-p.shape[0] // num), *p.shape[1:]) for p in factory.build().parameters()]
    found = [torch.nn.Parameter(torch.randn(shape, device=device) / 50) for shape in shapes]
    for parameter in found:
        parameter.grad = torch.randn_like(parameter) / 100
    return found


def median_ms(call: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of a call until the device has done it."""
    times = []
    for index in range(3 + CALLS):
        synchronize(device)
        started = time.perf_counter()
        call()
        synchronize(device)
        if index >= 3:
            times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def compiled(
    parameters: list[torch.nn.Parameter], made: torch.optim.Optimizer
) -> Callable[[], None]:
    """The same update, a launch a tensor."""
    (one, two), lr, decay = (
        made.defaults["betas"],
        made.defaults["lr"],
        made.defaults["weight_decay"],
    )
    device = parameters[0].device
    step, scale = torch.full((), 10.0, device=device), torch.ones((), device=device)

    def update(p: Tensor, grad: Tensor, m: Tensor, v: Tensor) -> None:
        g = grad / scale
        first, second = m + (g - m) * (1 - one), v * two + (1 - two) * g * g
        size = lr / (1 - one**step)
        root = second.sqrt() / (1 - two**step).sqrt() + 1e-8
        p.copy_(p * (1 - lr * decay) - size * first / root)
        m.copy_(first)
        v.copy_(second)

    written = torch.compile(update, dynamic=True)
    states = [made.state[p] for p in parameters]
    flat = [
        (p.detach().view(-1), p.grad.view(-1), s["exp_avg"].view(-1), s["exp_avg_sq"].view(-1))
        for p, s in zip(parameters, states, strict=True)
        if p.grad is not None
    ]

    def step_all() -> None:
        for tensors in flat:
            written(*tensors)

    return step_all


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--shards", type=int, default=1)
    asked = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parameters = shards(asked.model, asked.shards, device)
    elements = sum(p.numel() for p in parameters)
    print(f"{elements:,} parameters in {len(parameters)} tensors, {device}")

    def line(name: str, call: Callable[[], object], bytes_each: int = 28) -> None:
        found = median_ms(call, device)
        print(
            f"{name:34}{found:9.2f} ms{elements * bytes_each / found / 1e9:8.2f} TB/s", flush=True
        )

    made = common.optimizer(parameters, Train())
    line("fused", made.step)
    made.grad_scale = torch.ones((), device=device)  # type: ignore[attr-defined]  # torch declares none
    line("fused, clipped", made.step)
    if device.type == "cuda":
        common.update_in_parts(made, [], halves=True)
        beside = torch.cuda.Stream(device)
        line("fused, clipped, halves", lambda: common.step_groups(made, made.param_groups, beside))
    line("compiled, clipped", compiled(parameters, made))
    grads = [p.grad for p in parameters if p.grad is not None]
    line("norm", lambda: common.local_norm(grads), 4)


if __name__ == "__main__":
    main()
