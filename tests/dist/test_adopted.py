"""Models of others on two real ranks: weights, buffers, ties and losses are one process's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from group import Group, end, phase_values, tiny_case
from training_run import Trace, largest_difference, make_strategy, mean_losses, train

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

from adopted_models import CALLABLES, GPT2, LLAMA

from andromeda_scale.contracts.planned import RankSpec
from andromeda_scale.models.factory import ModelFactory
from andromeda_scale.rank import runtime
from andromeda_scale.suite.config import Case

pytestmark = pytest.mark.thorough

MODELS: dict[str, dict[str, Any]] = {
    "llama": {"family": "huggingface", "config": LLAMA},
    "gpt2": {"family": "huggingface", "config": GPT2},  # its head is its table
    "custom": {"family": "custom", "callable": "own_models:Model"},  # no blocks: one unit; tied
}
STRATEGIES = ("ddp", "fsdp2", "zero3")


@pytest.fixture(scope="module", autouse=True)
def _own_module_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The directory where the command would be typed, with a module of the user's in it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_models.py").write_text(CALLABLES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


def case_of(model: str, strategy: str, ranks: int, **settings: Any) -> Case:
    """The same 8 sequences a step on any number of ranks; single takes them in two parts."""
    accum = 2 if strategy == "single" else 1
    settings = {"micro_batch_size": 8 // ranks // accum, "grad_accum": accum, **settings}
    return tiny_case(strategy, model=MODELS[model], train=settings)


@pytest.fixture(scope="module")
def traces(group: Group, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Trace]]:
    """traces(model, strategy) -> what each rank saved of three steps; each run once."""
    directory = tmp_path_factory.mktemp("traces")

    @cache
    def run(model: str, strategy: str) -> list[Trace]:
        ranks = 1 if strategy == "single" else 2
        specs = group.specs(case_of(model, strategy, ranks), ranks)
        out = directory / specs[0].store_prefix.replace("/", "-")
        group.run(train, [(spec, str(out)) for spec in specs])
        return [torch.load(f"{out}-{rank}") for rank in range(ranks)]

    return run


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("model", MODELS)
def test_weights_losses_and_training_are_singles(
    traces: Callable[..., list[Trace]], model: str, strategy: str
) -> None:
    single, ranks = traces(model, "single"), traces(model, strategy)
    assert mean_losses(ranks) == pytest.approx(mean_losses(single), rel=1e-6)
    for rank in ranks:
        for name, weight in single[0]["weights"].items():
            assert torch.equal(rank["weights"][name], weight), name
        assert rank["norms"] == pytest.approx(single[0]["norms"], rel=1e-5)
        # A step moves a weight by up to 1e-3; Adam's sign of a near-zero gradient is rounding.
        moved = largest_difference(rank["trained"], rank["weights"])
        assert largest_difference(rank["trained"], single[0]["trained"]) < 0.2 * moved
        assert moved > 1e-3


def save_frequencies(spec: RankSpec, out: str) -> None:
    """Build in a rank and save the rotary frequencies of the model as it will run."""
    rt = runtime.start(spec)
    runtime.init_process_group(spec, rt)
    strategy = make_strategy(spec.case)
    state = strategy.build(ModelFactory(spec.case.model, spec.case.train, 0), rt)
    torch.save(state.module.model.model.rotary_emb.inv_freq, f"{out}-{rt.rank}")


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_rotary_frequencies_are_not_rounded_where_deepspeed_casts_the_model(
    group: Group, tmp_path: Path, strategy: str
) -> None:
    specs = group.specs(case_of("llama", strategy, 2, precision="bf16"), 2)
    group.run(save_frequencies, [(spec, str(tmp_path / "frequencies")) for spec in specs])
    for rank in range(2):
        found = torch.load(tmp_path / f"frequencies-{rank}")
        torch.testing.assert_close(found, 1e4 ** -(torch.arange(0, 8, 2) / 8))  # heads of width 8


def test_a_rank_records_the_parameters_it_built_and_its_backend(group: Group) -> None:
    for lines in group.run_case(case_of("gpt2", "ddp", 2), 2):
        assert end(lines)["status"] == "ok", end(lines)
        # 2 blocks of 12 d^2 + 13 d, table 256 d and positions 64 d, final norm 2 d; d = 32.
        expected = 2 * (12 * 32**2 + 13 * 32) + (256 + 64 + 2) * 32
        assert phase_values(lines, "setup")["model"] == {"num_parameters": expected}
        described = next(line for line in lines if line["kind"] == "describe")["values"]
        assert described["attention"]["kernel"] == "sdpa_causal"


def test_a_forward_without_a_loss_ends_the_repeat_as_invalid(group: Group) -> None:
    model = {"family": "custom", "callable": "own_models:no_loss"}
    for lines in group.run_case(tiny_case("ddp", model=model), 2):
        last = end(lines)
        assert (last["status"], last["phase"]) == ("invalid", "warmup")
        assert "not a pair; return (the summed loss in float32" in last["cause"]


def test_a_step_the_model_refuses_ends_as_unavailable_with_the_key(group: Group) -> None:
    case = tiny_case(model=MODELS["llama"], train={"attention": "sdpa_bias"})
    (lines,) = group.run_case(case)
    last = end(lines)
    assert last["status"] == "unavailable"
    assert last["cause"].startswith("train.attention: sdpa_bias is a kernel of this package's own")
