"""torch.compile in real ranks: its own cache, cold and warm, its helpers' end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from group import LLAMA, Group, end, no_beat, of_kind, phase_values, read_lines, tiny_case
from launch_support import make_case, make_run, start_driver, tagged, wait_until

from andromeda_scale import worker
from andromeda_scale.launch.run_dir import RunDir
from andromeda_scale.suite.config import Limits

COMPILE_S = 600.0  # a C++ compiler on a busy machine
# Heads as wide as FlexAttention needs them.
MODEL = {**LLAMA, "num_heads": 2, "num_kv_heads": 1}


def _case(kernel: str) -> Any:
    train = {"mode": "forward", "attention": kernel, "compile": True}
    return tiny_case("single", model=MODEL, train=train)


# A compiler builds C++ here: minutes on two cores.
pytestmark = [pytest.mark.thorough, pytest.mark.timeout(2 * COMPILE_S)]


@pytest.fixture(scope="module")
def launches(group: Group, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    """Lines of two launches of flex on a CPU that share a cache, compiled to C++."""
    cache = tmp_path_factory.mktemp("compiled") / "case"
    found = []
    for _ in range(2):
        (spec,) = group.specs(_case("flex"), 1, compile_cache=str(cache))
        group.run(worker.main, [(spec, no_beat)], COMPILE_S)
        lines = read_lines(Path(spec.record_path))
        assert end(lines)["status"] == "ok", end(lines)
        found.append(lines)
    yield found
    assert any(cache.rglob("*.so"))  # not where the user's own are


def test_the_first_launch_is_cold_and_the_next_is_warm(launches: list[Any]) -> None:
    cold, warm = (of_kind(lines, "describe")[0]["values"]["compile"] for lines in launches)
    assert (cold["cold"], cold["cache_hits"], cold["cache_misses"]) == (True, 0, 2)
    assert (warm["cold"], warm["cache_hits"], warm["cache_misses"]) == (False, 2, 0)
    assert cold["graphs"] == warm["graphs"] == 2  # of both blocks, and of the loss
    assert cold["graph_breaks"] == warm["graph_breaks"] == 0
    assert cold["seconds"] > warm["seconds"] > 0


def test_compiled_flex_gives_the_losses_of_naive(launches: list[Any], run_case: Any) -> None:
    naive = tiny_case("single", model=MODEL, train={"mode": "forward", "attention": "naive"})
    (expected,) = run_case(naive)
    for lines in launches:
        found = phase_values(lines, "warmup")["losses"]["loss_sum"]
        assert found == pytest.approx(
            phase_values(expected, "warmup")["losses"]["loss_sum"], rel=1e-6
        )
        ran = of_kind(lines, "describe")[0]["values"]["attention"]
        assert ran == {"kernel": "flex", "ops": ["cpp_flex_attention"]}


def test_a_case_has_a_cache_of_its_own_that_its_launches_share_and_the_agent_removes(
    tmp_path: Path,
) -> None:
    cases = [make_case(name, 2, {0: "cache", 1: "cache"}, compiled=True) for name in ("a", "b")]
    run_dir = make_run(tmp_path / "run", cases, repeats=2)
    with tagged() as (environment, _):
        assert start_driver(run_dir, environment).wait(60) == 0
    seen: dict[str, list[list[str]]] = {}
    for item in run_dir.plan.repeats:
        lines = read_lines(run_dir.case_dir(item) / "node-0.jsonl")
        for line in of_kind(lines, "phase"):
            if line["phase"] == "setup" and line["rank"] == 0:
                cache = Path(line["values"]["cache"])
                assert cache.name == item.case_id
                assert not cache.exists()
                seen.setdefault(str(cache), []).append(sorted(line["values"]["there"]))
    assert len(seen) == 2
    for first, second in seen.values():
        assert set(first) <= {"0-1"}  # the other rank may have been faster
        assert {"0-0", "0-1"} <= set(second)


def _helpers(run_dir: RunDir) -> list[int]:
    lines = [x for f in run_dir.path.rglob("*.jsonl") for x in read_lines(f)]
    found = [x["values"]["helpers"] for x in lines if "helpers" in x.get("values", {})]
    return list(found[0]) if found else []


@pytest.mark.parametrize("killed", ["rank", "driver"])
def test_compile_workers_end_with_their_rank(tmp_path: Path, killed: str) -> None:
    forever = Limits(timeout_s=600, heartbeat_s=600)
    run_dir = make_run(tmp_path / "run", [make_case("pool", 1, {0: "compile"}, limits=forever)])
    with tagged() as (environment, survivors):
        driver = start_driver(run_dir, environment)
        wait_until(lambda: len(_helpers(run_dir)) >= 2, "compile workers", COMPILE_S)
        pool = psutil.Process(_helpers(run_dir)[0])
        (pool.parent() if killed == "rank" else psutil.Process(driver.pid)).kill()
        driver.wait(60)
        wait_until(lambda: not survivors(), "the death of everything")
