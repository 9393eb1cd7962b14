"""What is said of a fact or an axis by its name alone."""

from __future__ import annotations

import pytest

from andromeda_scale.analysis.fairness_rules import rule_of
from andromeda_scale.suite.config import Data, Limits, Measure


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("train.update_streams", "differs"),
        ("update.early_gather", "differs"),
        ("data.prefetch", "differs"),
        ("collect", "differs"),
        ("env.NCCL_ALGO", "unfair"),
        *((f"measure.{key}", "differs") for key in Measure.model_fields),
        *((f"limits.{key}", "differs") for key in Limits.model_fields),
    ],
)
def test_an_axis_that_no_fact_shows_has_its_rule(name: str, flag: str) -> None:
    rule = rule_of(name)
    assert rule.flag == flag
    assert "no rule" not in rule.effect


def test_what_changes_the_tokens_is_unfair_whatever_its_name() -> None:
    changing = set(Data.model_fields) - {"prefetch"}
    assert {rule_of(f"data.{key}").flag for key in changing} == {"unfair"}
