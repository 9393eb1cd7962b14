"""Fairness on real ranks: the default policy is clean, and what a suite changes is flagged."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from andromeda_scale.analysis.comparable import UNKNOWN, comparable
from andromeda_scale.analysis.fairness import differences
from andromeda_scale.analysis.fairness_rules import is_identity, rule_of
from andromeda_scale.analysis.results import Results, read

pytestmark = pytest.mark.thorough

LIMIT_S = 240

SUITE = """\
question: Is this comparison fair?
model: {base: andromeda-tiny, num_layers: 1}
data: {source: random}
train: {seq_len: 32, precision: bf16}
world: [2]
axes:
  strategy: [ddp, fsdp2, fsdp1, zero1, zero2, zero3, {name: ddp, compression: fp16},
             {name: zero2, reduce_dtype: bfloat16}]
measure: {warmup: {min_steps: 5, max_steps: 5}, steps: 2, repeats: 1, profile_steps: 0}
collect: []
threads_per_rank: 1
device: cpu
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fairness")
    (folder / "x.yaml").write_text(SUITE, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "andromeda_scale.cli", "run", "x.yaml", "--quiet", "--run-dir", "r"],
        cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder / "r" / "stdout").write_text(done.stdout, encoding="utf-8")
    return folder / "r"


@pytest.fixture(scope="module")
def results(run: Path) -> Results:
    found = read(run)
    assert set(found.cases["status"]) == {"ok"}
    return found


def test_the_default_policy_in_bf16_is_clean_of_unfair_lines(results: Results) -> None:
    default = results.cases[results.cases["options"] == ""]
    found = differences(comparable(Results(default, results.repeats, results.ranks)))
    assert found[found["flag"] == "unfair"].empty, found[["fact", "values"]]
    stored = found.set_index("fact").loc["dtypes.gradients"]
    assert stored["values"] == "float32: ddp, fsdp2, fsdp1; bfloat16: zero1, zero2, zero3"
    assert "16 bits save 2 bytes" in stored["effect"]


def test_gradients_summed_in_16_bits_are_unfair_under_every_name(results: Results) -> None:
    found = differences(comparable(results))
    (unfair,) = found[found["flag"] == "unfair"].to_dict("records")
    assert unfair["fact"] == "dtypes.reduction"
    assert unfair["values"] == (
        "float16: ddp compression=fp16; bfloat16: zero2 reduce_dtype=bfloat16; float32: the others"
    )


def test_every_fact_that_a_strategy_reads_back_has_a_rule_and_is_known(results: Results) -> None:
    for facts in map(json.loads, results.cases["facts"]):
        for name, value in facts.items():
            known = is_identity(name) or not rule_of(name).effect.startswith("no rule")
            assert known, name
            assert value is not None or not rule_of(name).required, name
    assert results.problems == []


def test_the_terminal_says_unfair_in_every_medium(run: Path) -> None:
    printed = (run / "stdout").read_text(encoding="utf-8")
    assert "UNFAIR: 8 rows are compared that are not equal in dtypes.reduction" in printed
    assert len(re.findall(r" ok +A ", printed)) == 2
    markdown = (run / "table.md").read_text(encoding="utf-8")
    assert "- **UNFAIR: 8 rows" in markdown
    assert "### Fairness" in markdown
    table = pd.read_csv(run / "fairness.csv")
    assert table["flag"].iloc[0] == "unfair"
    assert UNKNOWN not in " ".join(table["values"])
