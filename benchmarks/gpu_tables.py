"""The tables of `gpu_results.py`: what is run, and what each row shall reach.

A table is a list of suites, whose cases are its rows, and a rule that gives each row its reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

SUITES = Path(__file__).resolve().parents[1] / "configs" / "suites"

Row = Mapping[str, Any]
Suite = dict[str, Any]
# A row among all of its table -> a value, and how it is written.
Column = tuple[Callable[[Row, Sequence[Row]], Any], str]


@dataclass(frozen=True)
class Reach:
    """What a row shall reach: its `found` at least `bound`, or at most."""

    what: str
    found: float
    bound: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        return self.found <= self.bound if self.at_most else self.found >= self.bound


@dataclass(frozen=True)
class Table:
    """One question, the suites that answer it, and the reach of each row (None: it has none)."""

    question: str
    suites: Sequence[Suite]
    reach: Callable[[Row, Sequence[Row]], Reach | None] = lambda row, rows: None
    # Name -> a script of this folder and its arguments, run by torchrun in turns with the first
    # suite: theirs, ours, ours, theirs.
    peers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    columns: Mapping[str, Column] = field(default_factory=dict)  # beside those of every table

    def __or__(self, other: Table) -> Table:
        """This question asked of the other's suites too."""
        return replace(self, suites=[*self.suites, *other.suites])


ENVIRONMENT = {"NCCL_NVLS_ENABLE": "0"}
SHORT = {
    "warmup": {"min_steps": 6, "max_steps": 12},
    "steps": 20,
    "repeats": 1,
    "profile_steps": 0,
}
FSDP2 = {"name": "fsdp2", "reduce_dtype": "bfloat16"}
KEPT = FSDP2 | {"reshard_after_forward": False}
LLAMA = {"seq_len": 8192, "micro_batch_size": 1, "precision": "bf16", "compile": True}
# Logits fit whole: the head's gradient is then one product, and no sum in float32.
WHOLE_LOSS = LLAMA | {"loss_chunks": 1}
LARGE = {"seq_len": 1024, "micro_batch_size": 8, "precision": "bf16", "compile": True}
# As many sequences of andromeda-410m as keep one GPU from waiting for its host.
FULL = {"micro_batch_size": 16}
CS336 = {"seq_len": 256, "micro_batch_size": 4, "mode": "forward_backward"}
# Small models wait for the host: one graph of the whole model, replayed by CUDA.
GRAPHS = {"mode": "reduce-overhead", "whole": True}
SIZES = ("small", "medium", "large", "xl", "2.7b")
CS336_MS: dict[str, dict[str, float]] = {
    "fp32": dict(zip(SIZES, (25.2, 66.7, 160.7, 320.4, 478.2), strict=True)),
    "bf16": dict(zip(SIZES, (10, 18, 30, 48, 65), strict=True)),
}
# Forward and backward in float32 at batch 4, context 256, as a CS336 benchmark published them.
PUBLISHED_MS = dict(zip(SIZES, (38.9, 90.8, 203.7, 393.7, 556.9), strict=True))
# Larger buckets than DDP's 25 MB: fewer all-reduces, each at more of the bandwidth.
BUCKETS = {"name": "ddp", "bucket_cap_mb": 200}
# What forward gathers stays until backward, as under FSDP2 without reshard_after_forward, and is
# gathered many blocks at a time.
REUSED = {
    "name": "zero3",
    "max_reuse_distance": 10**10,
    "max_live_parameters": 10**10,
    "prefetch_bucket_size": 3 * 10**8,
}
# Gradients cross the network beside backward, in buckets that leave something to hide them.
OVERLAPPED = {"overlap_comm": True, "reduce_bucket_size": 10**8}
STRATEGIES: list[Any] = [
    BUCKETS,
    "fsdp2",
    {"name": "zero1"} | OVERLAPPED,
    {"name": "zero2"} | OVERLAPPED,
    REUSED,
]
ZERO_LEVERS: list[Suite] = [{"check_grad_overflow": True}, {}, OVERLAPPED]
ZERO3_LEVERS: list[Suite] = [
    {"blocks_per_unit": 1},
    {},
    {"reduce_bucket_size": 10**8},
    {"prefetch_bucket_size": 5 * 10**7},
    {"prefetch_bucket_size": 5 * 10**7, "param_persistence_threshold": 100_000},
]
# Thread blocks of NCCL; buffers it may send from without a copy; copies by the GPU's copy engines.
WIRES = [
    {"NCCL_MAX_CTAS": "8"},
    {"NCCL_MIN_CTAS": "32"},
    {"TORCH_NCCL_USE_TENSOR_REGISTER_ALLOCATOR_HOOK": "1"},
    {"NCCL_P2P_USE_CUDA_MEMCPY": "1"},
]
WEAK = {"ddp": 0.97, "fsdp2": 0.96, "zero1": 0.96, "zero2": 0.96, "zero3": 0.85}


