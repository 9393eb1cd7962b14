"""From ideal to measured efficiency, loss by loss. No torch."""

from __future__ import annotations

from andromeda_scale.analysis.breakdown import FACTORS
from andromeda_scale.report.html.figure import Choice, Figure, axis
from andromeda_scale.report.html.source import COLOURS, Source, num
from andromeda_scale.report.rows import Row, has, interval_of, is_base
from andromeda_scale.report.sentence import bounded

_NAMES = {
    "data_eff": "data",
    "host_eff": "host",
    "transfer_eff": "transfer",
    "serialisation_eff": "serialisation",
    "load_balance": "balance",
}


def waterfall(source: Source) -> Figure | str:
    """A view a case that has a base; the factors of the efficiency as points of 100."""
    rows = [row for row in source.measured if has(row, "data_eff_vs_base") and not is_base(row)]
    if not rows:
        return "no profiled case has a base, a smaller world of the same strategy"
    choices = [_choice(source, row) for row in rows]
    largest = max(range(len(rows)), key=lambda i: int(rows[i]["world_size"]))
    return Figure(
        "From ideal to measured",
        "Each factor of the efficiency against the base in its order, as points of 100; above "
        "ideal, less is lost than at the base. Profiled: efficiency of the profiled steps, which "
        "is their product. Measured: of the timed steps.",
        choices,
        {
            "xaxis": axis("%", rangemode="tozero"),
            "yaxis": axis("", autorange="reversed"),
            "height": 420,
        },
        chosen=largest,
    )


def _choice(source: Source, row: Row) -> Choice:
    product = 1.0
    steps, hover = [], []
    for name, column in (
        *((_NAMES[name], f"{name}_vs_base") for name in FACTORS),
        ("compute", "compute_scaling"),
    ):
        factor = interval_of(row, column)
        steps.append((name, 100 * product * (factor.centre - 1)))
        hover.append(f"{name}: x {bounded(factor)}")
        product *= factor.centre
    measured = num(row["efficiency"], 100)
    said = ", ".join(f"{name} {points:+.1f}" for name, points in steps)
    data = {
        "type": "waterfall",
        "orientation": "h",
        "y": ["ideal", *(name for name, _ in steps), "profiled"],
        "x": [100, *(num(points) for _, points in steps), 0],
        "measure": ["absolute", *("relative" for _ in steps), "total"],
        "text": ["100", *(f"{points:+.1f}" for _, points in steps), f"{100 * product:.1f}"],
        "textposition": "outside",
        "cliponaxis": False,
        "increasing": {"marker": {"color": COLOURS[2]}},
        "decreasing": {"marker": {"color": COLOURS[1]}},
        "totals": {"marker": {"color": COLOURS[0]}},
        "connector": {"line": {"width": 1}},
        "hovertext": ["ideal", *hover, f"profiled {100 * product:.1f} %"],
        "hoverinfo": "text",
    }
    bar = {
        "type": "bar",
        "orientation": "h",
        "y": ["measured"],
        "x": [measured],
        "text": ["" if measured is None else f"{measured:.1f}"],
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {"color": COLOURS[4]},
        "hoverinfo": "y+x",
    }
    return Choice(
        source.case(row), [data, bar], said=f"100, {said}; profiled {100 * product:.1f} %"
    )
