"""What every table can be written as beside text: LaTeX for a paper, strict JSON for a program.

No torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from tabulate import LATEX_ESCAPE_RULES, tabulate

from andromeda_scale.metrics.formats import clean


def latex(
    title: str,
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    align: Sequence[str],
    notes: Iterable[str] = (),
) -> str:
    """A table float with its caption above and the notes below; needs the package booktabs."""
    grid = tabulate(
        [list(row) for row in rows],
        headers=list(headers),
        tablefmt="latex_booktabs",
        colalign=list(align) if rows else None,  # tabulate aligns no column of an empty table
        disable_numparse=True,
    )
    said = [f"\\par {latex_escape(clean(note))}" for note in notes]
    if said:
        said = ["\\begin{minipage}{\\linewidth}\\footnotesize", *said, "\\end{minipage}"]
    caption = f"\\caption{{{latex_escape(clean(title))}}}"
    lines = ["\\begin{table}", "\\centering", caption, grid, *said, "\\end{table}"]
    return "\n".join(lines) + "\n"


def latex_escape(text: str) -> str:
    """Text as LaTeX shows it, whatever it holds."""
    return "".join(LATEX_ESCAPE_RULES.get(c, c) for c in text)


def markdown(text: str) -> str:
    """One line of text for Markdown, which would take <class 'X'> of an error for HTML and drop
    it."""
    return clean(text).replace("&", "&amp;").replace("<", "&lt;")


def markdown_cell(text: str) -> str:
    """The same in a pipe table."""
    return markdown(text).replace("|", "\\|")


def to_json(value: Any) -> str:
    """Strict JSON (RFC 8259): what is not measured is null, as JSON knows no NaN."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame as plain values, for `to_json`."""
    return [
        {str(name): plain(value) for name, value in row.items()} for row in frame.to_dict("records")
    ]


def plain(value: Any) -> Any:
    """A cell of a frame as JSON knows it: numpy's numbers as Python's, an empty or infinite one as
    None."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value
