"""The figures of a run's page: plotly accepts each, and each draws what the tables say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pages import ceilings, merged, rich_run
from plotly import graph_objects as go
from run_files import make_case, rank_lines, write_plan, write_repeat

from andromeda_scale.report.html.figure import Figure
from andromeda_scale.report.html.figures import FIGURES
from andromeda_scale.report.html.front import undominated
from andromeda_scale.report.html.source import Source
from andromeda_scale.report.html.traces import MAX_POINTS

RUN = Path(__file__).parents[1] / "replay" / "run"


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_one_that_plotly_accepts_and_is_said_in_words(rich: Path, name: str) -> None:
    figure = FIGURES[name](Source.of(merged(rich), None, ceilings()))
    assert isinstance(figure, Figure)
    plain = figure.plain()
    assert plain["choices"]
    for choice in plain["choices"]:
        made: Any = go.Figure({"data": choice["data"], "layout": {**plain["layout"],
                                                                  **choice["layout"]}})  # fmt: skip
        assert made.data
        assert choice["said"]


def drawn(directory: Path, name: str) -> Figure:
    figure = FIGURES[name](Source.of(merged(directory), None, ceilings()))
    assert isinstance(figure, Figure)
    return figure


@pytest.mark.parametrize("name", FIGURES)
def test_a_tick_of_a_logarithmic_axis_says_the_whole_number(rich: Path, name: str) -> None:
    axes = [x for key, x in drawn(rich, name).layout.items() if key[1:].startswith("axis")]
    for axis in (axis for axis in axes if axis.get("type") == "log"):
        # Without a form plotly writes the digit alone between powers of ten: 2 for 2,000.
        assert "tickformat" in axis or "ticktext" in axis


def test_the_ideal_line_goes_on_from_the_best_rank_of_the_smallest_world() -> None:
    ideal = drawn(RUN, "throughput").choices[0].data[0]  # ddp gives 1,280 on one rank
    assert (ideal["x"], ideal["y"]) == ([1, 2], [pytest.approx(1280), pytest.approx(2560)])


def test_a_law_is_drawn_through_five_worlds_and_no_further_than_it_speaks(tmp_path: Path) -> None:
    figure = drawn(rich_run(tmp_path, worlds=(1, 2, 4, 8, 16)), "throughput")
    lines = [
        one
        for one in figure.choices[0].data
        if one.get("line", {}).get("dash") in ("dot", "dashdot")
    ]
    assert {one["hovertemplate"].split(",")[0] for one in lines} == {"Gustafson", "USL"}
    assert {one["legendgroup"] for one in lines} == {"ddp", "fsdp2"}
    assert all(one["x"][0] == 1 and one["x"][-1] == 64 for one in lines)
    assert figure.layout["xaxis"]["tickvals"] == [1, 2, 4, 8, 16, 64]
    few = drawn(rich_run(tmp_path / "few", worlds=(1, 2)), "throughput").choices[0]
    assert not [one for one in few.data if one.get("line", {}).get("dash") == "dot"]


def test_a_band_is_the_interval_of_the_table() -> None:
    row = merged(RUN).cases.set_index(["strategy", "world_size"]).loc[("ddp", 2)]
    (band,) = [
        trace for trace in drawn(RUN, "efficiency").choices[0].data if trace["mode"] == "none"
    ]
    low, high = (float(row[f"efficiency_{side}"]) * 100 for side in ("low", "high"))
    assert band["y"] == pytest.approx([100, low, high, 100], rel=1e-4)


def test_under_three_launches_no_figure_invents_an_interval(tmp_path: Path) -> None:
    write_plan(tmp_path, [make_case("ddp", 1), make_case("ddp", 2)], repeats=1)
    for world in (1, 2):
        lines = [line for rank in range(world) for line in rank_lines(rank, [0.1] * 4)]
        write_repeat(tmp_path, make_case("ddp", world), 0, lines)
    (band,) = [t for t in drawn(tmp_path, "throughput").choices[0].data if t["mode"] == "none"]
    assert band["y"][:2] == band["y"][:1:-1]  # of no width


def test_stacked_parts_add_up_to_the_profiled_step(rich: Path) -> None:
    results = merged(rich)
    figure = drawn(rich, "breakdown")
    names = [trace["name"] for trace in figure.choices[0].data]
    assert "exposed wait" in names
    assert "update" not in names  # these records do not tell it apart
    first = sum(trace["x"][0] for trace in figure.choices[0].data)
    assert first == pytest.approx(results.cases["profile_step_s"].iloc[0] * 1e3)


def test_the_waterfall_falls_from_100_to_the_profiled_efficiency() -> None:
    results = merged(RUN)
    figure = drawn(RUN, "waterfall")
    fall, measured = figure.choices[0].data
    row = results.cases.set_index(["strategy", "world_size"]).loc[("ddp", 2)]
    assert sum(fall["x"]) == pytest.approx(100 * float(row["explained_efficiency"]), rel=1e-3)
    assert measured["x"] == [pytest.approx(100 * float(row["efficiency"]), rel=1e-3)]


def test_the_slow_rank_is_the_reddest_cell(rich: Path) -> None:
    figure = drawn(rich, "rank-map")
    compute = figure.choices[figure.chosen].data[0]
    # 0.10 and 0.12 s against their median of 0.11
    assert compute["z"][0] == pytest.approx([-9.09, 9.09], abs=0.01)
    assert compute["zmax"] == pytest.approx(9.09, abs=0.01)


def test_ranks_of_several_nodes_are_cells_of_their_node(tmp_path: Path) -> None:
    from andromeda_scale.suite.world import World

    case = make_case("ddp", 2).model_copy(update={"world": World(nodes=3, ranks_per_node=2)})
    write_plan(tmp_path, [case], repeats=1)
    lines = [
        line
        for rank in range(6)
        for line in rank_lines(rank, [0.1] * 4, compute_s=[0.1 + 0.05 * (rank == 3)] * 20,
                               host=f"n{rank // 2}")
    ]  # fmt: skip
    write_repeat(tmp_path, case, 0, lines)
    compute = drawn(tmp_path, "rank-map").choices[0].data[0]
    assert compute["x"] == ["0 n0", "1 n1", "2 n2"]
    assert compute["z"] == [[0, 0, 0], [0, pytest.approx(50), 0]]


def test_a_case_out_of_memory_shows_its_estimate_beside_the_others(rich: Path) -> None:
    names = drawn(rich, "memory").choices[0].data[0]["y"]
    assert names == ["ddp, 1 rank", "ddp, 2 ranks", "fsdp2, 1 rank", "fsdp2, 2 ranks"]


def test_the_front_is_what_no_other_beats() -> None:
    rows = [
        {"peak_memory_bytes": memory, "tokens_per_s_per_gpu": speed}
        for memory, speed in ((4, 100), (2, 80), (2, 90), (3, 85), (8, 100))
    ]
    assert [tuple(row.values()) for row in undominated(rows)] == [(2, 90), (4, 100)]


def test_long_traces_are_thinned_to_the_longest_step_of_each_stretch(tmp_path: Path) -> None:
    write_plan(tmp_path, [make_case("ddp", 1)], repeats=1)
    steps = [0.1] * 2000
    steps[1234] = 0.9
    write_repeat(tmp_path, make_case("ddp", 1), 0, rank_lines(0, steps))
    line = drawn(tmp_path, "steps").choices[0].data[1]
    assert len(line["y"]) == MAX_POINTS
    assert max(line["y"]) == 900
