"""The node's sampler, on this machine and on a drawn-up InfiniBand port."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from andromeda_scale import registry
from andromeda_scale.collectors import system
from andromeda_scale.collectors.system import System


def test_the_agent_runs_it_not_the_ranks() -> None:
    assert registry.load("collector", "system").where == "agent"
    assert registry.load("collector", "memory").where == "rank"


def test_a_short_repeat_has_its_first_and_last_sample() -> None:
    sampler = System(period_s=3600)
    sampler.start()
    found = dict(sampler.stop())
    json.dumps(found)
    series = {"t_s", "cpu_share", "load_1m", "memory_used_bytes"}
    assert {name: len(found[name]) for name in series} == dict.fromkeys(series, 2)
    assert found["t_s"] == sorted(found["t_s"])
    assert found["cpu_share"][0] is None
    assert 0 <= found["cpu_share"][1] <= 1
    assert min(found["memory_used_bytes"]) > 0


def test_bytes_over_the_network_are_those_since_the_start() -> None:
    payload = b"x" * 100_000
    sampler = System(period_s=3600)
    with socket.create_server(("127.0.0.1", 0)) as server:
        sampler.start()
        with socket.create_connection(server.getsockname()) as client:
            receiver, _ = server.accept()
            with receiver:
                client.sendall(payload)
                client.shutdown(socket.SHUT_WR)
                while receiver.recv(65536):
                    pass
        found = sampler.stop()["network_bytes"]
    assert sum(nic["sent"] for nic in found.values()) >= len(payload)


def test_a_failing_sample_is_told_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = System(period_s=0.0)
    sampler.start()
    monkeypatch.setattr(system.psutil, "virtual_memory", lambda: 1 / 0)
    sampler._thread.join(timeout=60)
    with pytest.raises(ZeroDivisionError):
        sampler.stop()


def test_busy_share_leaves_out_idle_waiting_for_disks_and_guests() -> None:
    def times(user: float, guest: float, idle: float, iowait: float) -> SimpleNamespace:
        values = {"user": user, "guest": guest, "idle": idle, "iowait": iowait}
        return SimpleNamespace(_fields=tuple(values), **values)

    assert system._busy_share(times(0, 0, 0, 0), times(30, 20, 50, 20)) == pytest.approx(0.3)
    assert system._busy_share(times(1, 0, 1, 0), times(1, 0, 1, 0)) == 0.0


def test_infiniband_counts_words_of_four_bytes(tmp_path: Path) -> None:
    counters = tmp_path / "mlx5_0" / "ports" / "1" / "counters"
    counters.mkdir(parents=True)
    (counters / "port_xmit_data").write_text("10\n")
    (counters / "port_rcv_data").write_text("3\n")
    (tmp_path / "mlx5_1" / "ports" / "1").mkdir(parents=True)  # a port that does not say
    assert system._infiniband(tmp_path) == {"mlx5_0:1": {"sent": 40, "received": 12}}


def test_an_interface_that_appears_counts_from_zero() -> None:
    before = {"eth0": {"sent": 5}}
    after = {"eth0": {"sent": 8}, "ib0": {"sent": 2}}
    assert system._grown(before, after) == {"eth0": {"sent": 3}, "ib0": {"sent": 2}}
