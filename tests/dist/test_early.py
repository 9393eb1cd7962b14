"""FSDP2's early gathers and norms on two real ranks: the same training, begun sooner."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from group import LLAMA, Group, tiny_case
from training_run import built, full_parameters

from andromeda_scale.collectors.trace import Recording
from andromeda_scale.contracts.planned import RankSpec
from andromeda_scale.rank import runtime
from andromeda_scale.rank.train_step import marked

STEPS = 3
LATE = {"early_gather": False, "early_norm": False}
# An eps above the roots of its second moments, so that Adam's step depends on the clipping.
TRAIN = {"grad_clip": 0.5, "optimizer": {"name": "adamw", "eps": 1.0}, "learning_rate": 1.0}


def train(spec: RankSpec, out: str) -> None:
    """Train; save norms, losses, weights, facts, and the last step's gathers by when they began."""
    rt = runtime.start(spec)
    runtime.init_process_group(spec, rt)
    strategy, state, step = built(spec.case, rt)
    norms: list[float] = []

    def before_update() -> None:
        norms.append(float(strategy.gradient_norm(state)))

    losses = [float(step(index, before_update=before_update)[0]) for index in range(STEPS - 1)]
    recording = Recording(None)
    losses.append(float(step(STEPS - 1, marked, before_update)[0]))
    events, _ = recording.stop()
    gathers = events.spans[events.find(lambda name: name.startswith("FSDP::all_gather ("))]
    begun = {}
    for phase in ("forward", "backward", "update"):
        spans = events.spans[events.find(lambda n, p=phase: n == f"andromeda::{p}")].tolist()
        starts = gathers[:, 0].tolist()
        begun[phase] = sum(start <= at < end for start, end in spans for at in starts)
    weights = full_parameters(state)
    said = strategy.describe(state)["update"]
    found = {"norms": norms, "losses": losses, "begun": begun, "weights": weights, "said": said}
    torch.save(found, out)


Run = Callable[..., dict[str, Any]]
Settings = tuple[tuple[str, Any], ...]


@pytest.fixture(scope="module")
def run(group: Group, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """run(strategy, settings of train, options): what rank 0 saw."""
    directory: Path = tmp_path_factory.mktemp("early")

    @cache
    def run(name: str, settings: Settings, **options: Any) -> dict[str, Any]:
        strategy = {"name": name, "options": options}
        case = tiny_case(strategy, train=TRAIN | dict(settings), model=LLAMA | {"num_layers": 3})
        out = str(directory / f"{name}-{len(list(directory.iterdir()))}")
        group.run(train, [(spec, f"{out}-{spec.rank}") for spec in group.specs(case, 2)])
        return dict(torch.load(f"{out}-0"))

    return run


@pytest.mark.parametrize(
    ("name", "settings", "options"),
    [
        ("fsdp2", (), {}),
        ("fsdp2", (("grad_accum", 2),), {"reshard_after_forward": False}),
        ("hsdp", (), {"shard_size": 2}),
        ("fsdp2", (("optimizer", "sgd"),), {"cpu_offload": True}),
        # Nothing is clipped: a weight's rounding to bfloat16 may turn on a factor's last bit.
        (
            "fsdp2",
            (("precision", "bf16"), ("grad_clip", 100.0)),
            {"reduce_dtype": "bfloat16"},
        ),
    ],
    ids=["fsdp2", "accumulating", "hsdp", "offloaded", "bf16"],
)
def test_early_gathers_and_norms_change_nothing_but_when(
    run: Run, name: str, settings: Settings, options: dict[str, Any]
) -> None:
    early, late = run(name, settings, **options), run(name, settings, **options, **LATE)
    assert early["norms"] == pytest.approx(late["norms"], rel=1e-6)
    assert early["losses"] == pytest.approx(late["losses"], rel=1e-6)
    for key, weight in late["weights"].items():
        torch.testing.assert_close(early["weights"][key], weight, rtol=1e-5, atol=1e-6, msg=key)
    assert early["said"] == {"streams": 1, "early_gather": True, "early_norm": True}
    assert late["said"] == {"streams": 1, "early_gather": False, "early_norm": False}
    # The embedding and the first block; every unit is gathered as often as before.
    assert (early["begun"]["update"], late["begun"]["update"]) == (2, 0)
    assert sum(early["begun"].values()) == sum(late["begun"].values())
