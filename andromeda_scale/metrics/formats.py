"""How tables print numbers and text. Imports nothing heavy."""

from __future__ import annotations

import math

NOT_MEASURED = "-"


def clean(text: str) -> str:
    """One line of printable text: records may hold line breaks and terminal escapes."""
    return "".join(c if c.isprintable() else " " for c in text)


def milliseconds(seconds: float) -> str:
    """Milliseconds with three to four significant digits."""
    return significant(seconds * 1e3)


def significant(value: float, digits: int = 4) -> str:
    """`digits` significant digits without an exponent; thousands are grouped."""
    if not math.isfinite(value):
        return NOT_MEASURED
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, places):,.{max(0, min(places, 6))}f}"


def rate(per_second: float) -> str:
    """A throughput with four significant digits, in millions from 1e6."""
    if per_second >= 1e6 and math.isfinite(per_second):
        return f"{significant(per_second / 1e6)}M"
    return significant(per_second)


def percent(share: float) -> str:
    """A share of 0..1 as percent with one decimal."""
    return f"{share * 100:.1f}%" if math.isfinite(share) else NOT_MEASURED


def times(ratio: float) -> str:
    """A ratio such as a speed-up."""
    return f"{ratio:.2f}x" if math.isfinite(ratio) else NOT_MEASURED


def binary(num_bytes: float) -> str:
    """Bytes in the largest binary unit of which there is one; two or three significant digits."""
    if not math.isfinite(num_bytes):
        return NOT_MEASURED
    if num_bytes >= 2**30:
        return f"{num_bytes / 2**30:,.2f} GiB"
    for unit, size in (("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.{1 if num_bytes < 10 * size else 0}f} {unit}"
    return f"{num_bytes:.0f} B"


def scientific(value: float) -> str:
    """Two significant digits with an exponent."""
    return f"{value:.1e}" if math.isfinite(value) else NOT_MEASURED
