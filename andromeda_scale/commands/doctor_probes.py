"""What the doctor runs in children with a time limit, so that a broken driver, library or network
is an answer too. No torch here: the children import it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

IMPORT_LIMIT_S = 180.0  # cold imports from a slow disk take tens of seconds
GROUP_LIMIT_S = 120.0

# What a forkserver imports, and what torch says; each fact alone, so that one failure does not
# hide the others. The last line is the answer: libraries print while they are imported.
_FACTS = """
import json, sys
facts, broken = {}, {}
for name in sys.argv[1:]:
    try:
        __import__(name)
    except BaseException as error:  # a broken package may even exit
        broken[name] = f"{type(error).__name__}: {error}".splitlines()[0]
try:
    import torch, torch.distributed as dist
    facts = {"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": [],
             "gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available()}
    if torch.cuda.is_available():
        count = range(torch.cuda.device_count())
        facts["gpus"] = [torch.cuda.get_device_name(i) for i in count]
        facts["capability"] = min(torch.cuda.get_device_capability(i) for i in count)
        facts["bf16"] = torch.cuda.is_bf16_supported(including_emulation=False)
        x = torch.ones(64, 64, device="cuda")
        facts["matmul"] = float((x @ x).sum().item())
except Exception as error:  # a driver that torch cannot use
    broken.setdefault("torch", f"{type(error).__name__}: {error}".splitlines()[0])
print()
print(json.dumps({"facts": facts, "broken": broken}))
"""

# A real group: the smallest thing that every case of a sweep depends on.
_ALL_REDUCE = """
import os, sys, datetime, torch, torch.distributed as dist
rank, size, backend, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
device = "cpu"
if backend == "nccl":
    device = f"cuda:{rank}"
    torch.cuda.set_device(device)
dist.init_process_group(backend, init_method="file://" + path, rank=rank, world_size=size,
                        timeout=datetime.timedelta(seconds=60))
x = torch.full((1000,), float(rank + 1), device=device)
dist.all_reduce(x)
assert x.eq(size * (size + 1) / 2).all(), x
print("sum is right", flush=True)
if backend == "nccl":
    dist.destroy_process_group()
else:  # gloo's teardown aborts some processes that succeeded: leave when all have, without it
    store = dist.distributed_c10d._get_default_store()
    store.set(f"done/{rank}", "")
    store.wait([f"done/{other}" for other in range(size)])
    os._exit(0)
"""


def torch_facts(modules: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """(what torch says of itself and the devices, module -> error of those that do not import)."""
    answer = run([sys.executable, "-c", _FACTS, *modules], IMPORT_LIMIT_S)
    try:
        if isinstance(answer, str):
            raise ValueError(answer)
        said = json.loads(answer[-1])
        return said["facts"], said["broken"]
    except (ValueError, KeyError, TypeError) as error:
        return {}, {"torch": str(error)}


def all_reduce(backend: str, size: int) -> str | None:
    """Why `size` processes of this machine cannot add their tensors; None if they can."""
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        command = [sys.executable, "-c", _ALL_REDUCE]
        ranks = [start([*command, str(r), str(size), backend, store]) for r in range(size)]
        limits_s = [GROUP_LIMIT_S] + [5.0] * (size - 1)
        answers = []
        try:
            for rank, limit_s in zip(ranks, limits_s, strict=True):
                answers.append(finish(rank, limit_s))
        finally:
            for rank in ranks:
                kill(rank)
    return next((answer for answer in answers if isinstance(answer, str)), None)


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a limit must end the child's children too
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(child: subprocess.Popen[str], limit_s: float) -> list[str] | str:
    """Lines of stdout, or in one line why there are none."""
    try:
        out, err = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        return f"no answer within {limit_s:.0f} s"
    finally:
        kill(child)  # out of time, or the user pressed Ctrl-C
    if child.returncode != 0:
        lines = [line for line in err.splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"ended with status {child.returncode}"
    return out.splitlines() or "said nothing"


def kill(child: subprocess.Popen[str]) -> None:
    """End a child and what it started, if it is still there."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def run(command: list[str], limit_s: float) -> list[str] | str:
    return finish(start(command), limit_s)
