"""`andromeda_scale.run` in a real Jupyter kernel: in its cell, in a thread, interrupted."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from launch_support import wait_until

if not os.environ.get("CI"):
    pytest.importorskip("jupyter_client", reason="needs pip install ipykernel")
from jupyter_client.manager import KernelManager

LIMIT_S = 240

SUITE = """
suite = {
    "question": "Does a notebook measure?", "model": {"base": "andromeda-tiny", "num_layers": 1},
    "data": {"source": "random"}, "train": {"seq_len": 32}, "world": 1, "strategy": "ddp",
    "measure": {"warmup": {"min_steps": 2, "max_steps": 2}, "steps": 5, "profile_steps": 0},
    "collect": [], "parity": "off", "device": "cpu",
}
"""


@dataclass
class Cell:
    """What a front end was sent for one cell."""

    shown: dict[str, Any] = field(default_factory=dict)  # MIME type -> the result
    printed: str = ""
    error: str = ""  # name of the exception
    traceback: str = ""
    lines: list[str] = field(default_factory=list)  # the line that was replaced, each time


class Kernel:
    """A kernel in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._manager = KernelManager()
        self._manager.start_kernel(cwd=str(folder))
        self._client = self._manager.client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=60)

    def submit(self, code: str) -> str:
        return str(self._client.execute(code))

    def run(self, code: str) -> Cell:
        return self.outcome(self.submit(code))

    def outcome(self, request: str) -> Cell:
        cell = Cell()
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            message = self._client.get_iopub_msg(timeout=LIMIT_S)
            if message["parent_header"].get("msg_id") != request:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                return cell
            if kind == "stream":
                cell.printed += content["text"]
            elif kind == "error":
                cell.error, cell.traceback = content["ename"], "\n".join(content["traceback"])
            elif kind == "execute_result":
                cell.shown = content["data"]
            elif kind == "update_display_data":
                cell.lines.append(content["data"]["text/plain"])
        raise AssertionError("the cell did not end")

    def interrupt(self) -> None:
        self._manager.interrupt_kernel()

    def close(self) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebook")


@pytest.fixture(scope="module")
def kernel(folder: Path) -> Iterator[Kernel]:
    kernel = Kernel(folder)
    started = kernel.run(
        "import asyncio, os, signal, sys, threading, andromeda_scale\n"
        "assert not {'torch', 'pandas'} & set(sys.modules)\n"
        "forks = []\n"
        "os.register_at_fork(before=lambda: forks.append(1))\n"
        "handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]\n"
        + SUITE
    )
    assert not started.error, started.traceback
    yield kernel
    kernel.close()


def test_a_cell_measures_and_shows_the_table(kernel: Kernel) -> None:
    cell = kernel.run("done = andromeda_scale.run(suite, sets={'measure.repeats': 2}); done")
    assert not cell.error, cell.traceback
    assert "Does a notebook measure?" in cell.shown["text/html"]
    assert "2 ok" in cell.shown["text/plain"]
    # One line, replaced a bounded number of times: 2 launches, their ends, two updates a second.
    assert cell.lines[-1] == "[2/2]"
    assert "\n" not in "".join(cell.lines)
    assert cell.printed == ""
    table = kernel.run("assert (done.table()['tokens_per_s'] > 0).all()\nlen(done.table('ranks'))")
    assert table.shown == {"text/plain": "2"}, table.traceback


@pytest.mark.thorough
def test_another_thread_measures_and_takes_no_signal(kernel: Kernel) -> None:
    cell = kernel.run(
        "found = []\n"
        "suite['seed'] = 1\n"
        "work = lambda: found.append(andromeda_scale.run(suite, quiet=True))\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join()\n"
        "found[0].status"
    )
    assert cell.shown == {"text/plain": "{'ok': 5}"}, cell.traceback


def test_an_interrupt_ends_the_cell_and_the_same_call_goes_on(kernel: Kernel, folder: Path) -> None:
    long = "suite['seed'] = 2; andromeda_scale.run(suite, sets={'measure.repeats': %d}, quiet=True)"
    before = set(folder.glob("runs/*"))
    request = kernel.submit(long % 99)
    wait_until(
        lambda: any(set(run.glob("cases/*/*")) for run in set(folder.glob("runs/*")) - before),
        "the first launch that ended",
    )
    kernel.interrupt()
    cell = kernel.outcome(request)
    assert cell.error == "KeyboardInterrupt", cell.traceback
    assert "the same call goes on" in cell.traceback
    (run,) = set(folder.glob("runs/*")) - before
    kept = set(run.glob("cases/*/*/status.json"))
    again = kernel.run(long % (len(kept) + 1))
    assert not again.error, again.traceback
    assert set(folder.glob("runs/*")) - before == {run}
    assert kept < set(run.glob("cases/*/*/status.json"))


def test_mistakes_are_exceptions_and_the_kernel_is_as_it_was(kernel: Kernel) -> None:
    cell = kernel.run("andromeda_scale.run('quickstrt')")
    assert cell.error == "UserError"
    assert "did you mean quickstart?" in cell.traceback
    kept = kernel.run(
        "assert forks == []\n"
        "assert handlers == "
        "[signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]\n"
        "assert 'torch' not in sys.modules"
    )
    assert not kept.error, kept.traceback
