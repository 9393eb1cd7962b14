"""The fairness table: what is flagged, what is not, which axis explains it, what a reader sees."""

from __future__ import annotations

import json
from html import escape
from typing import Any

import pandas as pd
import pytest

from andromeda_scale.analysis.comparable import UNKNOWN, comparable, num_compared
from andromeda_scale.analysis.fairness import COLUMNS, differences
from andromeda_scale.analysis.fairness_rules import RULES, required, rule_of
from andromeda_scale.analysis.results import Results
from andromeda_scale.report.fairness import Fairness

# What ranks read back in bf16 by default: the published way of each strategy.
FACTS = {
    "mode": "train_step",
    "dtypes.parameters": "float32",
    "dtypes.master": "float32",
    "dtypes.compute": "bfloat16",
    "dtypes.gradients": "float32",
    "dtypes.reduction": "float32",
    "dtypes.optimizer_state": "float32",
    "optimizer.class": "AdamW",
    "optimizer.kernel": "fused",
    "gradient_clipping": 1.0,
    "matmul_precision": "highest",
    "data.fingerprint": "c02dcebe",
    "threads": 1,
    "device_name": "cpu",
    "seq_len": 128,
    "global_batch_size": 4,
    "software.torch": "2.13.0",
    "compile.graphs": 0,
}
ZERO = {"dtypes.parameters": "bfloat16", "dtypes.gradients": "bfloat16"}


def row(strategy: str, facts: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    """A measured row of two ranks; `facts` over FACTS (None: not there)."""
    found = {**FACTS, **(ZERO if strategy.startswith("zero") else {}), **(facts or {})}
    row = {
        "strategy": strategy,
        "options": "",
        "driver": "native",
        "model": "tiny",
        "model_config": "{}",
        "regime": "weak",
        "nodes": 1,
        "ranks_per_node": 2,
        "mode": "train_step",
        "seq_len": 128,
        "micro_batch_size": 2,
        "grad_accum": 1,
        "precision": "bf16",
        "other": "",
        "tokens_per_s": 1000.0,
        "parity": "ok",
        "facts": json.dumps(found),
        **settings,
    }
    return row | {"case_id": "_".join(str(row[key]) for key in row if key != "facts")}


def results(*rows: dict[str, Any]) -> Results:
    return Results(pd.DataFrame(rows), pd.DataFrame(), pd.DataFrame())


def found(*rows: dict[str, Any], flag: str | None = "unfair") -> dict[str, str]:
    """Fact -> values of the differences with this flag."""
    frame = differences(comparable(results(*rows)))
    assert list(frame.columns) == list(COLUMNS)
    kept = frame if flag is None else frame[frame["flag"] == flag]
    return dict(zip(kept["fact"], kept["values"], strict=True))


HALF = '{"train.grad_clip": 0.5}'
DEFAULT = [row(name) for name in ("ddp", "fsdp2", "zero1", "zero2", "zero3")]


def test_the_default_policy_in_bf16_is_fair_and_says_how_zero_stores_its_states() -> None:
    assert found(*DEFAULT) == {}
    kept = found(*DEFAULT, flag="differs")
    assert set(kept) == {"dtypes.parameters", "dtypes.gradients"}
    assert kept["dtypes.gradients"] == "float32: ddp, fsdp2; bfloat16: zero1, zero2, zero3"


def test_sums_of_micro_batches_in_16_bits_are_unfair_beside_sums_in_32() -> None:
    rows = [row(name, grad_accum=2) for name in ("ddp", "zero2", "zero3")]
    rows += [row("zero2", {"engine.grad_accum_dtype": "float32"}, grad_accum=2, options="own=1")]
    assert found(*rows) == {
        "dtypes.accumulation": "float32: ddp, zero2 own=1; bfloat16: zero2, zero3"
    }


def test_a_variable_that_one_row_has_and_the_others_have_not_is_unfair() -> None:
    odd = row("zero3", {"variables.KMP_BLOCKTIME": "0"})
    assert found(row("ddp"), row("zero2"), odd) == {
        "variables.KMP_BLOCKTIME": "0: zero3; unset: ddp, zero2"
    }


def test_rows_that_differ_in_nothing_but_the_strategy_are_said_in_one_line() -> None:
    same = results(row("ddp"), row("fsdp2"), row("hsdp"))
    assert differences(comparable(same)).empty
    (line,) = Fairness.of(same).lines()
    assert line.text == "fair: 3 rows differ in nothing but the strategy; parity ok"
    assert Fairness.of(same).to_csv() == ",".join(COLUMNS) + "\n"


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("dtypes.master", "bfloat16"),  # the published factor of 1.5
        ("dtypes.compute", "float32"),
        ("dtypes.reduction", "bfloat16"),
        ("dtypes.optimizer_state", "bfloat16"),
        ("matmul_precision", "high"),
        ("optimizer.class", "SGD"),
        ("optimizer.betas", "0.9, 0.95"),
        ("gradient_clipping", "none"),
        ("loss_scale.skipped_steps", 3),
        ("mode", "forward"),
        ("seq_len", 64),
        ("global_batch_size", 8),
        ("data.fingerprint", "0000"),
        ("threads", 2),
        ("device_name", "NVIDIA H200"),
        ("hardware.cpu_model", "other"),
        ("software.torch", "2.11.0"),
        ("variables.NCCL_ALGO", "Ring"),
        ("a.fact.of.tomorrow", 1),
    ],
)
def test_other_arithmetic_work_or_environment_is_unfair_and_marks_the_row(
    fact: str, value: Any
) -> None:
    usual = FACTS.get(fact, "as ever")
    rows = [row(name, {fact: usual}) for name in ("ddp", "fsdp2", "zero1", "zero2")]
    odd = row("zero3", {fact: value})
    assert found(*rows, odd)[fact].startswith(f"{value}: zero3; ")
    fairness = Fairness.of(results(*rows, odd))
    assert fairness.marks() == {odd["case_id"]: "A"}
    first, second, *_ = fairness.lines()
    assert first.tone == "unfair"
    assert first.text.startswith(f"UNFAIR: 5 rows are compared that are not equal in {fact}")
    assert (second.tone, second.mark) == ("unfair", "A")
    assert rule_of(fact).effect in second.text
    assert f"**A  {fact}" in "\n".join(fairness.notes())


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("checkpointing.kind", "block"),
        ("compile.graphs", 3),
        ("attention.kernel", "flex"),
        ("attention.ops", "_flash"),
        ("buckets.bytes", "7 values"),
        ("units.num", 9),
        ("offload.optimizer", "cpu"),
        ("optimizer.kernel", "foreach"),
        ("loss_scale.scale", 65536.0),
    ],
)
def test_a_lever_that_keeps_the_result_differs_and_marks_nothing(fact: str, value: Any) -> None:
    rows = [row("ddp", {fact: FACTS.get(fact, "usual")}), row("fsdp2", {fact: value})]
    assert found(*rows) == {}
    assert fact in found(*rows, flag="differs")
    fairness = Fairness.of(results(*rows))
    assert fairness.marks() == {}
    verdict, kept = fairness.lines()
    assert verdict.text == "fair: 2 rows, the same arithmetic and work; parity ok"
    assert fact in kept.text


