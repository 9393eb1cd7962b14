"""andromeda_scale: distributed scaling benchmarks for training transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from andromeda_scale.api import Run, load_run, run

__all__ = ["Run", "__version__", "load_run", "run"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The API by name, imported when it is first asked for: a rank imports this package too."""
    if name in ("Run", "load_run", "run"):
        from andromeda_scale import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
