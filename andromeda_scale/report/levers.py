"""What one value of a setting buys against another where all else is equal, code and hardware too.
No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from andromeda_scale.analysis.comparison import Ratio, compare_launches, jointly
from andromeda_scale.analysis.rivals import Row
from andromeda_scale.analysis.stats import Sample
from andromeda_scale.report.rows import has, label, setting_words
from andromeda_scale.report.sentence import Sentence, case_ids, doubt, listed, times, world_of

# These ask another question than how to train the same.
_OTHER_WORK = ("model", "regime", "mode")
# What no suite sets: rows that differ in it differ by more than their settings.
_MADE_ON = ("software", "device_name")


class _Pair(NamedTuple):
    base: Row
    row: Row
    ratio: Ratio


def levers(
    fair: Sequence[Row], axes: Sequence[str], speeds: Mapping[str, Sample]
) -> Iterator[Sentence]:
    """A sentence for each value of an axis against the first: tokens/s and peak memory of every
    strategy, at the largest world that has both. Values of one axis are judged together."""
    for axis in axes:
        if axis in _OTHER_WORK:
            continue
        pairs = _pairs(fair, axis, [other for other in axes if other != axis], speeds)
        for value in dict.fromkeys(str(pair.row[axis]) for pair in pairs):
            of_value = [pair for pair in pairs if str(pair.row[axis]) == value]
            yield _sentence(axis, of_value, axes)


def _pairs(
    fair: Sequence[Row], axis: str, others: Sequence[str], speeds: Mapping[str, Sample]
) -> list[_Pair]:
    by_place: dict[tuple[str, ...], dict[tuple[int, int], dict[str, Row]]] = {}
    for row in sorted(fair, key=world_of):
        place = (label(row), *(str(row.get(other)) for other in (*others, *_MADE_ON)))
        by_place.setdefault(place, {}).setdefault(world_of(row), {})[str(row[axis])] = row
    values = list(dict.fromkeys(str(row[axis]) for row in fair))
    found: list[tuple[Row, Row]] = []
    for worlds in by_place.values():
        for value in values[1:]:
            both = [of for of in worlds.values() if values[0] in of and value in of]
            if both:
                found.append((both[-1][values[0]], both[-1][value]))
    nothing = Sample({})
    ratios = [
        compare_launches(*(speeds.get(one["case_id"], nothing) for one in (row, base)))
        for base, row in found
    ]
    return [_Pair(*both, ratio) for both, ratio in zip(found, jointly(ratios), strict=True)]


def _sentence(axis: str, pairs: list[_Pair], axes: Sequence[str]) -> Sentence:
    pairs.sort(key=lambda pair: -pair.ratio.interval.centre)
    inner = [one for one in axes if one != axis and len({str(pair.row[one]) for pair in pairs}) > 1]
    (value,) = setting_words(pairs[0].row, [axis])
    said = listed([_said(pair, inner) for pair in pairs])
    numbers = {str(pair.row["case_id"]): pair.ratio.interval.centre for pair in pairs}
    ids = case_ids(row for pair in pairs for row in (pair.base, pair.row))
    text = f"With {value} instead of {pairs[0].base[axis]}: {said}."
    return Sentence("lever", text, ids, numbers)


def _said(pair: _Pair, inner: Sequence[str]) -> str:
    name = label(pair.row) + "".join(f", {one}" for one in setting_words(pair.row, inner))
    text = f"{name} at world {pair.row['world_size']} {times(pair.ratio.interval)} in tokens/s"
    text += doubt(pair.ratio)
    known = all(has(row, "peak_memory_bytes") for row in (pair.row, pair.base))
    if known and pair.base["peak_memory_bytes"] > 0:
        memory = pair.row["peak_memory_bytes"] / pair.base["peak_memory_bytes"]
        text += f", {memory:.3f}x in peak memory"
    return text
