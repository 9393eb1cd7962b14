"""A plotly figure as an SVG file: text, equal for equal figures, that says its numbers."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from html import escape, unescape
from pathlib import Path
from typing import Any

from plotly import graph_objects as go
from plotly.offline import get_plotlyjs


def said(figure: go.Figure) -> str:
    """What a picture shows in words: its numbers, a line a series, and what is written in it."""
    lines = []
    for trace in figure.data:
        points = zip(trace.x, trace.y, trace.text or [""] * len(trace.x), strict=True)
        words = [_point(*point) for point in points]
        lines.append(f"{trace.name}: {'; '.join(word for word in words if word)}")
    return "\n".join((*lines, *(note.text for note in figure.layout.annotations)))


def _point(x: Any, y: Any, text: str) -> str:
    where, number = (y, x) if isinstance(y, str) else (x, y)
    if number is None:
        return ""
    return f"{where} {text or format(number, '.6g')}".replace("<br>", " ")


def write_svg(figure: go.Figure, file: Path) -> None:
    """Draw in chromium; names that plotly draws by lot are fixed, so that equal figures are equal
    files."""
    size = {"width": figure.layout.width, "height": figure.layout.height}
    wanted = json.dumps({"format": "svg", "imageDataOnly": True, **size})
    page = f"<pre></pre><script>{get_plotlyjs()}</script><script>"
    page += f"Plotly.toImage({figure.to_json()}, {wanted})"
    page += ".then(svg => {document.querySelector('pre').textContent = svg})</script>"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "plot.html").write_text(page, encoding="utf-8")
        chromium = ["chromium", "--headless=new", "--no-sandbox", "--virtual-time-budget=20000"]
        where = (Path(folder) / "plot.html").as_uri()
        done = subprocess.run(
            [*chromium, "--dump-dom", where],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
    svg = unescape(done.stdout.partition("<pre>")[2].partition("</pre>")[0])
    if not svg.startswith("<svg"):
        raise RuntimeError(f"chromium drew nothing for {file}: {done.stderr[-500:]}")
    svg = re.sub(r"(clip|defs-|legend|trace)[0-9a-f]{6}", r"\1", svg)
    svg = re.sub(r"<(g|path) class=\"[^\"]*\"/>", "", svg)  # what is empty
    head, end, rest = svg.partition(">")
    rest = re.sub(r"><(g|path|rect|text|defs|clipPath)\b", r">\n<\1", rest)
    file.write_text(f"{head}{end}\n<desc>{escape(said(figure))}</desc>{rest}\n", encoding="utf-8")
