"""Steps without communication: the process groups of a strategy, replaced by torch's `fake` ones.

A collective on a fake group returns at once and moves nothing. The ranks go on side by side, each
computing what it would have: twins that never meet. What they compute is wrong from there on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_fakes: dict[ProcessGroup, ProcessGroup] = {}


def fake(group: ProcessGroup) -> ProcessGroup:
    """A group of the same ranks on which nothing is sent. A collective call of these ranks."""
    import torch.distributed as dist
    import torch.testing._internal.distributed.fake_pg  # noqa: F401  registers the backend

    if group not in _fakes:
        ranks = dist.get_process_group_ranks(group)
        made = dist.new_group(ranks, backend="fake", use_local_synchronization=True)
        assert made is not None
        _fakes[group] = made
    return _fakes[group]


@contextmanager
def silenced(places: Sequence[tuple[Any, str]]) -> Iterator[None]:
    """Within, attributes (or keys of dicts) that hold a process group, or a list of them, hold
    fake ones; None stays.

    What a collective would have written is left as it was in memory, and may be denormal numbers,
    which a CPU multiplies slowly: they count as zero meanwhile.
    """
    import torch

    before = [_get(owner, name) for owner, name in places]
    for (owner, name), found in zip(places, before, strict=True):
        _set(owner, name, _replaced(found, fake))
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        for (owner, name), found in zip(places, before, strict=True):
            _set(owner, name, found)


def _replaced(found: Any, by: Callable[[Any], Any]) -> Any:
    if isinstance(found, list):
        return [_replaced(one, by) for one in found]
    return None if found is None else by(found)


def _get(owner: Any, name: str) -> Any:
    return owner[name] if isinstance(owner, dict) else getattr(owner, name)


def _set(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, dict):
        owner[name] = value
    else:
        setattr(owner, name, value)