PEERS = {
    "bare_loop": ("bare_loop.py", "llama-3.1-8b", "--strategy=fsdp2", "--keep"),
    "torchtitan": ("titan_loop.py", "llama-3.1-8b"),
}


def _llama(row: Row, rows: Sequence[Row]) -> Reach | None:
    if row["strategy"] in PEERS:
        return None
    return Reach("tokens/s/GPU", row["tokens_per_s_per_gpu"], 9850)


def _cs336(row: Row, rows: Sequence[Row]) -> Reach | None:
    bounds = CS336_MS[row["precision"]]
    size = row["model"].removeprefix("cs336-")
    if size not in bounds:  # a rehearsal's
        return None
    return Reach("step ms", 1e3 * row["window_step_s"], bounds[size], at_most=True)


def _published(row: Row, rows: Sequence[Row]) -> float | None:
    return PUBLISHED_MS.get(row["model"][6:]) if row["precision"] == "fp32" else None


def _of_the_first(row: Row, rows: Sequence[Row]) -> float:
    """A step over one of the first settings of its time: one word begins the names of its runs.

    The first settings may have had several launches; it is their geometric mean.
    """
    time = [other for other in rows if _time(other) == _time(row) and other["status"] == "ok"]
    same = [other["window_step_s"] for other in time if other["case_id"] == time[0]["case_id"]]
    return float(row["window_step_s"] / math.prod(same) ** (1 / len(same)))


def _time(row: Row) -> str:
    return str(row["run"]).partition("-")[0]


def _weak(row: Row, rows: Sequence[Row]) -> Reach | None:
    if row["world_size"] == 1:
        return None
    return Reach("weak efficiency", row["efficiency"], WEAK[row["strategy"]])


def _andromeda(row: Row, rows: Sequence[Row]) -> Reach | None:
    return Reach("MFU", row["mfu"], 0.45)


def _of_fsdp2(row: Row, rows: Sequence[Row]) -> Reach | None:
    if row["strategy"] != "zero3":
        return None
    of_all = [r for r in rows if r["strategy"] == "fsdp2" and r["status"] == "ok"]
    of_run = [r for r in of_all if r["run"] == row["run"]]
    if not of_all:
        return None
    best = max(of_run or of_all, key=lambda r: float(r["tokens_per_s"]))
    # Of another run the ratio is also one of hosts and days.
    what = "speed / fsdp2's" if of_run else f"speed / fsdp2's in {best['run']}"
    return Reach(what, row["tokens_per_s"] / best["tokens_per_s"], 0.85)


# Eight layers of the 8B shape: its widths and its vocabulary, at a quarter of the time.
LAYERS_8 = {"base": "llama-3.1-8b", "num_layers": 8}
# The most of them that one H200 trains under most strategies, and not under all.
LAYERS_24 = {"base": "llama-3.1-8b", "num_layers": 24}


def _lever(
    train: Suite | None = None, strategy: Suite | None = None, measure: Suite | None = None
) -> Suite:
    """The best settings with one of them undone."""
    found = {"model": LAYERS_8, "world": [2], "measure": SHORT | (measure or {})}
    return found | {"train": LLAMA | (train or {}), "strategy": KEPT | (strategy or {})}


