"""Reading back what happened, whatever the strategy: compilation, compute dtype, expectations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch._dynamo.utils as dynamo
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "linear"}


class _Products(TorchDispatchMode):
    """Counts matrix products by dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in _PRODUCTS:
            self.dtypes[str(args[-1].dtype).removeprefix("torch.")] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def compute_dtype() -> Iterator[Callable[[], str | None]]:
    """Watch the matrix products below; what it gives returns the dtype most of them ran in.

    Compiled graphs hide theirs; None if no product was seen.
    """
    products = _Products()
    with products:
        yield lambda: max(products.dtypes, key=lambda d: products.dtypes[d], default=None)


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
