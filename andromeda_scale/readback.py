"""Reading back what happened, whatever the strategy: compilation, compute dtype, expectations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch._dynamo.utils as dynamo
from torch import Tensor, nn


@contextmanager
def compute_dtype(module: nn.Module, *, compiled: bool) -> Iterator[Callable[[], str | None]]:
    """Watch the linear layers of a model; what it gives returns the dtype most of them ran in.

    Compiled blocks are left alone, since a hook would compile them again: there the layers
    outside them speak. None if there is none.
    """
    dtypes: Counter[str] = Counter()

    def saw(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        dtypes[str(output.dtype).removeprefix("torch.")] += 1

    hooks = [
        layer.register_forward_hook(saw)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and not (compiled and name.startswith("blocks."))
    ]
    try:
        yield lambda: max(dtypes, key=lambda name: dtypes[name], default=None)
    finally:
        for hook in hooks:
            hook.remove()


def num_compiled() -> int:
    """Graphs torch.compile has captured in this process."""
    return int(dynamo.counters["stats"]["unique_graphs"])


def compile_facts() -> dict[str, Any] | None:
    """What torch.compile did in this process; None if it captured nothing.

    seconds: all of the first calls' compilation. cache hits: graphs taken from the disk cache.
    """
    if not num_compiled():
        return None
    times = dynamo.calculate_time_spent()
    return {
        "seconds": float(times.get("total_wall_time", times.get("entire_frame_compile", 0.0))),
        "graphs": num_compiled(),
        "graph_breaks": sum(dynamo.counters["graph_break"].values()),
        "cache_hits": int(
            dynamo.counters["inductor"]["fxgraph_cache_hit"]
            + dynamo.counters["aot_autograd"]["autograd_cache_hit"]
        ),
    }


def unexpected(found: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> str | None:
    """The first thing that was read back and is not as asked, in words; None if all is.

    What could not be read yet (a missing key, or None in `dtypes`) is not judged.
    """
    for key, value in asked.items():
        if isinstance(value, Mapping):
            problem = unexpected(found.get(key, {}), value, f"{prefix}{key}.")
            if problem is not None:
                return problem
        elif found.get(key) != value and not (prefix and found.get(key) is None):
            return f"{prefix}{key} is {found.get(key)!r}, asked for {value!r}"
    return None
