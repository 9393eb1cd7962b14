"""A worker whose ranks do what `case.model` says, to see what the launcher makes of it.

`case.model` maps a rank (as text) to an act below, or the variable ACT_<rank> does. Any other rank
trains nothing, says its beats, takes part in an all-reduce where there are several, and ends ok.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta

import psutil

from andromeda_scale.contracts.planned import RankSpec
from andromeda_scale.contracts.records import RecordWriter

Beat = Callable[[str, int, int], None]
FOREVER_S = 600.0
PRELOAD = ("torch", "torch.distributed")


def main(spec: RankSpec, beat: Beat) -> None:
    record = RecordWriter(spec.record_path, spec.item.case_id, spec.item.repeat, spec.rank)
    start_s = time.monotonic()
    record.write("start", pid=os.getpid(), local_rank=spec.local_rank, node_rank=spec.node_rank)
    acts = [
        spec.case.model.get(str(rank)) or os.environ.get(f"ACT_{rank}")
        for rank in range(spec.world_size)
    ]
    act = acts[spec.rank] or "train"
    if act == "silent":
        time.sleep(FOREVER_S)
    beat("warmup", 0, 5)
    beat("warmup", 1, 5)
    if act == "train" and any(acts):
        try:
            _meet(spec)
        except RuntimeError as error:
            record.write("end", status="crashed", phase="warmup", cause=str(error).split("\n")[0])
            return
    elif act == "train" and spec.world_size > 1:
        _meet(spec)
    else:
        ACTS.get(act, _train)(spec, record)
        if act in ENDS_ITSELF:
            return
    beat("measure", 5, 5)
    given = spec.reference.model_dump(mode="json") if spec.reference else None
    values = {"given": given, "host": spec.store_host}
    if spec.item.role == "reference":
        losses = {"loss_sum": [8.0, 6.0, 4.0, 2.0, 1.0], "tokens": [2] * 5}
        losses = {"losses": losses | {"gradient_norm": [5.0, 4.0, 3.0, 2.0, 1.0]}}
        record.write("phase", phase="warmup", values=losses, start_s=start_s, end_s=start_s)
    record.write("phase", phase="measure", values=values, start_s=start_s, end_s=time.monotonic())
    record.write("end", status="ok")


def _meet(spec: RankSpec) -> None:
    import torch
    import torch.distributed as dist

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    client = dist.TCPStore(spec.store_host, spec.store_port, None, False, timedelta(seconds=30))
    store = dist.PrefixStore(spec.store_prefix, client)
    dist.init_process_group("gloo", store=store, rank=spec.rank, world_size=spec.world_size)
    total = torch.ones(1)
    dist.all_reduce(total)
    assert total.item() == spec.world_size


def _train(spec: RankSpec, record: RecordWriter) -> None:
    time.sleep(0.05)


def _segfault(spec: RankSpec, record: RecordWriter) -> None:
    import ctypes

    ctypes.string_at(0)


def _raise(spec: RankSpec, record: RecordWriter) -> None:
    raise ValueError("planted: this rank raises")


def _leave(spec: RankSpec, record: RecordWriter) -> None:
    sys.stderr.write("planted: leaves without an end\n")
    sys.stderr.flush()
    os._exit(0)


def _kill(spec: RankSpec, record: RecordWriter) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_agent(spec: RankSpec, record: RecordWriter) -> None:
    forkserver = psutil.Process(os.getppid())
    os.kill(forkserver.ppid(), signal.SIGKILL)
    time.sleep(FOREVER_S)


def _hang(spec: RankSpec, record: RecordWriter) -> None:
    subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({FOREVER_S})"])
    time.sleep(FOREVER_S)


def _wait(spec: RankSpec, record: RecordWriter) -> None:
    time.sleep(FOREVER_S)


def _oom(spec: RankSpec, record: RecordWriter) -> None:
    record.write("end", status="oom", phase="warmup", cause="planted: no memory", detail={})


def _half_line(spec: RankSpec, record: RecordWriter) -> None:
    with open(spec.record_path, "a") as file:
        file.write('{"v": 1, "kind": "end", "status": "ok"')
    os._exit(0)


def _wait_later(spec: RankSpec, record: RecordWriter) -> None:
    if spec.item.repeat:
        time.sleep(FOREVER_S)
    _meet(spec)


def _held(spec: RankSpec, record: RecordWriter) -> None:
    """In repeat 1, wait for the file GO; meet the others in every repeat."""
    while spec.item.repeat == 1 and not os.path.exists(os.environ["GO"]):
        time.sleep(0.05)
    _meet(spec)


def _environment(spec: RankSpec, record: RecordWriter) -> None:
    names = ("DS_ACCELERATOR", "PLANTED", "RANK", "MASTER_PORT")
    print({name: os.environ.get(name) for name in names})


def _compile(spec: RankSpec, record: RecordWriter) -> None:
    """Start the workers that compile for Triton, and wait."""
    from torch._inductor import config
    from torch._inductor.async_compile import AsyncCompile

    config.compile_threads = 2
    AsyncCompile.process_pool().submit(os.getpid).result()
    helpers = psutil.Process().children(recursive=True)
    record.write("phase", phase="setup", values={"helpers": [p.pid for p in helpers]})
    time.sleep(FOREVER_S)


def _cache(spec: RankSpec, record: RecordWriter) -> None:
    """Leave something in the compile cache, and tell what was there."""
    assert spec.compile_cache is not None
    there = os.listdir(spec.compile_cache)
    open(f"{spec.compile_cache}/{spec.item.repeat}-{spec.rank}", "w").close()
    values = {"cache": spec.compile_cache, "there": there}
    record.write("phase", phase="setup", values=values, start_s=0.0, end_s=0.0)


ACTS = {
    "compile": _compile,
    "cache": _cache,
    "segfault": _segfault,
    "raise": _raise,
    "leave": _leave,
    "kill": _kill,
    "kill_agent": _kill_agent,
    "hang": _hang,
    "wait": _wait,
    "oom": _oom,
    "half_line": _half_line,
    "wait_later": _wait_later,
    "held": _held,
    "environment": _environment,
}
ENDS_ITSELF = {"oom"}