def _on_two(strategy: Suite, **environment: str) -> Suite:
    """Weak scaling of the 0.97 B shape with these settings."""
    profiled = {"measure": SHORT | {"profile_steps": 5}, "collect": ["memory", "communication"]}
    found = {"model": "cs336-large", "world": [1, 2], "train": LARGE, "strategy": strategy}
    return found | profiled | {"env": ENVIRONMENT | environment}


def _shipped(name: str, axes: Suite, **changes: Any) -> Table:
    """A suite that is shipped, on one GPU: its question, its model, its text."""
    suite = yaml.safe_load((SUITES / f"{name}.yaml").read_text(encoding="utf-8"))
    train = suite["train"] | changes.pop("train", {})
    on_one = {"world": [1], "strategy": "single", "train": train, "axes": axes}
    return Table(suite["question"], [suite | on_one | changes])


def _context(model: str, lengths: Sequence[int], **train: Any) -> Table:
    few = SHORT | {"warmup": {"min_steps": 3, "max_steps": 4}, "steps": 8}
    train = {"compile": True, "attention": "flex"} | train
    return _shipped("context", {"train.seq_len": lengths}, model=model, train=train, measure=few)


def _attention(seq_len: int, sequences: int) -> Table:
    """As many tokens a step at each length: enough that a step does not wait for the host."""
    heads, kernels = [0, 4], ["naive", "sdpa_bias", "sdpa_causal", "flex"]
    axes = {"model.alibi_num_heads": heads, "train.attention": kernels}
    train = {"seq_len": seq_len, "micro_batch_size": sequences}
    return _shipped("attention", axes, train=train)


