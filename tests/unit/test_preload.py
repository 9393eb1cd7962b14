"""Which modules a sweep imports before it forks."""

from __future__ import annotations

from planning import measured, plan

from andromeda_scale import registry
from andromeda_scale.launch import preload
from andromeda_scale.suite.config import Case


def test_a_sweep_imports_what_its_cases_need_and_no_more() -> None:
    def case(**keys: str) -> Case:
        return measured(plan(**keys))[0][0]

    plain, zero = case(), case(strategy="zero3")
    assert preload.modules_of([plain]) == ()
    by_accelerate = preload.modules_of([plain, case(driver="accelerate")])
    assert by_accelerate == ("accelerate",)
    assert set(registry.load("strategy", "zero3").preload) == set(preload.modules_of([plain, zero]))
    assert "transformers" in preload.modules_of([case(strategy="zero3", driver="accelerate")])
