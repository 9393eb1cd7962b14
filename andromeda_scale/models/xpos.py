"""xPos (arXiv:2212.10554): queries shrink and keys grow with their position. No torch.

Dimensions of share s (0 for the first pair, below 1 for the last) are scaled by
((s + 0.4) / 1.4)^(position / SCALE_BASE), keys by its inverse, counted from the middle of T.
"""

from __future__ import annotations

import math

SCALE_BASE = 512.0
OFFSET = 0.4


def distance(factor: float) -> float:
    """Tokens over which the factor of the first pair, which changes fastest, grows to `factor`."""
    return SCALE_BASE * math.log(factor) / math.log((1 + OFFSET) / OFFSET)