@pytest.mark.parametrize("fact", required())
def test_what_was_not_read_back_is_never_equal(fact: str) -> None:
    silent = [row(name, {fact: None}) for name in ("ddp", "fsdp2")]
    assert found(*silent, flag=None) == {fact: f"{UNKNOWN}: ddp, fsdp2"}
    one = [row("ddp", {fact: None}), row("fsdp2"), row("hsdp")]
    assert found(*one, flag=None) == {fact: f"{UNKNOWN}: ddp; {FACTS[fact]}: fsdp2, hsdp"}


def test_a_fact_that_one_strategy_alone_has_is_no_difference() -> None:
    assert found(row("ddp", {"buckets.cap_bytes": 7}), row("fsdp2"), flag=None) == {}


def test_one_rank_that_reduces_nothing_equals_any_reduction() -> None:
    alone = row("single", {"dtypes.reduction": "none"}, ranks_per_node=1)
    others = [row(name, ranks_per_node=1) for name in ("ddp", "zero2")]
    assert found(alone, *others) == {}
    hooked = row("ddp", {"dtypes.reduction": "bfloat16"}, ranks_per_node=1, options="hook=bf16")
    assert found(alone, *others, hooked) == {
        "dtypes.reduction": "bfloat16: ddp hook=bf16; float32: ddp, zero2"
    }


@pytest.mark.parametrize("parity", ["unavailable", "off", ""])
def test_rows_without_parity_are_unfair_even_if_all_are(parity: str) -> None:
    rows = [row(name, parity=parity) for name in ("ddp", "fsdp2")]
    assert set(found(*rows)) == {"parity"}
    assert "parity ok" not in "".join(line.text for line in Fairness.of(results(*rows)).lines())


