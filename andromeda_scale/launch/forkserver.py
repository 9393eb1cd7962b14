"""The process that has imported everything and forks ranks: `python -m ....launch.forkserver`.

One serves one environment (device kind and variables), because DeepSpeed picks its accelerator
and many libraries read their variables while they are imported. multiprocessing's forkserver is
one per interpreter, so this is a plain one: commands come as JSON lines on one pipe, events leave
as JSON lines on another, and a rank is a fork with its own files and session.

    -> {"fork": id, "slot": n, "spec": {...}, "stdout": path, "stderr": path}
    -> {"signal": number, "ids": [...]}
    <- {"ready": {module: error}}   <- {"forked": id, "pid": n}   <- {"exited": id, "code": n}
"""

from __future__ import annotations

import faulthandler
import json
import os
import selectors
import signal
import sys
import traceback
from importlib import import_module
from typing import Any, NoReturn

from andromeda_scale.contracts.planned import RankSpec
from andromeda_scale.launch import preload
from andromeda_scale.launch.beats import BeatTable
from andromeda_scale.launch.process import die_with_parent, signal_group


class Forkserver:
    """Forks ranks on command and says how each left."""

    def __init__(
        self, commands: int, events: int, beats: BeatTable, worker: str, modules: list[str]
    ) -> None:
        self._commands, self._events, self._beats = commands, events, beats
        self._worker, self._modules = worker, modules
        self._pids: dict[int, int] = {}  # pid -> id, of ranks not yet reaped

    def serve(self) -> None:
        """Run until the agent closes its end of the commands."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the agent decides; it ends ranks by SIGKILL
        self._send({"ready": preload.import_all(self._worker, self._modules)})
        child_read, child_write = os.pipe()
        os.set_blocking(child_write, False)  # as set_wakeup_fd demands
        signal.set_wakeup_fd(child_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        buffer = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._commands, selectors.EVENT_READ)
            selector.register(child_read, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select()}
                if child_read in ready:
                    os.read(child_read, 4096)
                    self._reap()
                if self._commands in ready:
                    data = os.read(self._commands, 1 << 16)
                    if not data:
                        return
                    *lines, buffer = (buffer + data).split(b"\n")
                    for line in lines:
                        self._obey(json.loads(line))

    def _obey(self, command: dict[str, Any]) -> None:
        if "fork" in command:
            self._fork(command)
            return
        for pid, identity in self._pids.items():
            if identity in command["ids"]:
                signal_group(pid, command["signal"])

    def _fork(self, command: dict[str, Any]) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_rank(command, parent)
        self._pids[pid] = command["fork"]
        self._send({"forked": command["fork"], "pid": pid})

    def _become_rank(self, command: dict[str, Any], parent: int) -> NoReturn:
        code = 1
        try:
            os.setsid()  # what a rank starts is in its group, and ends with it
            die_with_parent(parent)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for path, fd in ((command["stdout"], 1), (command["stderr"], 2)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), fd)
            os.close(self._commands)
            os.close(self._events)
            faulthandler.enable(file=2)
            faulthandler.register(signal.SIGUSR1, file=2)  # where does a hung rank stand?
            module, _, function = self._worker.partition(":")
            main = getattr(import_module(module), function)
            main(RankSpec.model_validate(command["spec"]), self._beats.writer(command["slot"]))
            code = 0
        except BaseException:  # a forked child never returns into the server
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)  # gloo's and CUDA's teardown abort some ranks that succeeded

    def _reap(self) -> None:
        for pid in list(self._pids):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            signal_group(pid, signal.SIGKILL)  # what the rank started; its id is still taken
            _, status = os.waitpid(pid, 0)
            code = os.waitstatus_to_exitcode(status)
            self._send({"exited": self._pids.pop(pid), "code": code})

    def _send(self, event: dict[str, Any]) -> None:
        os.write(self._events, json.dumps(event).encode() + b"\n")


def main() -> None:
    """Arguments: the agent's pid, three inherited descriptors, number of slots, worker, modules."""
    parent, commands, events, beats, num_slots = map(int, sys.argv[1:6])
    die_with_parent(parent)
    for fd in (commands, events, beats):
        os.set_inheritable(fd, False)
    table = BeatTable(num_slots, beats)
    Forkserver(commands, events, table, sys.argv[6], sys.argv[7:]).serve()


if __name__ == "__main__":
    main()
