"""Ranks of which rank 1 has room for so many sequences, and the others wait for it for ever."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from andromeda_scale.contracts.planned import RankSpec
from andromeda_scale.contracts.records import RecordWriter

PRELOAD = ("torch",)
MOST = 5
FOREVER_S = 600.0


def main(spec: RankSpec, beat: Callable[[str, int, int], None]) -> None:
    """A trial above MOST ends by rank 1; one of SEARCH_WAITS sequences waits for a file.

    Of one of SEARCH_DIES rank 1 is killed, once, or with SEARCH_DIES_AGAIN each time.
    """
    record = RecordWriter(spec.record_path, spec.item.case_id, spec.item.repeat, spec.rank)
    record.write("start", pid=os.getpid())
    beat("warmup", 1, 3)
    size = spec.case.train.micro_batch_size
    told = Path(os.environ["SEARCH_GO"])
    if os.environ.get("SEARCH_DIES") == str(size) and spec.rank == 1 and not told.exists():
        if "SEARCH_DIES_AGAIN" not in os.environ:
            told.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    while os.environ.get("SEARCH_WAITS") == str(size) and not told.exists():
        time.sleep(0.02)
    if size > MOST and spec.rank != 1:
        time.sleep(FOREVER_S)
    end = {"status": "oom", "cause": "planted"} if size > MOST else {"status": "ok"}
    record.write("end", **end)