def test_parity_that_is_less_than_full_is_named() -> None:
    rows = [row(name, parity_kind="shallow") for name in ("ddp", "fsdp2")]
    (line,) = Fairness.of(results(*rows)).lines()
    assert line.text.endswith("; parity ok (shallow)")


def test_the_reference_itself_and_ok_are_parity() -> None:
    assert found(row("single", parity="reference"), row("ddp"), flag=None) == {}


def test_rows_of_other_models_regimes_and_worlds_are_not_compared() -> None:
    odd = {"dtypes.master": "bfloat16"}
    others = [
        row("zero2", odd, model="small"),
        row("zero2", odd, model_config='{"d_model": 1}'),
        row("zero2", odd, regime="strong"),
        row("zero2", odd, ranks_per_node=4),
        row("zero2", odd, nodes=2),
        row("zero2", odd, tokens_per_s=float("nan")),
    ]
    assert found(row("ddp"), *others, flag=None) == {}
    assert num_compared(comparable(results(row("ddp"), *others))) == 0
    (line,) = Fairness.of(results(row("ddp"), *others)).lines()
    assert line.text == "not compared with each other: tiny, weak; small, weak; tiny, strong"
    assert not Fairness.of(results(row("ddp"), row("zero2", odd, nodes=2)))


def test_rows_that_share_neither_settings_nor_name_are_unfair_in_all_that_differs() -> None:
    """What contradicted was skipped, and left a diagonal: no axis separates its ends."""
    fp32 = {"dtypes.compute": "float32", "gradient_clipping": 1.0}
    bf16 = {"dtypes.compute": "bfloat16", "gradient_clipping": 0.5}
    ends = [
        row("zero2", fp32, precision="fp32"),
        row("zero3", bf16, precision="bf16", other='{"train.learning_rate":0.1}'),
    ]
    frame = differences(comparable(results(*ends)))
    unfair = frame[frame["flag"].eq("unfair") & frame["axis"].eq("")]
    assert {"dtypes.compute", "gradient_clipping", "train.learning_rate"} <= set(unfair["fact"])
    fairness = Fairness.of(results(*ends))
    assert fairness.lines()[0].text.startswith("UNFAIR: 2 rows are compared")
    assert set(fairness.marks()) == {one["case_id"] for one in ends}
    # A row that shares settings with one end and the name of the other links them.
    linked = results(*ends, row("zero2", bf16, precision="bf16", other=ends[1]["other"]))
    assert not Fairness.of(linked).marks()


def test_an_axis_that_leaves_no_two_rows_alike_is_no_fair_comparison() -> None:
    clipped = [row("ddp", {"gradient_clipping": c}, other=o) for c, o in ((1.0, ""), (0.5, HALF))]
    fairness = Fairness.of(results(*clipped))
    line = fairness.lines()[0]
    assert line.tone == "axis"
    assert line.text.startswith("nothing to compare within one value of train.grad_clip")
    both = [*clipped, row("fsdp2", {"gradient_clipping": 0.5}, other=HALF)]
    line = Fairness.of(results(*both)).lines()[0]
    assert line.text.startswith("fair within one value of train.grad_clip: 2 rows")


def test_the_same_difference_at_several_worlds_is_one_line() -> None:
    rows = [
        row(name, facts, ranks_per_node=world)
        for world in (2, 4)
        for name, facts in (("ddp", {}), ("fsdp2", {}), ("zero2", {"dtypes.master": "bfloat16"}))
    ]
    frame = differences(comparable(results(*rows)))
    (line,) = frame[frame["flag"] == "unfair"].to_dict("records")
    assert (line["worlds"], line["values"]) == ("2, 4", "bfloat16: zero2; float32: ddp, fsdp2")
    assert len(line["case_ids"].split()) == 2


PRECISIONS = {"fp32": "float32", "tf32": "float32", "bf16": "bfloat16"}


def _precisions(strategy: str, **facts: Any) -> list[dict[str, Any]]:
    return [
        row(
            strategy,
            {
                "dtypes.compute": compute,
                "dtypes.gradients": compute if strategy.startswith("zero") else "float32",
                "dtypes.parameters": compute if strategy.startswith("zero") else "float32",
                "matmul_precision": "high" if name == "tf32" else "highest",
                **facts,
            },
            precision=name,
        )
        for name, compute in PRECISIONS.items()
    ]


