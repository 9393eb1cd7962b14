"""Who is best among rows that do the same work: sentences with their rows and intervals. No torch.

What is said of several rivals at once holds for all of them together: intervals are those of the
level at which Holm's procedure judged each, and contain 1 exactly where two are not told apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from andromeda_scale.analysis import rivals
from andromeda_scale.analysis.losses import REMEDIES, largest_loss
from andromeda_scale.analysis.results import Results, has_failures
from andromeda_scale.analysis.rivals import Row
from andromeda_scale.analysis.stats import MIN_LAUNCHES, Sample
from andromeda_scale.metrics import METRICS
from andromeda_scale.report.rows import case_name, has, interval_of, label
from andromeda_scale.report.sentence import (
    Names,
    Sentence,
    bounded,
    case_ids,
    doubt,
    listed,
    percent,
    throughput,
    times,
    world_of,
)

LITTLE = 0.02  # of a step: less is not worth mending
_OBJECTIVES = {
    "tokens_per_s": "throughput",
    "peak_memory_bytes": "memory",
    "joules_per_token": "energy",
}
_PER_RANK = "tokens_per_s_per_gpu"  # whose inverse the hours are
_UNITS = {"joules_per_token": " J/token"}

Samples = Mapping[str, Sample]


def ranking(
    results: Results,
    names: Names,
    fair: Sequence[Row],
    planned: Sequence[Row],
    *,
    all_: bool,
) -> Iterator[Sentence]:
    """Of one group: `fair` are the rows to rank, `planned` have its settings, measured or not;
    `all_`: whether every measured row is ranked."""
    speeds = rivals.samples_of(results)
    fastest = max(fair, key=lambda row: float(row["tokens_per_s"]))
    here = [row for row in fair if world_of(row) == world_of(fastest)]
    unfit = [row for row in planned if _did_not_fit(row) and world_of(row) == world_of(fastest)]
    title = "Fastest" if all_ else "Fastest of the rows ranked"
    there = [row for row in planned if world_of(row) == world_of(fastest)]
    if len({row["global_batch_size"] for row in there if has(row, "tokens_per_s")}) > 1:
        title += f" with micro_batch_size {fastest['micro_batch_size']}"  # others found another
    yield _fastest(title, names, here, unfit, speeds)
    yield from _cheapest(results, names, fair)
    yield from _front(names, here)
    yield from _loss(names, fastest)
    yield from _noise(names, rivals.by_world(fair), speeds)


def _fastest(
    title: str, names: Names, here: Sequence[Row], unfit: Sequence[Row], speeds: Samples
) -> Sentence:
    best, others = rivals.standings(here, speeds)
    text = f"{title}: {names.full(best)}, {throughput(best)}"
    numbers = {"tokens_per_s": float(best["tokens_per_s"])}
    if others:
        numbers["ratio"] = others[0].ratio.interval.centre
        second = f"{times(others[0].ratio.interval)} {names.short(others[0].row)}"
        text += f"; {second}, the next there{doubt(others[0].ratio)}"
    if has_failures(best):
        text += f"; launches of it failed ({best['statuses']}: {best['cause']})"
    rows = (best, *(one.row for one in others[:1]), *unfit)
    return Sentence("fastest", f"{text}{_left_out(unfit)}.", case_ids(rows), numbers)


def own_batches(rows: Sequence[Row], axes: Sequence[str], speeds: Samples) -> Iterator[Sentence]:
    """The fastest at a world of rows that found a batch each, and so do not the same work.

    `rows` are those to rank, and those that were not measured.
    """
    found = [row for row in rows if has(row, "tokens_per_s") and has(row, "micro_batch_tried")]
    batch = frozenset({"micro_batch_size", "grad_accum"})
    for alike in rivals.groups(found, batch):
        names = Names(alike, [axis for axis in axes if axis not in batch])
        for world, here in rivals.by_world(alike).items():
            if len({row["global_batch_size"] for row in here}) < 2:
                continue
            unfit = [
                row
                for row in rows
                if _did_not_fit(row) and world_of(row) == world and names.shares(row)
            ]
            best, (second, *_) = rivals.standings(here, speeds)
            text = (
                "Fastest with the batch that each found, which is not the same work: "
                f"{case_name(best, axes)} with micro_batch_size {best['micro_batch_size']}, "
                f"{throughput(best)}; {times(second.ratio.interval)} {label(second.row)} with "
                f"{second.row['micro_batch_size']}, the next there"
                f"{doubt(second.ratio)}{_left_out(unfit)}."
            )
            numbers = {"tokens_per_s": float(best["tokens_per_s"])}
            yield Sentence("fastest", text, case_ids([best, second.row, *unfit]), numbers)


def _left_out(unfit: Sequence[Row]) -> str:
    return f"; does not fit there: {listed([label(row) for row in unfit])}" if unfit else ""


def _did_not_fit(row: Row) -> bool:
    if row["status"] == "oom":
        return True
    return bool(row["status"] == "skipped" and "memory" in row["cause"])


def _cheapest(results: Results, names: Names, rows: Sequence[Row]) -> Iterator[Sentence]:
    """Rank-hours, and joules where they were counted; each against the next."""
    who = "GPU" if rows[0]["device"] == "cuda" else "rank"
    for name, by, title, unit in (
        ("rank_hours_per_gtoken", _PER_RANK, "Cheapest", f"{who}-hours per 1e9 tokens"),
        ("joules_per_token", "joules_per_token", "Least energy", "J/token"),
    ):
        counted = [row for row in rows if has(row, name)]
        if not counted:
            continue
        best, others = rivals.standings(counted, rivals.samples_of(results, by), by)
        text = f"{title} per token: {names.full(best)}, {bounded(interval_of(best, name))} {unit}"
        numbers = {name: float(best[name])}
        if others:
            ratio = others[0].ratio.interval
            numbers["ratio"] = ratio.centre
            text += f"; {names.full(others[0].row)}, the next, takes {times(ratio)} of that"
            text += doubt(others[0].ratio)
        ids = case_ids((best, *(one.row for one in others[:1])))
        yield Sentence("cheapest", f"{text}.", ids, numbers)


def _front(names: Names, here: Sequence[Row]) -> Iterator[Sentence]:
    """Who is best at something, of rows that share a world; nothing without a choice."""
    kept, goods = rivals.front(here)
    if len(here) < 2 or len(goods) < 2:
        return
    words = " and ".join(_OBJECTIVES[name] for name in goods)
    each = [f"{names.short(row)} ({', '.join(_good(row, name) for name in goods)})" for row in kept]
    beaten = len(here) - len(kept)
    rest = f"; {beaten} {'is' if beaten == 1 else 'are'} matched or beaten in all" if beaten else ""
    at = f"world {here[0]['world_size']}{names.where}"
    text = f"Front of {words} at {at}, by their means: {listed(each)}{rest}."
    yield Sentence("front", text, case_ids(kept))


def _good(row: Row, name: str) -> str:
    if name == "tokens_per_s":
        return throughput(row)
    centre, *ends = (METRICS[name].text(value) for value in interval_of(row, name))
    if not has(row, f"{name}_low"):
        return f"{centre}{_UNITS.get(name, '')}"
    return f"{centre} [{', '.join(ends)}]{_UNITS.get(name, '')}"


def _loss(names: Names, row: Row) -> Iterator[Sentence]:
    found = largest_loss(row)
    if found is None:
        return
    name, share = found
    said = f"{name}, {percent(share)} of a profiled step"
    text = f"Largest loss of {names.full(row)}: {said}; usually mended by {_remedy(name, row)}."
    if share.centre < LITTLE:
        text = f"No loss of {names.full(row)} is worth mending: the largest is {said}."
    yield Sentence("loss", text, case_ids([row]), {"share": share.centre})


def _remedy(loss: str, row: Row) -> str:
    if loss == "host" and has(row, "graph_breaks"):  # it is compiled already
        return REMEDIES[loss].removeprefix("train.compile, or ")
    return REMEDIES[loss]


def _noise(
    names: Names, by_world: Mapping[tuple[int, int], Sequence[Row]], speeds: Samples
) -> Iterator[Sentence]:
    """Rivals that launches cannot tell from the fastest of their world, large worlds first."""
    near: list[tuple[str, tuple[Row, ...]]] = []
    unknown: list[tuple[str, tuple[Row, ...]]] = []
    for (world, nodes), rows in reversed(list(by_world.items())):
        best, others = rivals.standings(rows, speeds)
        at = f"at world {world}" + (f" on {nodes} nodes" if nodes > 1 else "")
        alike = [one for one in others if one.ratio.known and not one.ratio.differs]
        if alike:
            each = [f"{names.short(one.row)} ({times(one.ratio.interval)})" for one in alike]
            of = (best, *(one.row for one in alike))
            near.append((f"{at} {names.short(best)} from {_and(each)}", of))
        few = [one.row for one in others if not one.ratio.known]
        if few:
            each = [names.short(row) for row in few]
            unknown.append((f"{at} {names.short(best)} from {_and(each)}", (best, *few)))
    if near:
        text = f"Not told apart by these launches{names.where}: {listed([t for t, _ in near])}."
        yield Sentence("noise", text, case_ids(row for _, of in near for row in of))
    if unknown:
        text = f"Too few launches to tell{names.where}: {listed([t for t, _ in unknown])}: "
        text += f"set measure.repeats to {MIN_LAUNCHES} or more."
        yield Sentence("noise", text, case_ids(row for _, of in unknown for row in of))


def _and(items: Sequence[str]) -> str:
    return listed(items).replace("; ", ", ")