TABLES: dict[str, Table] = {
    "llama": Table(
        "How fast does Llama 3.1 8B train, beside torchtitan and a loop written by hand?",
        [{"model": "llama-3.1-8b", "world": [2], "train": WHOLE_LOSS, "strategy": KEPT}],
        _llama,
        PEERS,
    ),
    "levers": Table(
        "What does each lever of a training step buy? First all of them, then each one undone.",
        [
            _lever(),
            _lever({"compile": {"mode": "max-autotune-no-cudagraphs"}}),
            _lever({"loss_chunks": 1}),
            _lever({"loss_chunks": 16}),
            _lever({"compile": False}),
            _lever({"attention_backend": "flash"}),
            _lever({"update_streams": 1}),
            _lever({"activation_checkpointing": "selective"}),
            _lever(strategy={"reduce_dtype": "float32"}),
            _lever(strategy={"prefetch": 0}),
            _lever(strategy={"early_gather": False}),
            _lever(strategy={"early_norm": False}),
            _lever(strategy={"reshard_after_forward": True}),
            _lever(strategy={"reshard_after_forward": True, "reshard_last": True}),
            _lever({"optimizer": {"name": "adamw", "fused": False}}),
            _lever(measure={"collect_garbage": True}),
        ],
        columns={"of the first": (_of_the_first, ".3f")},
    ),
    "weak": Table(
        "What does a second GPU buy, at the same work for each?",
        [
            {
                "model": "cs336-large",
                "world": [1, 2],
                "train": LARGE,
                "axes": {"strategy": STRATEGIES},
                "measure": SHORT | {"repeats": 3, "profile_steps": 5},
                "collect": ["memory", "communication"],
            }
        ],
        _weak,
    ),
    "weak-levers": Table(
        "What brings two GPUs closer to twice one? Units of FSDP2, buckets of DDP and ZeRO.",
        [_on_two(BUCKETS | {"bucket_cap_mb": size}) for size in (25, 200, 1000)]
        + [_on_two(BUCKETS | {"compression": "bf16"})]
        + [_on_two(BUCKETS, **wire) for wire in WIRES]
        + [_on_two({"name": "fsdp2", "blocks_per_unit": blocks}) for blocks in (1, 4)]
        + [_on_two(KEPT | {"blocks_per_unit": blocks}) for blocks in (1, 4, 9)]
        + [_on_two({"name": stage} | how) for stage in ("zero1", "zero2") for how in ZERO_LEVERS]
        + [_on_two(REUSED | how) for how in ZERO3_LEVERS],
    ),
    "cs336": Table(
        "How long are forward and backward of the five CS336 sizes?",
        [
            {
                "world": [1],
                "model": "cs336-small",
                "strategy": "single",
                "train": CS336 | {"precision": precision, "compile": compiled},
                "axes": {"model": [f"cs336-{size}" for size in SIZES]},
            }
            for precision, compiled in (("fp32", False), ("fp32", GRAPHS), ("bf16", GRAPHS))
        ],
        _cs336,
        columns={"published ms": (_published, ".1f")},
    ),
    "andromeda": Table(
        "Which share of the GPU's peak does Andromeda reach, with which attention?",
        [
            {
                "world": [1],
                "model": "andromeda-1b",
                "strategy": "single",
                "train": {
                    "seq_len": seq_len,
                    "micro_batch_size": sequences,
                    "precision": "bf16",
                    "compile": True,
                },
                "axes": {
                    "model": ["andromeda-1b", "andromeda-3b"],
                    "train.attention": ["flex", "sdpa_causal"],
                },
            }
            for seq_len, sequences in ((2048, 8), (8192, 2))
        ],
        _andromeda,
    ),
    "update": Table(
        "What does an update in two halves, side by side, save?",
        [
            {
                "model": "cs336-2.7b",
                "world": [1],
                "strategy": "single",
                "train": LARGE,
                "axes": {"train.update_streams": [1, 2]},
                "measure": SHORT | {"repeats": 2},
            }
        ],
    ),
    "zero3": Table(
        "Does the 2.7B shape train under ZeRO-3, and how fast beside FSDP2?",
        [
            {
                "model": "cs336-2.7b",
                "world": [2],
                "train": LARGE,
                "axes": {"strategy": ["fsdp2", "zero3", REUSED]},
            }
        ],
        _of_fsdp2,
    ),
    "auto": Table(
        "Which micro batch fits one GPU, and which strategy that fits is the fastest?",
        [
            {
                "model": "andromeda-1b",
                "world": [1],
                "strategy": "single",
                "train": LLAMA | {"seq_len": 2048, "micro_batch_size": "auto", "attention": "flex"},
            },
            {"model": "llama-3.1-8b", "world": [2], "strategy": "auto", "train": WHOLE_LOSS},
            {"model": LAYERS_24, "world": [1], "strategy": "auto", "train": WHOLE_LOSS},
        ],
    ),
    # The smaller as far as xPos goes, the larger as far as memory does, and as checkpointing does.
    "context": _context("andromeda-1b", [1024 * 2**doublings for doublings in range(7)])
    | _context("andromeda-3b", [8192, 16384, 32768, 40960, 49152])
    | _context("andromeda-3b", [65536], activation_checkpointing="block"),
    "batch": replace(
        _shipped(
            "batch",
            {"train.mode": ["forward", "train_step"], "train.micro_batch_size": [1, 4, 16, 64]},
            collect=["memory", "energy"],
            train={"compile": True, "attention": "flex"},
        ),
        columns={"mode": (lambda row, rows: row["mode"], "")},
    ),
    "precision": _shipped(
        "precision",
        {"train.compile": [False, True], "train.precision": ["fp32", "tf32", "bf16", "fp16"]},
    )
    | _shipped(
        "precision",
        {
            "strategy": ["single", "fsdp2", "zero2"],
            "train.precision": ["fp32", "tf32", "bf16", "fp16"],
        },
        train={"compile": True} | FULL,
    ),
    "compile": replace(
        _shipped("compile", {"train.compile": [False, True, GRAPHS]})
        | _shipped(
            "compile",
            {
                "strategy": ["single", "ddp", "fsdp2", "zero2", "zero3"],
                "train.compile": [False, True],
            },
            train=FULL,
        ),
        columns={"first step s": (lambda row, rows: row["first_step_s"], ".1f")},
    ),
    "checkpointing": _shipped(
        "checkpointing",
        {
            "train.compile": [False, True],
            "train.activation_checkpointing": ["none", "selective", {"every": 2}, "block"],
        },
    ),
    "attention": _attention(2048, 8) | _attention(8192, 2),
}
