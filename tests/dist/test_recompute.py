"""Activation checkpointing on two real ranks: every kind, every strategy, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from group import Group, end, no_beat, of_kind, read_lines, tiny_case
from torch._dynamo.utils import counters
from training_run import built

from andromeda_scale import worker
from andromeda_scale.contracts.planned import RankSpec
from andromeda_scale.models.checkpointing import Recomputation
from andromeda_scale.rank import runtime
from andromeda_scale.suite.config import Case
from andromeda_scale.suite.training import Train

pytestmark = pytest.mark.thorough

MODEL = {
    "family": "andromeda",
    "vocab_size": 256,
    "d_model": 32,
    "num_layers": 3,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 32,
    "alibi_num_heads": 1,
}
KINDS: dict[str, Any] = {
    "selective": "selective",  # first: DeepSpeed replaces torch's linear function for good
    "none": "none",
    "block": "block",
    "every 2": {"every": 2},
    "segment 2": {"segment": 2},
}
RUN_AGAIN = {"selective": 3, "none": 0, "block": 3, "every 2": 2, "segment 2": 3}
STRATEGIES = ("ddp", "fsdp2", "hsdp", "fsdp1", "zero1", "zero2", "zero3")
STEPS = 2


def train(spec: RankSpec, out: str, names: tuple[str, ...]) -> None:
    """Train the case STEPS steps under several kinds, one by one; save what each showed."""
    if spec.case.train.compile:  # captured and cut as for C++, of which none is compiled
        compile_graph = torch.compile
        torch.compile = lambda f: compile_graph(f, backend="aot_eager_decomp_partition")
    rt = runtime.start(spec)
    runtime.init_process_group(spec, rt)
    found = {}
    for name in names:
        settings = spec.case.train.model_dump() | {"activation_checkpointing": KINDS[name]}
        case = spec.case.model_copy(update={"train": Train(**settings)})
        found[name] = _steps(case, rt)
        torch._dynamo.reset()
        counters.clear()
    torch.save(found, f"{out}-{rt.rank}")


def _steps(case: Case, rt: runtime.Runtime) -> dict[str, Any]:
    strategy, state, step = built(case, rt)
    norms: list[float] = []

    def before_update() -> None:
        norms.append(float(strategy.gradient_norm(state)))

    losses = [float(step(index, before_update=before_update)[0]) for index in range(STEPS)]
    breaks = dict(counters["graph_break"])
    return {
        "losses": losses,
        "norms": norms,
        "breaks": breaks,
        **state.module.describe_checkpointing(),
    }


Run = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def run(group: Group, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """run(strategy, kinds): by kind, what rank 0 saw; all of them in one group of two ranks."""
    directory = tmp_path_factory.mktemp("kinds")

    @cache
    def run(
        strategy: str, names: tuple[str, ...] = tuple(KINDS), *, compiled: bool = False
    ) -> dict[str, dict[str, Any]]:
        case = tiny_case(strategy, model=MODEL, train={"grad_accum": 2, "compile": compiled})
        specs = group.specs(case, 2)
        out = directory / f"{strategy}-{compiled}"
        group.run(train, [(spec, str(out), names) for spec in specs])
        return torch.load(f"{out}-0")

    return run


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_kind_trains_as_none_does(run: Run, strategy: str) -> None:
    found = run(strategy)
    for name, one in found.items():
        assert one["losses"] == pytest.approx(found["none"]["losses"], rel=1e-6), name
        assert one["norms"] == pytest.approx(found["none"]["norms"], rel=1e-5), name
        assert one["kind"] == KINDS[name]
        assert one["blocks_recomputed"] == RUN_AGAIN[name], name


@pytest.mark.thorough
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero3"])
def test_compiled_blocks_train_as_eager_ones_do_whatever_is_recomputed(
    run: Run, strategy: str
) -> None:
    eager = run(strategy)["none"]
    for name, one in run(strategy, ("selective", "segment 2"), compiled=True).items():
        assert one["losses"] == pytest.approx(eager["losses"], rel=1e-5), name
        assert one["norms"] == pytest.approx(eager["norms"], rel=1e-4), name
        assert one["breaks"] == {}
        assert one["blocks_recomputed"] == (None if name == "selective" else RUN_AGAIN[name])


def forgetful(spec: RankSpec) -> None:
    """A worker whose model checkpoints nothing, and says so."""
    Recomputation.__call__ = lambda self, blocks, x: reduce(lambda x, b: b(x), blocks, x)
    worker.main(spec, no_beat)


def test_blocks_that_backward_did_not_run_again_are_invalid(group: Group) -> None:
    case = tiny_case("single", train={"activation_checkpointing": "block"})
    (spec,) = group.specs(case, 1)
    group.run(forgetful, [(spec,)])
    last = end(read_lines(Path(spec.record_path)))
    assert last["status"] == "invalid"
    assert last["cause"] == "checkpointing.blocks_recomputed is 0, asked for 2"


def test_what_was_recomputed_is_recorded(run_case: Callable[..., Any]) -> None:
    case = tiny_case("single", train={"activation_checkpointing": {"every": 2}})
    (lines,) = run_case(case)
    assert end(lines)["status"] == "ok"
    found = of_kind(lines, "describe")[0]["values"]["checkpointing"]
    assert found == {"kind": {"every": 2}, "blocks_recomputed": 1}
