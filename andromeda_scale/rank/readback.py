"""Reading back what happened, whatever the strategy: kernels, compilation, dtypes, expectations."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch._dynamo.utils as dynamo
from torch import Tensor, nn

from andromeda_scale.suite.training import Train, recomputed

# Operators below autograd, and kernels that torch.compile wrote. SDPA's backends differ by name:
# flash, cudnn, efficient, math; naive attention is a softmax between batched products.
_ATTENTION = re.compile(
    r"(?:\w+::)?(_?\w*(?:attention|attn)\w*|_softmax|_safe_softmax|bmm|baddbmm)"
    r"|triton_\w*(?:attention|_softmax)\w*"
)
_NOT_A_KERNEL = re.compile(
    r"(?:aten::)?scaled_dot_product_attention|.*(?:backward|Backward|log_softmax).*"
)
MAX_REASONS = 3  # of graph breaks, the most frequent
MAX_REASON_LENGTH = 300


@contextmanager
def compute_dtype(module: nn.Module, train: Train) -> Iterator[Callable[[], str | None]]:
    """Watch the linear layers of a model; what it gives returns the dtype most of them ran in.

    Compiled blocks are left alone, since a hook would compile them again: there the layers
    outside them speak, and where the whole model is one graph its loss. None if there is none.
    """
    if train.compiling and train.compiling.whole:
        # To mypy an attribute of a module is a Tensor or a Module.
        yield lambda: str(module.loss.product_dtype).removeprefix("torch.")  # type: ignore[union-attr]
        return
    dtypes: Counter[str] = Counter()

    def saw(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        # A head gives a loss, and says what its product ran in.
        # To mypy an attribute of a module is a Tensor or a Module.
        ran = output.dtype if output.dim() else layer.loss.product_dtype  # type: ignore[union-attr]
        dtypes[str(ran).removeprefix("torch.")] += 1

    blocks: Any = module.blocks if train.compile else ()
    left_alone = {layer for block in blocks for layer in block.modules()}
    hooks = [
        layer.register_forward_hook(saw)
        for layer in module.modules()
        if isinstance(layer, nn.Linear) and layer not in left_alone
    ]
    try:
        yield lambda: max(dtypes, key=lambda name: dtypes[name], default=None)
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def attention_ops(device: torch.device) -> Iterator[Callable[[], list[str] | None]]:
    """Watch a step; what it gives returns the names of the operators that attention ran as.

    They are what a profiler sees, so it is the same for any model, eager or compiled. One thing it
    cannot see: FlexAttention on a CPU is a function within a compiled library. None where another
    profiler is at work.
    """
    from torch.autograd.profiler import profile

    if torch._C._autograd._profiler_enabled():
        yield lambda: None
        return
    names: set[str] = set()
    profiler = profile(use_kineto=True, use_device="cuda" if device.type == "cuda" else None)
    with profiler:
        yield lambda: sorted(names)
    result: Any = profiler.kineto_results
    names |= {name for event in result.events() if (name := _attention_op(event.name()))}
    if dynamo.counters["inductor"]["cpp_templated_kernel_counter"]:
        names.add("cpp_flex_attention")  # the only template that is used without max_autotune


def _attention_op(name: str) -> str | None:
    found = _ATTENTION.fullmatch(name)
    if found is None or _NOT_A_KERNEL.fullmatch(name):
        return None
    return found[1] or name


def num_compiled() -> int:
    """Graphs torch.compile has captured in this process."""
    return int(dynamo.counters["stats"]["unique_graphs"])


def compile_facts() -> dict[str, Any] | None:
    """What torch.compile did in this process; None if it captured nothing.

    seconds: all of the first calls' compilation. cache_hits, cache_misses: compiled graphs (forward
    and backward apart) that were found in Inductor's cache on disk, or not. cold: not all were.
    """
    if not num_compiled():
        return None
    times = dynamo.calculate_time_spent()
    counters = dynamo.counters
    hits = int(counters["inductor"]["fxgraph_cache_hit"])
    misses = sum(counters["inductor"][f"fxgraph_cache_{kind}"] for kind in ("miss", "bypass"))
    return {
        "seconds": float(times.get("total_wall_time", times.get("entire_frame_compile", 0.0))),
        "graphs": num_compiled(),
        "graph_breaks": sum(counters["graph_break"].values()),
        "break_reasons": [
            " ".join(reason.split())[:MAX_REASON_LENGTH]
            for reason, _ in counters["graph_break"].most_common(MAX_REASONS)
        ],
        "cache_hits": hits,
        "cache_misses": misses,
        "cold": misses > 0 or hits == 0,
    }


def num_to_recompute(train: Train, num_blocks: int) -> int:
    """The blocks that the backward of a step must run again."""
    if train.mode == "forward":
        return 0
    return sum(map(len, recomputed(train.activation_checkpointing, num_blocks)))


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
