"""The fitted laws of scaling as dotted lines, up to the largest world each may speak about.

No torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from andromeda_scale.analysis import laws, rivals
from andromeda_scale.report.html.figure import Trace
from andromeda_scale.report.html.source import Source, num

POINTS = 40  # of a line
DASHES = {"Amdahl": "dashdot", "Gustafson": "dashdot", "USL": "dot"}


def laws_of(source: Source, drawn: Sequence[Trace]) -> tuple[list[Trace], int]:
    """Lines of every law through every series with sizes enough, and the largest world they reach.

    A line is shown and hidden with the series, whose trace is in `drawn`.
    """
    shown = {trace["name"]: trace for trace in drawn if "name" in trace}
    found: list[Trace] = []
    reach = 0
    for group in rivals.groups(source.measured):
        for rows in rivals.series(group):
            label = source.name(rows[0])
            for fit in laws.fits(rows):
                reach = max(reach, fit.speaks_to)
                found.append(
                    _line(fit, float(rows[0]["tokens_per_s"]), label, shown.get(label, {}))
                )
    return found, reach


def _line(fit: laws.Fit, base_rate: float, label: str, series: Trace) -> Trace:
    sizes = np.unique(np.geomspace(fit.base, fit.speaks_to, POINTS).round().astype(int)).tolist()
    worst = max(map(abs, fit.residuals))
    line: Trace = {
        "type": "scatter",
        "legendgroup": label,
        "x": sizes,
        "y": [num(base_rate * fit.speedup(size).centre) for size in sizes],
        "mode": "lines",
        "line": {"color": series.get("line", {}).get("color"), "dash": DASHES[fit.law], "width": 1},
        "hovertemplate": f"{fit.law}, misses none by more than {worst:.1%}: %{{x}} ranks: %{{y}}",
    }
    return line | {key: series[key] for key in ("visible",) if key in series}
