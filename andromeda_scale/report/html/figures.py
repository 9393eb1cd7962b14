"""The figures of a page, in the order in which it shows them. No torch."""

from __future__ import annotations

from collections.abc import Callable

from andromeda_scale.report.html.bandwidth import bandwidth
from andromeda_scale.report.html.breakdown import breakdown
from andromeda_scale.report.html.efficiency import efficiency
from andromeda_scale.report.html.figure import Figure
from andromeda_scale.report.html.front import front
from andromeda_scale.report.html.memory import memory
from andromeda_scale.report.html.rank_map import rank_map
from andromeda_scale.report.html.source import Source
from andromeda_scale.report.html.throughput import throughput
from andromeda_scale.report.html.traces import traces
from andromeda_scale.report.html.waterfall import waterfall

# A new figure is a module and one line here: it draws a source, or says why there is nothing.
FIGURES: dict[str, Callable[[Source], Figure | str]] = {
    "throughput": throughput,
    "efficiency": efficiency,
    "front": front,
    "breakdown": breakdown,
    "waterfall": waterfall,
    "rank-map": rank_map,
    "memory": memory,
    "bandwidth": bandwidth,
    "steps": traces,
}
