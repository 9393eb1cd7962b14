"""What the records of one repeat say against themselves: such a repeat has no numbers. No torch."""

from __future__ import annotations

import numpy as np

from andromeda_scale.merge.ranks import COLUMNS, RankTable
from andromeda_scale.merge.values import of_ranks
from andromeda_scale.suite.config import Case

MAX_SECONDS = 1e9  # 30 years
MAX_BYTES = 2.0**60
MAX_TOKENS = 1e18
_LIMITS = {
    name: limit
    for name in COLUMNS
    for ending, limit in (("_s", MAX_SECONDS), ("_bytes", MAX_BYTES), ("tokens", MAX_TOKENS))
    if name.endswith(ending)
}
WINDOW_RATIO = 2.0  # between ranks that wait for each other in every step
SHARE = 0.01  # by which a window may differ from the sum of its steps
SLACK_S = {"cpu": 1e-3, "cuda": 5e-3}  # beside that; events are timed on the device, windows not


def contradictions(table: RankTable, case: Case) -> list[str]:
    """What cannot be true, naming ranks; empty for sound records."""
    found = [*_absurd(table), *_world(table, case.world.size)]
    if table.step_s is None or found:
        return found
    window_s, tokens = table.columns["window_s"], table.columns["tokens"]
    slack_s = SLACK_S["cpu" if set(table.columns["device"]) <= {"", "cpu"} else "cuda"]
    sums_s = table.step_s.sum(axis=1)
    for rank in np.flatnonzero(np.abs(sums_s - window_s) > SHARE * window_s + slack_s):
        found.append(
            f"rank {rank}: its steps sum to {sums_s[rank]:.4g} s, its window is "
            f"{window_s[rank]:.4g} s"
        )
    low, high = int(window_s.argmin()), int(window_s.argmax())
    synchronised = case.train.mode == "train_step"
    # A rank kept from starting its clock is waited for in one step of the others, however long.
    waited_s = window_s[high] - table.step_s[high].max()
    if synchronised and waited_s > WINDOW_RATIO * window_s[low] + slack_s:
        found.append(
            f"the window of rank {high} is {window_s[high]:.4g} s, that of rank {low} "
            f"{window_s[low]:.4g} s, and ranks wait for each other in every step"
        )
    planned = case.global_batch_size * case.train.seq_len * table.step_s.shape[1]
    if tokens.sum() != planned:
        counts = {
            count: of_ranks(np.flatnonzero(tokens == count)) for count in dict.fromkeys(tokens)
        }
        said = "; ".join(f"{count:.15g} on {ranks}" for count, ranks in counts.items())
        found.append(f"tokens of the window are {tokens.sum():.15g}, not {planned}: {said}")
    return found


def _absurd(table: RankTable) -> list[str]:
    """Values that no run can have."""
    found = [
        f"{table.files[rank]}: rank {rank}: {name} {table.columns[name][rank]:.4g} is absurd"
        for name, limit in _LIMITS.items()
        for rank in np.flatnonzero(table.columns[name] > limit)
    ]
    if not found and table.step_s is not None:
        longest_s = table.step_s.max(axis=1)
        found += [
            f"{table.files[rank]}: rank {rank}: a step of {longest_s[rank]:.4g} s is absurd"
            for rank in np.flatnonzero(longest_s > MAX_SECONDS)
        ]
    return found


def _world(table: RankTable, world_size: int) -> list[str]:
    said = table.columns["world_size"]
    return [
        f"rank {rank}: it started in a world of {said[rank]:.0f}, planned are {world_size}"
        for rank in np.flatnonzero(~np.isnan(said) & (said != world_size))
    ]
