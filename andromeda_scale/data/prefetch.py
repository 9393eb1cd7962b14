"""Batches read ahead of their step by a thread of their own (numpy; no torch)."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from andromeda_scale.data.batches import Ids, Source

_Key = tuple[int, int]  # step, index of the micro-batch


class Prefetched:
    """The same batches as of `source`, `ahead` of them read before they are asked for.

    They are read in the order of steps; asked for another, the thread starts again from there.
    One slow to read by d costs max(0, d - the time between two of them).
    """

    def __init__(self, source: Source, ahead: int, grad_accum: int) -> None:
        self.global_tokens = source.global_tokens
        self._source = source
        self._ahead = ahead
        self._grad_accum = grad_accum
        self._reader = ThreadPoolExecutor(max_workers=1)
        self._coming: deque[tuple[_Key, Future[tuple[Ids, Ids]]]] = deque()

    def micro_batch(self, step: int, index: int) -> tuple[Ids, Ids]:
        if self._coming and self._coming[0][0] != (step, index):
            for _, unused in self._coming:
                unused.cancel()
            self._coming.clear()
        key = (step, index)
        while len(self._coming) <= self._ahead:
            if self._coming:
                key = self._after(self._coming[-1][0])
            self._coming.append((key, self._reader.submit(self._source.micro_batch, *key)))
        return self._coming.popleft()[1].result()

    def _after(self, key: _Key) -> _Key:
        step, index = key
        return (step, index + 1) if index + 1 < self._grad_accum else (step + 1, 0)
