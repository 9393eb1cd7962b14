"""The phases of a repeat and every way it can end, in real ranks."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import planted
import pytest
from group import (
    ANDROMEDA,
    LLAMA,
    Group,
    Line,
    end,
    no_beat,
    of_kind,
    phase_values,
    read_lines,
    tiny_case,
)

from andromeda_scale import registry, worker
from andromeda_scale.collectors.base import Collector, Context
from andromeda_scale.contracts.planned import RankSpec
from andromeda_scale.contracts.records import Phase
from andromeda_scale.errors import CollectorUnavailable
from andromeda_scale.strategies.ddp import Ddp
from andromeda_scale.strategies.zero import Zero1

RunCase = Callable[..., list[list[Line]]]

STRATEGIES = ("single", "ddp", "fsdp2", "zero1", "zero2", "zero3")


class Watcher(Collector):
    """Notes what it was called with; exchanges ranks in `stop`."""

    phases: frozenset[Phase] = frozenset({"setup", "warmup", "profile"})

    def start(self, phase: Phase, context: Context) -> None:
        self._context = context
        self._had_state = context.state is not None
        if phase == "profile":
            from torch.profiler import profile

            self._profiler = profile()
            self._profiler.__enter__()

    def stop(self, phase: Phase) -> Mapping[str, Any]:
        ranges: dict[str, int] = {}
        if phase == "profile":
            self._profiler.__exit__(None, None, None)
            for event in self._profiler.events():
                if event.name.startswith("andromeda::"):
                    ranges[event.name] = ranges.get(event.name, 0) + 1
        ranks = self._context.gather(self._context.runtime.rank)
        return {"had_state": self._had_state, "ranks": ranks, "ranges": ranges}


class Absent(Collector):
    """Cannot work here."""

    phases: frozenset[Phase] = frozenset({"warmup", "measure"})

    def start(self, phase: Phase, context: Context) -> None:
        if phase == "warmup":
            raise CollectorUnavailable("no counter on this machine")

    def stop(self, phase: Phase) -> Mapping[str, Any]:
        raise CollectorUnavailable("stopped counting")


def watched(spec: RankSpec, beats: str) -> None:
    """A worker with two more collectors, whose beats go to a file."""
    registry.COLLECTORS |= {"watcher": "test_worker:Watcher", "absent": "test_worker:Absent"}
    seen: list[tuple[str, int, int]] = []
    worker.main(spec, lambda *beat: seen.append(beat))
    Path(f"{beats}-{spec.rank}").write_text(json.dumps(seen))


@pytest.fixture(scope="module")
def watched_ranks(
    group: Group, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[list[Line]], list[list[Any]]]:
    """Lines and beats of two ranks, with two micro-batches, all phases and both collectors."""
    out = tmp_path_factory.mktemp("beats") / "beats"
    case = tiny_case(
        "ddp",
        train={"grad_accum": 2},
        measure={"warmup": {"min_steps": 3, "max_steps": 3}, "steps": 4, "profile_steps": 2},
        collect=("watcher", "absent", "system"),
    )
    specs = group.specs(case, 2)
    group.run(watched, [(spec, str(out)) for spec in specs])
    lines = [read_lines(Path(spec.record_path)) for spec in specs]
    return lines, [json.loads(Path(f"{out}-{rank}").read_text()) for rank in range(2)]


def test_a_record_holds_every_line_in_order(watched_ranks: Any) -> None:
    for rank, lines in enumerate(watched_ranks[0]):
        kinds = [line["kind"] for line in lines]
        assert kinds == ["start", *["phase"] * 5, "describe", "end"]
        phases = of_kind(lines, "phase")
        assert [p["phase"] for p in phases] == ["setup", "warmup", "measure", "profile", "inspect"]
        edges = [edge for p in phases for edge in (p["start_s"], p["end_s"])]
        assert edges == sorted(edges)
        assert end(lines)["status"] == "ok"
        assert end(lines)["end_s"] >= edges[-1]
        assert {line["rank"] for line in lines} == {rank}
        assert lines[0]["device"] == "cpu"
        assert lines[0]["world_size"] == 2


def test_steps_are_timed_from_boundary_to_boundary(watched_ranks: Any) -> None:
    for lines in watched_ranks[0]:
        for phase, steps in (("warmup", 3), ("measure", 4), ("profile", 2)):
            times = phase_values(lines, phase)["step_time"]
            assert len(times["step_ns"]) == steps
            assert all(ns > 0 for ns in times["step_ns"])
            assert sum(times["step_ns"]) <= times["window_ns"]
            assert times["window_ns"] - sum(times["step_ns"]) < 0.01 * times["window_ns"]
            assert times["tokens"] == steps * 2 * 2 * 16  # micro-batches, sequences, tokens
        assert phase_values(lines, "warmup")["warmup"] == {"ended_by": "fixed", "steps": 3}


def test_setup_is_timed_in_parts(watched_ranks: Any) -> None:
    setup = phase_values(watched_ranks[0][0], "setup")["setup"]
    assert set(setup) == {"device_s", "process_group_s", "data_s", "model_s"}
    phase = of_kind(watched_ranks[0][0], "phase")[0]
    assert 0 < sum(setup.values()) <= phase["end_s"] - phase["start_s"]


def test_ranges_mark_the_profiled_steps(watched_ranks: Any) -> None:
    for lines in watched_ranks[0]:
        ranges = phase_values(lines, "profile")["watcher"]["ranges"]
        assert ranges == {
            "andromeda::step": 2,
            "andromeda::data": 4,
            "andromeda::forward": 4,
            "andromeda::backward": 4,
            "andromeda::update": 2,
        }


def test_collectors_watch_their_phases_and_gather_in_rank_order(watched_ranks: Any) -> None:
    for lines in watched_ranks[0]:
        assert phase_values(lines, "setup")["watcher"]["had_state"] is False
        assert phase_values(lines, "warmup")["watcher"]["had_state"] is True
        assert phase_values(lines, "warmup")["watcher"]["ranks"] == [0, 1]
        assert "watcher" not in phase_values(lines, "measure")
        assert all("system" not in p["values"] for p in of_kind(lines, "phase")), "the agent's"


def test_a_collector_that_cannot_work_is_recorded_and_the_rest_goes_on(watched_ranks: Any) -> None:
    for lines in watched_ranks[0]:
        warmup, measure = phase_values(lines, "warmup"), phase_values(lines, "measure")
        assert warmup["absent"] == {"unavailable": "no counter on this machine"}
        assert measure["absent"] == {"unavailable": "stopped counting"}


def test_beats_name_phases_and_count_steps(watched_ranks: Any) -> None:
    for beats in watched_ranks[1]:
        measured = [beat for beat in beats if beat[0] == "measure"]
        assert measured == [["measure", 0, 0], *(["measure", i, 4] for i in range(1, 5))]
        phases = list(dict.fromkeys(beat[0] for beat in beats))
        assert phases == ["setup", "warmup", "measure", "profile", "inspect"]


def test_describe_reads_back_wrapper_world_dtypes_and_attention(watched_ranks: Any) -> None:
    for lines in watched_ranks[0]:
        (described,) = of_kind(lines, "describe")
        values = described["values"]
        assert (values["wrapper"], values["world_size"]) == ("DistributedDataParallel", 2)
        assert values["dtypes"]["compute"] == "float32"
        assert values["attention"]["kernel"] == "sdpa_causal"
        assert any("attention" in op for op in values["attention"]["ops"])
        assert values["compile"] is None
        assert values["bytes"]["gradients"] == values["bytes"]["parameters"]


@pytest.mark.parametrize("mode", ["forward", "forward_backward"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_other_modes_run_under_every_strategy(run_case: RunCase, strategy: str, mode: str) -> None:
    world_size = 1 if strategy == "single" else 2
    case = tiny_case(strategy, train={"mode": mode, "grad_accum": 2, "precision": "bf16"})
    for lines in run_case(case, world_size):
        assert end(lines)["status"] == "ok", end(lines)
        (described,) = of_kind(lines, "describe")
        values = described["values"]
        assert values["bytes"]["optimizer_state"] == 0
        # DeepSpeed's stage 3 allocates its gradients' buffer whether or not there will be any.
        held = mode == "forward_backward" or strategy == "zero3"
        assert (values["bytes"]["gradients"] > 0) == held
        assert values["dtypes"]["compute"] == "bfloat16"


def test_warm_up_may_be_absent(run_case: RunCase) -> None:
    measure = {"warmup": {"min_steps": 0, "max_steps": 0}, "steps": 1}
    (lines,) = run_case(tiny_case("single", measure=measure))
    assert end(lines)["status"] == "ok"
    assert phase_values(lines, "warmup")["step_time"]["step_ns"] == []
    assert phase_values(lines, "warmup")["warmup"] == {"ended_by": "fixed", "steps": 0}
    assert len(phase_values(lines, "measure")["losses"]["loss_sum"]) == 1


def test_warm_up_ends_alike_on_every_rank(run_case: RunCase) -> None:
    measure = {"warmup": {"min_steps": 5, "max_steps": 30}, "steps": 1}
    ended = [
        phase_values(lines, "warmup") for lines in run_case(tiny_case("ddp", measure=measure), 2)
    ]
    assert ended[0]["warmup"] == ended[1]["warmup"]
    assert ended[0]["warmup"]["ended_by"] in ("slope", "flat", "max_steps")
    assert len(ended[0]["step_time"]["step_ns"]) == ended[0]["warmup"]["steps"]


def test_memory_that_is_not_there_is_oom_with_the_bytes_asked_for(run_case: RunCase) -> None:
    vocab_size, d_model = 2**31 - 1, 2**14  # 128 TiB: more than any host has
    model = LLAMA | {"vocab_size": vocab_size, "d_model": d_model}
    (lines,) = run_case(tiny_case("single", model=model, data={"source": "random"}))
    found = end(lines)
    assert (found["status"], found["phase"]) == ("oom", "setup")
    assert found["detail"]["requested_bytes"] == vocab_size * d_model * 4


def test_any_other_error_is_crashed_with_its_tail(run_case: RunCase, tmp_path: Path) -> None:
    data = {"source": "files", "files": (str(tmp_path / "gone.txt"),)}
    (lines,) = run_case(tiny_case("single", data=data))
    found = end(lines)
    assert (found["status"], found["phase"]) == ("crashed", "setup")
    assert "gone.txt" in found["cause"]
    assert any("batches.py" in line for line in found["detail"]["traceback"])
    assert of_kind(lines, "describe") == []


def test_a_strategy_of_one_rank_is_invalid_on_two(run_case: RunCase) -> None:
    for lines in run_case(tiny_case("single"), 2):
        assert end(lines)["status"] == "invalid"
        assert end(lines)["cause"] == "single runs on one rank, not 2"


def test_static_graph_with_accumulation_is_unavailable(run_case: RunCase) -> None:
    strategy = {"name": "ddp", "options": {"static_graph": True}}
    (lines,) = run_case(tiny_case(strategy, train={"grad_accum": 2}))
    assert end(lines)["status"] == "unavailable"
    assert "train.grad_accum 1" in end(lines)["cause"]


def without_package(spec: RankSpec) -> None:
    """A worker whose ZeRO-1 needs a package nobody has."""
    Zero1.requires = ("a_package_nobody_has",)
    worker.main(spec, no_beat)


def unwrapped(spec: RankSpec) -> None:
    """A worker whose DDP forgets to wrap, and describes itself by what is there."""
    from andromeda_scale.strategies.single import Single

    Ddp.wrap = Single.wrap
    Ddp.describe = Single.describe
    worker.main(spec, no_beat)


def compiled_to_nothing(spec: RankSpec) -> None:
    """A worker in which torch.compile does nothing, silently."""
    import torch

    torch.compile = lambda function: function
    worker.main(spec, no_beat)


def captured(spec: RankSpec) -> None:
    """A worker that captures graphs and runs them as they are: no C++ is compiled."""
    import torch

    compile_graph = torch.compile
    torch.compile = lambda function: compile_graph(function, backend="aot_eager")
    worker.main(spec, no_beat)


def last_lines(group: Group, target: Callable[..., None], case: Any, world_size: int) -> list[Any]:
    specs = group.specs(case, world_size)
    group.run(target, [(spec,) for spec in specs])
    return [read_lines(Path(spec.record_path)) for spec in specs]


def test_a_missing_package_is_unavailable_and_says_what_to_install(group: Group) -> None:
    for lines in last_lines(group, without_package, tiny_case("zero1"), 2):
        assert end(lines)["status"] == "unavailable"
        assert "pip install a_package_nobody_has" in end(lines)["cause"]


def test_a_wrapper_other_than_asked_is_invalid_before_the_first_step(group: Group) -> None:
    for lines in last_lines(group, unwrapped, tiny_case("ddp"), 2):
        assert end(lines)["status"] == "invalid"
        assert end(lines)["cause"] == "wrapper is None, asked for 'DistributedDataParallel'"
        assert [p["phase"] for p in of_kind(lines, "phase")] == ["setup"]


def test_compile_that_captured_nothing_is_invalid(group: Group) -> None:
    case = tiny_case("single", train={"compile": True})
    (lines,) = last_lines(group, compiled_to_nothing, case, 1)
    assert end(lines)["status"] == "invalid"
    assert "captured no graph" in end(lines)["cause"]


PAIRS = {"name": "zero3", "options": {"blocks_per_unit": 2}}


@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp2", "zero2", "zero3", PAIRS], ids=str)
def test_blocks_are_captured_whole_under_compile(group: Group, strategy: Any) -> None:
    case = tiny_case(strategy, train={"compile": True, "precision": "bf16"})
    for lines in last_lines(group, captured, case, 1 if strategy == "single" else 2):
        assert end(lines)["status"] == "ok", end(lines)
        values = of_kind(lines, "describe")[0]["values"]
        assert values["compile"]["graphs"] == 2  # of both blocks, and of the loss
        assert values["compile"]["graph_breaks"] == 0
        assert values["compile"]["seconds"] > 0
        assert values["dtypes"]["compute"] == "bfloat16"
        assert values["compile"]["break_reasons"] == []
        assert values["attention"]["ops"] == ["_scaled_dot_product_flash_attention_for_cpu"]


def test_compiled_blocks_with_biases_have_the_gradients_of_eager_ones_under_zero3(
    group: Group,
) -> None:
    """Of DeepSpeed's own linear function torch 2.11's compiler takes them to be zero."""
    norms = []
    for strategy, compiled in (("single", False), ("zero3", True)):
        train = {"compile": compiled, "precision": "bf16", "attention": "naive"}
        case = tiny_case(strategy, model=ANDROMEDA, train=train)
        (lines,) = last_lines(group, captured, case, 1)
        assert end(lines)["status"] == "ok", end(lines)
        norms.append(phase_values(lines, "warmup")["losses"]["gradient_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=5e-3)


def test_deepspeed_announces_no_ranges_to_a_profiler_nobody_started(group: Group) -> None:
    for lines in last_lines(group, planted.unprofiled, tiny_case("zero3"), 2):
        assert end(lines)["status"] == "ok", end(lines)


def collecting(spec: RankSpec, out: str) -> None:
    """A worker that notes whether Python may collect garbage when the timed window begins."""
    seen: list[bool] = []
    start = worker.StepTime.start

    def noting(self: Any, *arguments: Any) -> Any:
        seen.append(gc.isenabled())
        return start(self, *arguments)

    worker.StepTime.start = noting  # type: ignore[method-assign]
    worker.main(spec, lambda *beat: None)
    Path(out).write_text(json.dumps(seen))


@pytest.mark.parametrize("collects", [False, True])
def test_garbage_is_collected_in_timed_steps_only_where_it_is_asked_for(
    group: Group, tmp_path: Path, collects: bool
) -> None:
    measure = {"warmup": {"min_steps": 2, "max_steps": 2}, "steps": 2, "profile_steps": 0}
    case = tiny_case("single", measure=measure | {"collect_garbage": collects})
    (spec,) = group.specs(case, 1)
    group.run(collecting, [(spec, str(tmp_path / "seen"))])
    seen = json.loads((tmp_path / "seen").read_text())
    assert seen
    assert set(seen) == {collects}