def test_a_difference_along_an_axis_is_named_by_it_and_marks_no_row() -> None:
    rows = [*_precisions("ddp"), *_precisions("zero2")]
    frame = differences(comparable(results(*rows))).set_index("fact")
    assert frame.loc["matmul_precision", "axis"] == "train.precision"
    compute = frame.loc["dtypes.compute"]
    assert (compute["flag"], compute["axis"]) == ("unfair", "train.precision")
    assert compute["values"] == "float32: fp32, tf32; bfloat16: bf16"
    fairness = Fairness.of(results(*rows))
    assert fairness.marks() == {}
    verdict, axis, _ = fairness.lines()
    assert verdict.text.startswith("fair within one value of train.precision: 6 rows")
    assert axis.text.startswith("by axis train.precision, compare within one value: ")


def test_strategies_are_compared_within_one_value_of_an_axis() -> None:
    rows = [*_precisions("ddp"), *_precisions("zero2")]
    frame = differences(comparable(results(*rows)))
    (across,) = frame[(frame["fact"] == "dtypes.gradients") & (frame["axis"] == "")].to_dict(
        "records"
    )
    assert across["at"] == "train.precision bf16"
    (along,) = frame[(frame["fact"] == "dtypes.gradients") & (frame["axis"] != "")].to_dict(
        "records"
    )
    assert along["values"] == "float32: fp32, tf32; bfloat16: bf16 (zero2)"


def test_a_row_off_the_policy_is_found_within_an_axis_and_marked() -> None:
    odd = _precisions("zero2", **{"dtypes.reduction": "bfloat16"})
    rows = [*_precisions("ddp"), *odd]
    frame = differences(comparable(results(*rows)))
    (line,) = frame[(frame["flag"] == "unfair") & (frame["axis"] == "")].to_dict("records")
    assert (line["fact"], line["at"]) == ("dtypes.reduction", "")
    # Two rows each: there is no majority, but the policy says which is odd.
    assert set(line["case_ids"].split()) == {one["case_id"] for one in odd}


def test_two_axes_are_told_apart() -> None:
    rows = [
        row(
            "ddp",
            {"dtypes.compute": PRECISIONS[precision], "compile.graphs": 3 if compiled else 0},
            precision=precision,
            other=json.dumps({"train.compile": True} if compiled else {}),
        )
        for precision in ("fp32", "bf16")
        for compiled in (False, True)
    ]
    frame = differences(comparable(results(*rows))).set_index("fact")
    assert frame.loc["dtypes.compute", "axis"] == "train.precision"
    assert frame.loc["compile.graphs", "axis"] == "train.compile"
    assert frame.loc["compile.graphs", "values"] == "0: false; 3: true"


def test_an_axis_that_no_fact_shows_is_a_line_of_its_own() -> None:
    rows = [row("ddp"), row("ddp", other=json.dumps({"train.learning_rate": 0.1}))]
    (line,) = differences(comparable(results(*rows))).to_dict("records")
    assert (line["fact"], line["axis"]) == ("train.learning_rate", "train.learning_rate")
    assert (line["flag"], line["values"]) == ("unfair", "0.001; 0.1")


def test_results_without_facts_are_unknown_not_fair() -> None:
    rows = [row("ddp"), row("fsdp2")]
    for one in rows:
        one["facts"] = ""
    assert set(required()) == set(found(*rows, flag=None))


def test_every_rule_says_what_the_fact_does() -> None:
    for name, rule in RULES.items():
        assert rule.effect, name
        assert rule.flag in ("unfair", "differs")
    assert rule_of("optimizer.eps").flag == "unfair"
    assert rule_of("optimizer.kernel").flag == "differs"
    assert rule_of("optimizers").effect.startswith("no rule")
    assert rule_of("loss_scale").flag == "differs"  # null: nothing is scaled


@pytest.mark.parametrize("fact", ["wrapper", "stage", "driver.version", "engine.optimizer"])
def test_what_a_row_is_called_by_is_no_difference(fact: str) -> None:
    assert found(row("zero1", {fact: 1}), row("zero2", {fact: 2}), flag="unfair") == {}
    assert fact not in found(row("zero1", {fact: 1}), row("zero2", {fact: 2}), flag=None)


def test_the_full_table_holds_every_difference_and_is_no_markup() -> None:
    rows = [*DEFAULT, row("zero2", {"dtypes.master": "bfloat16"}, options="[red]x|y[/red]")]
    fairness = Fairness.of(results(*rows))
    text = fairness.to_markdown()
    assert text.startswith("### Fairness\n\n| mark   | flag    | fact ")
    assert "[red]x\\|y[/red]" in text
    assert len(text.splitlines()) == 2 + 2 + len(fairness.frame)
    assert fairness.notes("<b>{}</b>", escape)[0].startswith("<b>UNFAIR: 6 rows")
    assert fairness.to_csv().count("\n") == 1 + len(fairness.frame)
