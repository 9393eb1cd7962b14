"""A real SLURM on one machine: slurmctld and slurmd, each node in its own network namespace.

Needs root on Debian. Every daemon lives below one directory and is ended by its process id; the
login node and the nodes are the namespaces `asc<pid>-ctl`, `asc<pid>-n1`, ..., joined by a bridge.
All nodes see this machine's file system and process ids.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
from processes import PATIENCE_S, alive, end, kill, wait_until
from slurm_configuration import NETWORK, write_configuration
from slurm_packages import NoClusterError, install


class Cluster:
    """A running cluster; `close` ends it. Raises NoClusterError where namespaces are refused."""

    def __init__(self, home: Path, num_nodes: int = 4) -> None:
        self.home, self.nodes = home, [f"n{i + 1}" for i in range(num_nodes)]
        self._prefix = f"asc{os.getpid()}-"
        self._pids: dict[str, int] = {}
        self._hidden: set[str] = set()  # nodes that see some folder otherwise
        self.environment = {**os.environ, "SLURM_CONF": str(home / "slurm.conf")}
        self._remove_stale()
        try:
            self._start()
        except BaseException:  # Ctrl-C too leaves no daemon
            self.close()
            raise

    def _start(self) -> None:
        for name in ("log", "state", "munge/etc", *(f"spool/{node}" for node in self.nodes)):
            (self.home / name).mkdir(parents=True)
        write_configuration(self.home, {node: self.address(node) for node in self.nodes})
        self._make_network()
        self._start_munged()
        self._run(*self.command("slurmctld", "-c", "-i"))
        self._pids["slurmctld"] = self._pid_of("slurmctld.pid")
        for node in self.nodes:
            self.start_node(node)
        self.wait_idle()

    def _start_munged(self) -> None:
        munge = self.home / "munge"
        (munge / "etc").chmod(0o700)
        key = munge / "etc" / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        daemon = self.command(
            "munged", f"--key-file={key}", f"--socket={munge}/munge.sock", "--num-threads=2",
            f"--pid-file={munge}/munged.pid", f"--log-file={munge}/munged.log",
            f"--seed-file={munge}/munged.seed", "--force",
        )  # fmt: skip
        self._run(*daemon)
        self._pids["munged"] = self._pid_of("munge/munged.pid")

    def _make_network(self) -> None:
        names = [f"{self.address(node)} {node}" for node in self.nodes]
        host = socket.gethostname().partition(".")[0]
        hosts = "\n".join(["127.0.0.1 localhost", f"{NETWORK}.1 {host}", *names]) + "\n"
        for name in ("ctl", *self.nodes):
            space = self.space(name)
            # `ip netns exec` shows this file as /etc/hosts inside.
            folder = Path("/etc/netns") / space
            folder.mkdir(parents=True)
            (folder / "hosts").write_text(hosts)
            self._run("ip", "netns", "add", space)
            self._run("ip", "-n", space, "link", "set", "lo", "up")
        ctl = self.space("ctl")
        bridge = "type bridge forward_delay 0 stp_state 0".split()
        self._run("ip", "-n", ctl, "link", "add", "br0", *bridge)
        self._run("ip", "-n", ctl, "addr", "add", f"{NETWORK}.1/24", "dev", "br0")
        self._run("ip", "-n", ctl, "link", "set", "br0", "up")
        for node in self.nodes:
            space = self.space(node)
            peer = ["peer", "name", "eth0", "netns", space]
            self._run("ip", "-n", ctl, "link", "add", f"p-{node}", "type", "veth", *peer)
            self._run("ip", "-n", ctl, "link", "set", f"p-{node}", "master", "br0", "up")
            self._run("ip", "-n", space, "addr", "add", f"{self.address(node)}/24", "dev", "eth0")
            self._run("ip", "-n", space, "link", "set", "eth0", "up")

    def space(self, name: str) -> str:
        """The network namespace of a node, or of the login node `ctl`."""
        return f"{self._prefix}{name}"

    def address(self, node: str) -> str:
        return f"{NETWORK}.{10 + int(node[1:])}"

    def start_node(self, node: str) -> None:
        """Start a node's daemon, under the node's own host name."""
        (self.home / f"slurmd.{node}.pid").unlink(missing_ok=True)
        shell = f"hostname {node}; exec slurmd -N {node}"
        inside = ("ip", "netns", "exec", self.space(node))
        self._run(*inside, "unshare", "--uts", "sh", "-c", shell)
        self._pids[f"slurmd.{node}"] = self._pid_of(f"slurmd.{node}.pid")

    def crash_node(self, node: str) -> None:
        """Kill everything on a node at once, as a power cut does."""
        for pid in self.processes(node):
            kill(pid, signal.SIGKILL)

    def agent(self, node: str) -> psutil.Process:
        """The agent of a job on a node."""
        for process in map(psutil.Process, self.processes(node)):
            try:
                if process.cmdline()[1:3] == ["-m", "andromeda_scale.agent"]:
                    return process
            except psutil.NoSuchProcess:
                continue
        raise AssertionError(f"no agent on {node}")

    def hide(self, node: str, folder: Path) -> None:
        """Let a folder be empty on one node, until its daemon starts anew."""
        self._mount(node, "-t", "tmpfs", "x", str(folder))

    def protect(self, node: str, folder: Path) -> None:
        """Let a folder be read-only on one node, until its daemon starts anew."""
        self._mount(node, "--bind", "-o", "ro", str(folder), str(folder))

    def _mount(self, node: str, *arguments: str) -> None:
        daemon = str(self._pids[f"slurmd.{node}"])
        self._run("nsenter", "--target", daemon, "--mount", "mount", *arguments)
        self._hidden.add(node)

    def mend(self) -> None:
        """Cancel every job, and bring all nodes back."""
        self.ask("scancel", "--full", "--user", "root")
        wait_until(lambda: not self.ask("squeue", "--noheader"), "an empty queue")
        for node in self.nodes:
            if node in self._hidden:
                end([self._pids[f"slurmd.{node}"]])
            if not alive(self._pids[f"slurmd.{node}"]):
                self.start_node(node)
        self._hidden.clear()
        down = self.ask("sinfo", "-h", "-N", "-t", "down,drain,fail", "-o", "%N").split()
        for node in set(down):
            self.run("scontrol", "update", f"nodename={node}", "state=resume")
        # SLURM 22.05 keeps GPUs of a job that lost a node as taken, until it reads all anew.
        self.tell("scontrol", "reconfigure")
        self.wait_idle()

    def wait_idle(self) -> None:
        """Wait until every node would take a job."""

        def idle() -> bool:
            found = self.ask("sinfo", "--noheader", "-N", "-t", "idle", "-o", "%N %t").split("\n")
            return {line.split()[0] for line in found if line.endswith(" idle")} == set(self.nodes)

        wait_until(idle, "idle nodes")

    def processes(self, name: str) -> list[int]:
        """Process ids in a namespace; () when it is gone."""
        done = subprocess.run(
            ["ip", "netns", "pids", self.space(name)], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in done.stdout.split()]

    def limit_links(self, mbit_per_s: float | None) -> None:
        """Limit what every node sends to a rate; None: no limit."""
        for node in self.nodes:
            space = self.space(node)
            done = ["tc", "-n", space, "qdisc", "del", "dev", "eth0", "root"]
            subprocess.run(done, capture_output=True, check=False)  # there may be none
            if mbit_per_s is not None:
                # A bucket holds 4 ms of the rate: a timer tick's, and little beside a message.
                burst = max(32, int(mbit_per_s / 2))
                bucket = f"rate {mbit_per_s:g}mbit burst {burst}kb latency 50ms".split()
                self._run("tc", "-n", space, "qdisc", "add", "dev", "eth0", "root", "tbf", *bucket)

    def command(self, *arguments: str) -> list[str]:
        """A command as it is typed on the login node."""
        return ["ip", "netns", "exec", self.space("ctl"), *arguments]

    def run(
        self,
        *arguments: str,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the login node to its end."""
        return subprocess.run(
            self.command(*arguments), cwd=cwd, env={**self.environment, **(environment or {})},
            capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def ask(self, *arguments: str) -> str:
        return self.run(*arguments).stdout.strip()

    def tell(self, *arguments: str) -> None:
        """Run a command that must succeed."""
        done = self.run(*arguments)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"

    def close(self) -> None:
        """End jobs, then daemons, then whatever is left, each by its process id."""
        if "slurmctld" in self._pids:
            self.run("scancel", "--full", "--user", "root", timeout_s=20)
            wait_until(lambda: not self.ask("squeue", "--noheader"), "an empty queue", strict=False)
        for wanted in ("slurmd.", "slurmctld", "munged"):
            pids = [pid for name, pid in self._pids.items() if name.startswith(wanted)]
            end(pids)
        self._pids.clear()
        for name in (*self.nodes, "ctl"):
            _remove_space(self.space(name))

    def _remove_stale(self) -> None:
        """Remove the namespaces of test runs that were killed, by the pid in their names."""
        found = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
        for space in (line.split()[0] for line in found.stdout.splitlines()):
            owner = space.removeprefix("asc").partition("-")[0]
            ours = space.startswith("asc") and owner.isdigit()
            if ours and (int(owner) == os.getpid() or not psutil.pid_exists(int(owner))):
                _remove_space(space)

    def _run(self, *command: str) -> None:
        # Daemons keep what they inherit: a pipe would never be closed.
        with open(self.home / "start.log", "ab") as log:
            done = subprocess.run(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                timeout=PATIENCE_S, check=False,
            )  # fmt: skip
        if done.returncode:
            said = (self.home / "start.log").read_text()[-500:]
            raise NoClusterError(f"{' '.join(command)}: {said.strip()}")

    def _pid_of(self, name: str) -> int:
        file = self.home / name
        wait_until(lambda: file.exists() and file.read_text().strip().isdigit(), str(file))
        return int(file.read_text())


def _remove_space(space: str) -> None:
    pids = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True)
    end([int(pid) for pid in pids.stdout.split()])
    subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)
    shutil.rmtree(Path("/etc/netns") / space, ignore_errors=True)
    try:
        Path("/etc/netns").rmdir()
    except OSError:
        pass  # others have theirs there


if __name__ == "__main__":  # python tests/cluster/cluster.py DIR: until a line is typed
    install()
    started_s = time.monotonic()
    cluster = Cluster(Path(sys.argv[1]).absolute())
    print(f"up in {time.monotonic() - started_s:.1f} s; SLURM_CONF={cluster.home}/slurm.conf")
    print("log in:", " ".join(cluster.command("bash")))
    try:
        sys.stdin.readline()
    finally:
        started_s = time.monotonic()
        cluster.close()
        print(f"down in {time.monotonic() - started_s:.1f} s")
