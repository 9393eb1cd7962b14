"""What a forkserver imports may only import: nothing computed, no CUDA, no thread of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from andromeda_scale import registry
from andromeda_scale.launch import preload

# Imports torch, notes what that alone leaves, then does the forkserver's imports under a mode that
# sees every operator; then forks as the forkserver does.
PROGRAM = """
import json, os, sys, threading, time
import torch
import numpy  # its BLAS keeps threads of its own, and minds forks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from andromeda_scale.launch import preload

class Seen(TorchDispatchMode):
    operators = []
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if any(isinstance(x, torch.Tensor) for x in tree_leaves((args, kwargs, found))):
            self.operators.append(str(function))  # others ask a library for its version
        return found

def os_threads():
    names = [open(f"/proc/self/task/{t}/comm").read() for t in os.listdir("/proc/self/task")]
    # Where there is a GPU, an import of DeepSpeed's asks the driver for it, which keeps a thread.
    # torch's own state stays uninitialised, and ranks forked then were seen to use their GPUs.
    # An allocator may keep one too (pyarrow's jemalloc), and sees to it in forks.
    return sorted(name.strip() for name in names if not name.startswith(("cuda", "jemalloc")))

before = os_threads()
with Seen():
    failed = preload.import_all("andromeda_scale.worker:main", json.loads(sys.argv[1]))
found = {
    "failed": failed,
    "operators": Seen.operators,
    "threads": [t.name for t in threading.enumerate()],
    "os_threads": [before, os_threads()],
    "cuda": torch.cuda.is_initialized(),
    "group": torch.distributed.is_initialized(),
    "imported": sorted(sys.modules),
}
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    torch.set_num_threads(2)
    product = torch.ones(512, 512) @ torch.ones(512, 512)
    said = [torch.get_num_threads(), product[0, 0].item(), len(os_threads())]
    os.write(write, json.dumps(said).encode())
    os._exit(0)
deadline = time.monotonic() + 30
while os.waitpid(pid, os.WNOHANG) == (0, 0):
    if time.monotonic() > deadline:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.write(write, b"null")
        break
    time.sleep(0.01)
found["child"] = json.loads(os.read(read, 4096))
print("FOUND", json.dumps(found))
"""


def every_module() -> list[str]:
    """What ranks of any strategy, driver or model family need beyond MODULES."""
    strategies = [registry.load("strategy", name) for name in registry.STRATEGIES]
    drivers = [registry.load("driver", name) for name in registry.DRIVERS]
    families = [registry.load("model family", name) for name in registry.MODELS]
    named = [one.preload for one in (*strategies, *families)]
    named += [driver.preload_for(strategy) for driver in drivers for strategy in strategies]
    return list(dict.fromkeys(module for modules in named for module in modules))


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What a process that did the forkserver's imports saw of them."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(every_module())],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    line = next(x for x in ended.stdout.splitlines() if x.startswith("FOUND "))
    result: dict[str, Any] = json.loads(line.removeprefix("FOUND "))
    return result


def test_preloads_import_what_a_rank_needs(found: dict[str, Any]) -> None:
    assert found["failed"] == {}
    assert {*preload.MODULES, *every_module()} <= set(found["imported"])
    assert {"deepspeed", "accelerate", "transformers.modeling_utils"} <= set(every_module())


def test_preloads_compute_nothing(found: dict[str, Any]) -> None:
    assert found["operators"] == []


def test_preloads_leave_no_thread_running(found: dict[str, Any]) -> None:
    assert found["threads"] == ["MainThread"]
    before, after = found["os_threads"]
    assert after == before


def test_preloads_leave_cuda_and_process_groups_alone(found: dict[str, Any]) -> None:
    assert found["cuda"] is False
    assert found["group"] is False


def test_a_forked_rank_multiplies_with_the_threads_it_asked_for(found: dict[str, Any]) -> None:
    assert found["child"] is not None, "the child hung"
    threads, value, os_threads = found["child"]
    assert (threads, value) == (2, 512.0)
    assert os_threads >= 2  # OMP_NUM_THREADS was 1: the child's own word counts
