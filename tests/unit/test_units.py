"""How many blocks a unit of FSDP2 has."""

from __future__ import annotations

import pytest

from andromeda_scale.cost.layout import UNIT_PARAMETERS, blocks_per_unit


@pytest.mark.parametrize(
    ("asked", "num_blocks", "block_parameters", "expected"),
    [
        (None, 36, 26_000_000, 4),  # so many hold 1e8
        (None, 32, UNIT_PARAMETERS, 1),
        (None, 32, 3 * UNIT_PARAMETERS, 1),
        (None, 36, 1_000_000, 4),  # an eighth of them, rounded down
        (None, 7, 1_000, 1),
        (None, 0, 0, 1),  # a model without blocks is one unit
        (2, 36, 26_000_000, 2),
        (9, 4, 1_000, 4),
        (2, 0, 1, 1),
    ],
)
def test_blocks_are_put_together_by_their_size_or_as_asked(
    asked: int | None, num_blocks: int, block_parameters: int, expected: int
) -> None:
    assert blocks_per_unit(asked, num_blocks, block_parameters) == expected
