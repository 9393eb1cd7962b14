"""What a setting buys: planted factors found, at the largest world, only between fair rows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from noisy_runs import noisy_run, other_torch
from run_files import make_case

from andromeda_scale.merge import Results, merge_run
from andromeda_scale.report.sentence import Sentence
from andromeda_scale.report.verdict import verdict

OOM = {"v": 1, "status": "oom", "cause": "2 GiB"}


def _levers(results: Results) -> list[Sentence]:
    return [one for one in verdict(results) if one.kind == "lever"]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Compiled, ddp takes 0.8 of a step, 0.5 at world 2; fsdp2 all of it, zero1 has no room."""
    cases, failed = [], {}
    for strategy, factors in {"ddp": (0.8, 0.5), "fsdp2": (1, 1), "zero1": (1, 1)}.items():
        for world, factor in zip((1, 2), factors, strict=True):
            cases.append((make_case(strategy, world), 0.1))
            case = make_case(strategy, world, train={"compile": True})
            cases.append((case, 0.1 * factor))
            if strategy == "zero1":
                failed[case.case_id] = OOM
    return merge_run(noisy_run(tmp_path_factory.mktemp("run"), cases, seed=3, status=failed))


def test_a_setting_has_its_factor_with_an_interval_at_the_largest_world(compiled: Results) -> None:
    (lever,) = _levers(compiled)
    assert lever.text.startswith("With compile true instead of false: ddp at world 2 ")
    rows = compiled.cases.set_index("case_id").loc[list(lever.rows)]
    assert set(rows["world_size"]) == {2}
    assert set(rows["strategy"]) == {"ddp", "fsdp2"}
    of = {rows.loc[case_id, "strategy"]: factor for case_id, factor in lever.numbers.items()}
    assert of["ddp"] == pytest.approx(2, rel=0.02)
    assert of["fsdp2"] == pytest.approx(1, rel=0.02)
    assert "fsdp2 at world 2 " in lever.text
    assert ", which noise could explain" in lever.text.partition("fsdp2")[2]
    assert lever.text.count("x in peak memory") == 2


def test_a_row_that_stands_alone_in_its_group_is_not_called_the_fastest(tmp_path: Path) -> None:
    cases = [(make_case(train={"compile": how}), 0.1) for how in (False, True)]
    said = verdict(merge_run(noisy_run(tmp_path, cases)))
    assert {one.kind for one in said} == {"lever", "loss"}


def test_models_are_not_settings_of_one_another(tmp_path: Path) -> None:
    small = make_case()
    large = small.model_copy(update={"model_name": "large"})
    results = merge_run(noisy_run(tmp_path, [(small, 0.1), (large, 0.2)]))
    assert _levers(results) == []


def test_rows_that_are_not_fair_buy_nothing(tmp_path: Path) -> None:
    cases = [
        (make_case(parity=how, train={"compile": how == "off"}), 0.1) for how in ("full", "off")
    ]
    assert _levers(merge_run(noisy_run(tmp_path, cases))) == []


def test_rows_of_other_software_show_no_setting(tmp_path: Path) -> None:
    plain, low = make_case("ddp", 2), make_case("ddp", 2, train={"precision": "bf16"})
    noisy_run(tmp_path / "new", [(low, 0.1)], environment=other_torch())
    run = noisy_run(tmp_path / "run", [(plain, 0.2), (low, 0.1)])
    assert [set(one.rows) for one in _levers(merge_run(run))] == [{plain.case_id, low.case_id}]
    place = Path("cases", low.case_id)
    shutil.rmtree(run / place)
    shutil.copytree(tmp_path / "new" / place, run / place)
    assert _levers(merge_run(run)) == []
