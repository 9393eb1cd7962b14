"""Bus bandwidth over message size: the probe's curves, and what steps reached. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from andromeda_scale.contracts.probed import COLLECTIVES, Ceiling, Probed
from andromeda_scale.report.html.figure import Choice, Figure, Trace, axis
from andromeda_scale.report.html.source import COLOURS, GREY, MARKERS, Source, num, nums, words


def bandwidth(source: Source) -> Figure | str:
    """A view a number of ranks in the group."""
    reached = _reached(source)
    probed = _probed(source.ceilings)
    sizes = sorted({*reached, *(probed if not reached else ())}, reverse=True)
    if not sizes:
        return "no collective was profiled, and the run holds no probe of this machine"
    choices = [
        Choice(
            f"{size} ranks",
            [*_curves(probed.get(size, [])), *_points(source, reached.get(size, []))],
            said=f"{len(reached.get(size, []))} kinds of collectives of profiled steps, "
            f"{len(probed.get(size, []))} points of the probe",
        )
        for size in sizes
    ]
    without = "" if probed else " The run holds no probe (andromeda-scale probe, then resume RUN)."
    return Figure(
        "Bandwidth of collectives",
        "Lines: what the probe reached with nothing beside it, by bytes of a message. Markers: "
        f"collectives of the profiled steps at their mean message.{without}",
        choices,
        {
            "xaxis": axis("bytes of a call", type="log", tickformat="~s", dtick="D2"),
            "yaxis": axis("busbw, GB/s", type="log", tickformat="~r", dtick="D2"),
            "height": 440,
        },
        choose="group",
    )


def _reached(source: Source) -> dict[int, list[dict[str, Any]]]:
    """Kinds with a bandwidth, by the ranks of their group."""
    found: dict[int, list[dict[str, Any]]] = {}
    kinds = source.results.communication
    if kinds.empty:
        return {}
    kinds = kinds[kinds["busbw_gbps"].gt(0) & kinds["bytes_per_call"].gt(0) & ~kinds["scalar"]]
    for kind in kinds.to_dict("records"):
        row = {str(key): value for key, value in kind.items()}
        found.setdefault(int(row["group_size"]), []).append(row)
    return found


def _probed(stored: Mapping[str, Any]) -> dict[int, list[Ceiling]]:
    """Collectives of a calibration by the ranks of their group; what cannot be read is a problem
    of the results already."""
    found: dict[int, list[Ceiling]] = {}
    for value in stored.values():
        try:
            points = Probed.model_validate(value).points
        except ValidationError:
            continue
        for point in points:
            if point.kind == "collective" and point.busbw_gbps and point.size_bytes:
                found.setdefault(point.group_size, []).append(point)
    return found


def _colour(op: str) -> str:
    return COLOURS[COLLECTIVES.index(op) % len(COLOURS)] if op in COLLECTIVES else GREY


def _curves(points: list[Ceiling]) -> list[Trace]:
    traces = []
    for op in dict.fromkeys(point.op for point in points):
        line = sorted(
            (point.size_bytes or 0, point.busbw_gbps) for point in points if point.op == op
        )
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"{words(op)}, probe",
                "legendgroup": f"{words(op)}, probe",
                "x": [size for size, _ in line],
                "y": nums(value for _, value in line),
                "line": {"color": _colour(op)},
                "hovertemplate": "%{x} B: %{y} GB/s",
            }
        )
    return traces


def _points(source: Source, kinds: list[dict[str, Any]]) -> list[Trace]:
    of = {row["case_id"]: row for row in source.rows}
    traces: dict[str, Trace] = {}
    for kind in kinds:
        op = kind["op"]
        trace = traces.setdefault(
            op,
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"{words(op)}, steps",
                "legendgroup": f"{words(op)}, steps",
                "x": [],
                "y": [],
                "text": [],
                "hovertemplate": "%{text}: %{x} B, %{y} GB/s",
                "marker": {
                    "color": _colour(op),
                    "size": 10,
                    "symbol": MARKERS[len(traces) % len(MARKERS)],
                },
            },
        )
        trace["x"].append(num(kind["bytes_per_call"]))
        trace["y"].append(num(kind["busbw_gbps"]))
        trace["text"].append(source.case(of[kind["case_id"]]) if kind["case_id"] in of else "")
    return list(traces.values())
