"""A run as one HTML file: no network, no server, all that records hold escaped. No torch.

`page.html.j2` is the page, filled by Jinja2 with autoescape; `page.css` and `page.js` lie in it;
figures are plotly's JSON, drawn by the plotly.js of the plotly package, which lies in it too,
compressed. A content security policy names the two scripts by their digests, so that no other
runs, whatever a record holds.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from andromeda_scale import __version__
from andromeda_scale.analysis.results import Results
from andromeda_scale.metrics.formats import clean
from andromeda_scale.report.catalogue import TABLES, make_table
from andromeda_scale.report.fairness import HEADERS, Fairness
from andromeda_scale.report.html import sections
from andromeda_scale.report.html.figure import Figure
from andromeda_scale.report.html.figures import FIGURES
from andromeda_scale.report.html.source import Source
from andromeda_scale.report.html.tables import Cell, Grid, grid
from andromeda_scale.report.tables import MAX_SAID

__all__ = ["make_page"]


def make_page(
    results: Results, suite: str | None = None, ceilings: Mapping[str, Any] | None = None
) -> str:
    """The page of a run; `suite`: text of its suite.yaml, `ceilings`: of its calibration.json."""
    source = Source.of(results, suite, ceilings)
    tables = {name: make_table(results, name) for name in TABLES}
    grids = {name: grid(name, table) for name, table in tables.items()}
    under = tables["scaling"].under
    drawn = {name: make(source) for name, make in FIGURES.items()}
    fairness = tables["scaling"].fairness
    script, library = _text("page.js"), _plotly()
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=results.question or results.suite_name or "a run",
            standing=clean(results.standing),
            summary=sections.summary(source),
            verdict=[said.plain() for said in tables["scaling"].verdict],
            max_said=MAX_SAID,
            scaling=grids.pop("scaling"),
            reasons=None if under is None else grid("reasons", under),
            grids=grids,
            said=[] if fairness is None else fairness.lines(),
            differences=_differences(fairness),
            figures=drawn,
            plain={name: one.plain() for name, one in drawn.items() if isinstance(one, Figure)},
            failures=sections.failures(source),
            max_failures=sections.MAX_FAILURES,
            environment=sections.environment(source),
            software=sections.software(source),
            problems=[clean(problem) for problem in results.problems],
            suite=suite,
            suite_name=results.suite_name,
            version=__version__,
            css=Markup(_text("page.css")),  # our own files, which hold no closing tag
            script=Markup(script),
            library=_packed(library),
            policy=" ".join(f"'sha256-{_digest(text)}'" for text in (script, library)),
        )
    )


def _differences(fairness: Fairness | None) -> Grid | None:
    """Every difference between compared rows."""
    if fairness is None or fairness.frame.empty:
        return None
    rows = [("", "", [Cell(text, "", True) for text in row]) for row in fairness.cells()]
    return Grid("differences", "Differences", [(name, True) for name in HEADERS], rows, [])


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader(__name__, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _text(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    """plotly.js; its whole bundle, as the plotly package carries it."""
    from plotly.offline import get_plotlyjs

    code: str = get_plotlyjs()
    return code


@cache
def _packed(code: str) -> str:
    return base64.b64encode(gzip.compress(code.encode(), mtime=0)).decode()


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
