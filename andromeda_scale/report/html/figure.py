"""One figure of a page: plotly traces, what is said under them, what is read aloud. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

Trace = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """One of several views of a figure, of which a reader sees one at a time."""

    label: str
    data: Sequence[Trace]
    layout: Mapping[str, Any] = field(default_factory=dict)  # over that of the figure
    said: str = ""  # in words, for who cannot see it


@dataclass(frozen=True)
class Figure:
    """Plotly's data and layout, in plain text."""

    title: str
    caption: str
    choices: Sequence[Choice]
    layout: Mapping[str, Any] = field(default_factory=dict)
    chosen: int = 0
    choose: str = "case"  # what the choices are

    def plain(self) -> dict[str, Any]:
        """What the page's script draws from; every text that plotly gets is escaped here, because
        it reads tags."""
        return {
            "layout": _escaped(self.layout),
            "choices": [
                {"data": _escaped(one.data), "layout": _escaped(one.layout), "said": one.said}
                for one in self.choices
            ],
            "chosen": self.chosen,
        }


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return escape(value, quote=False)
    if isinstance(value, Mapping):
        return {key: _escaped(one) for key, one in value.items()}
    return [_escaped(one) for one in value] if isinstance(value, list | tuple) else value


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with a title that keeps its room."""
    return {"title": {"text": title}, "automargin": True, **more}


def height_of(num_bars: int) -> int:
    """Pixels of a figure with as many horizontal bars."""
    return 120 + 26 * num_bars
