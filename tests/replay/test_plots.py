"""The published pictures of results, from the records beside them."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import gpu_plots
from gpu_results import rows_of
from gpu_shapes import BAD
from gpu_svg import said
from gpu_tables import SIZES

GIB = 1 << 30
RESULTS = Path(__file__).parents[2] / "docs" / "results"
TABLES = sorted(name for name in gpu_plots.PLOTS if (RESULTS / "h200" / name).is_dir())
pytestmark = pytest.mark.slow

Point = tuple[Any, float]


# Where the numbers of a measured row stand, and those numbers, from the columns of the records.
POINTS: dict[str, Callable[[dict[str, Any]], list[Point]]] = {
    "llama": lambda row: [
        ("ours" if row["run"][:4] == "ours" else row["strategy"], row["tokens_per_s_per_gpu"])
    ],
    "weak": lambda row: [
        (row["strategy"], row["tokens_per_s_per_gpu"]),
        (row["strategy"], 1e3 * row.get("comm_exposed_s", float("nan"))),
        (row["strategy"], row["peak_allocated_bytes"] / GIB),
    ],
    "cs336": lambda row: [(row["model"][6:], 1e3 * row["window_step_s"])],
    "andromeda": lambda row: [(f"{row['model']}<br>T {row['seq_len']:,}", 100 * row["mfu"])],
    "context": lambda row: [
        (row["seq_len"], row["tokens_per_s_per_gpu"]),
        (row["seq_len"], row["peak_allocated_bytes"] / GIB),
    ],
    "batch": lambda row: [
        (row["micro_batch_size"], row["tokens_per_s_per_gpu"]),
        (row["micro_batch_size"], 1e3 * row["joules_per_token"]),
    ],
    "attention": lambda row: [
        (f"T {row['seq_len']:,}<br>{_alibi(row)}", 1e3 * row["window_step_s"])
    ],
    "precision": lambda row: [
        (_under(row, _and_compiled(row, row["precision"])), row["tokens_per_s_per_gpu"])
    ],
    "compile": lambda row: [(_under(row, gpu_plots.compiled(row)), row["tokens_per_s_per_gpu"])],
    "checkpointing": lambda row: [
        (_and_compiled(row, _recomputed(row)), row["tokens_per_s_per_gpu"])
    ],
}

# What runs of the table `levers` undid, and the runs that each is held against.
UNDONE = {
    "noreshard-ctas4": "NCCL_MAX_CTAS=4",
    "noreshard-ctas8": "NCCL_MAX_CTAS=8",
    "ours-1": "early_norm=false",
    "ours-2": "update_streams=1",
    "ours-3": "reduce_dtype=float32",
    "ours-4": "loss_chunks=1",
    "ours-5": "compile=false",
    "ours-7": "attention_backend=flash",
    "ours-8": "activation_checkpointing=selective",
    "ours-9": "prefetch=0",
    "ours-10": "reshard_after_forward=true",
    "ours-11": "loss_chunks=16",
    "second-1": "reshard_last=true, reshard_after_forward=true",
    "second-2": "optimizer={fused: false}",
    "second-3": "collect_garbage=true",
    "second-5": "compile={mode: max-autotune-no-cudagraphs}",
    "segments-expandable": "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
    "segments-expandable-again": "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
}
FIRST = {"ours": ("ours-0", "ours-6"), "second": ("second-0", "second-4")}


def _levers(rows: list[dict[str, Any]]) -> list[Point]:
    """The percentage that a step takes longer, under what was undone."""
    step_s = {row["run"]: row["window_step_s"] for row in rows}
    points = []
    for row in rows:
        time = row["run"].partition("-")[0]
        first = [step_s[run] for run in FIRST.get(time, (time,)) if run in step_s]
        longer = row["window_step_s"] / math.prod(first) ** (1 / len(first)) - 1
        points.append((UNDONE.get(row["run"], "the first again"), 100 * longer))
    return points


def _and_compiled(row: dict[str, Any], name: str) -> str:
    return f"{name}, compiled" if json.loads(row["other"]).get("train.compile") else name


def _alibi(row: dict[str, Any]) -> str:
    return "ALiBi" if '"alibi_num_heads": 4' in row["model_config"] else "no ALiBi"


def _under(row: dict[str, Any], name: str) -> str:
    strategy = "" if row["strategy"] == "single" else f"{row['strategy']}, "
    return f"{strategy}{name}, B {row['micro_batch_size']}"


def _recomputed(row: dict[str, Any]) -> str:
    how = json.loads(row["other"]).get("train.activation_checkpointing", "none")
    return how if isinstance(how, str) else "{every: 2}"


def _drawn(figure: Any) -> list[Point]:
    """The points that were measured here: neither words nor what others published."""
    found: list[Point] = []
    for trace in figure.data:
        words = "mode" in trace and trace.mode == "text"
        failed = trace.textfont.color == BAD
        if not (words or failed) and not trace.name.startswith("published"):
            pairs = zip(trace.x, trace.y, strict=True)
            found += [(y, x) if isinstance(y, str) else (x, y) for x, y in pairs]
    return sorted((str(x), y) for x, y in found if y is not None)


def _expected(name: str, rows: list[dict[str, Any]]) -> list[Point]:
    measured = [row for row in rows if row["status"] == "ok"]
    if name == "levers":
        points = _levers(measured)
    else:
        points = [point for row in measured for point in POINTS[name](row)]
    return sorted((str(x), y) for x, y in points if not math.isnan(y))


@pytest.mark.parametrize("name", TABLES)
def test_a_picture_draws_the_points_of_its_records(name: str) -> None:
    rows = rows_of(RESULTS / "h200" / name)
    found, expected = _drawn(gpu_plots.PLOTS[name](rows)), _expected(name, rows)
    assert [x for x, _ in found] == [x for x, _ in expected]
    assert [y for _, y in found] == pytest.approx([y for _, y in expected])
    if name in ("precision", "compile", "checkpointing"):  # bars of one name lie in one another
        assert len({x for x, _ in found}) == len(found)


@pytest.mark.parametrize("name", TABLES)
def test_a_published_picture_was_drawn_from_the_records_that_are_there(name: str) -> None:
    figure = gpu_plots.PLOTS[name](rows_of(RESULTS / "h200" / name))
    drawn = (RESULTS / "h200" / name / "plot.svg").read_text()
    assert f"<desc>{escape(said(figure))}</desc>" in drawn


def test_every_picture_of_the_page_is_there_and_every_drawn_table_is_on_the_page() -> None:
    named = set(re.findall(r"!\[[^]]+\]\((\S+?)\)", (RESULTS / "h200.md").read_text()))
    assert named == {f"h200/{name}/plot.svg" for name in TABLES}
    assert all((RESULTS / picture).is_file() for picture in named)


def _row(**changes: Any) -> dict[str, Any]:
    row = {"run": "ours-0", "model": "cs336-small", "strategy": "ddp", "status": "ok", "mfu": 0.5}
    row |= {"world_size": 1, "precision": "bf16", "seq_len": 1024, "micro_batch_size": 1}
    row |= {"other": json.dumps({"train.attention": "flex"}), "window_step_s": 0.25}
    row |= {"tokens_per_s_per_gpu": 2000.0, "joules_per_token": 0.003, "efficiency": 0.9}
    row |= {"efficiency_low": float("nan"), "efficiency_high": float("nan"), "mode": "train_step"}
    row |= {"case_id": "x", "options": ""}
    row |= {"model_config": json.dumps({"alibi_num_heads": 4})}
    return row | {"peak_allocated_bytes": 3 * GIB, "step_time_s": 0.25} | changes


@pytest.mark.parametrize("name", gpu_plots.PLOTS)
def test_a_row_that_failed_is_named_where_it_would_stand(name: str) -> None:
    other = {"precision": "fp32", "seq_len": 2048, "micro_batch_size": 2, "strategy": "zero1"}
    other |= {"run": "bare-0", "model": f"cs336-{SIZES[1]}"}
    changed = {"train.compile": True, "train.activation_checkpointing": "block"}
    other |= {"other": json.dumps({"train.attention": "naive"} | changed)}
    rows = [_row(), _row(**other, status="oom", window_step_s=float("nan"))]
    figure = gpu_plots.PLOTS[name](rows)
    assert "OOM" in said(figure)
    assert _drawn(figure) == _expected(name, rows)


@pytest.mark.parametrize("name", ["weak", "context", "precision"])
def test_an_interval_is_drawn_of_several_launches_alone(name: str) -> None:
    along = "error_x" if name == "precision" else "error_y"
    once = gpu_plots.PLOTS[name]([_row(tokens_per_s_per_gpu_low=float("nan"))]).data[0]
    assert once[along].array is None
    ends = {"tokens_per_s_per_gpu_low": 1900.0, "tokens_per_s_per_gpu_high": 2150.0}
    several = gpu_plots.PLOTS[name]([_row(**ends)]).data[0]
    assert (several[along].array, several[along].arrayminus) == ((150.0,), (100.0,))


def test_the_efficiency_of_a_pair_stands_below_it() -> None:
    rows = [_row(), _row(world_size=2), _row(strategy="zero3", world_size=2, status="crashed")]
    figure = gpu_plots.PLOTS["weak"](rows)
    assert figure.layout.xaxis.ticktext == ("ddp<br>efficiency 0.900", "zero3<br>no efficiency")


def test_a_kind_that_failed_everywhere_keeps_its_place_in_the_legend() -> None:
    naive = {"other": json.dumps({"train.attention": "naive"}), "status": "oom"}
    figure = gpu_plots.PLOTS["attention"]([_row(**naive), _row()])
    legend = [trace.name for trace in figure.data if trace.x and trace.showlegend is not False]
    assert legend == ["naive", "flex"]
