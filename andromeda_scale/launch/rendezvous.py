"""Which agent of how many this process is, and how it finds agent 0, under any launcher."""

from __future__ import annotations

import hashlib
import re
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from andromeda_scale.errors import UserError
from andromeda_scale.launch.control import Control, open_client, open_server
from andromeda_scale.launch.process import StopRequest

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

ARRIVAL_S = 300.0  # how long agents of one launcher may take to arrive
_ATTEMPT_S = 5.0
_LOOPBACK = re.compile(r"127(\.\d{1,3}){3}")


@dataclass(frozen=True)
class Place:
    """An agent's index among `count`. `address` is agent 0's, or its launcher's store's."""

    index: int = 0
    count: int = 1
    host: str = ""
    address: str | None = None
    port: int | None = None
    launcher_store: bool = False  # the port belongs to torchrun's own store
    scope: str = ""  # tells apart restarts that share one launcher store


def find_place(env: Mapping[str, str]) -> Place:
    """Read the place from torchrun's (also accelerate's, deepspeed's), SLURM's or MPI's variables.

    Raises UserError naming the variable that is missing or makes no sense.
    """
    host = env.get("SLURMD_NODENAME") or socket.gethostname()
    if "RANK" in env and "WORLD_SIZE" in env:
        index, count = _number(env, "RANK"), _number(env, "WORLD_SIZE")
    elif "SLURM_PROCID" in env and "SLURM_STEP_ID" in env:  # without the second: no srun
        tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
        index, count = _number(env, "SLURM_PROCID"), _number(env, tasks)
    elif "OMPI_COMM_WORLD_RANK" in env:
        index, count = _number(env, "OMPI_COMM_WORLD_RANK"), _number(env, "OMPI_COMM_WORLD_SIZE")
    elif "PMI_RANK" in env and "PMI_SIZE" in env:
        index, count = _number(env, "PMI_RANK"), _number(env, "PMI_SIZE")
    else:
        return Place(host=host)
    if not index < count:
        raise UserError(f"rank {index} of {count} agents in the launcher's variables: not a rank")
    if count == 1:
        return Place(host=host)
    return Place(
        index=index,
        count=count,
        host=host,
        address=_address(env),
        port=_port(env) if "MASTER_PORT" in env else _job_port(env),
        launcher_store=env.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        scope=env.get("TORCHELASTIC_RESTART_COUNT", "0"),
    )


def _number(env: Mapping[str, str], name: str) -> int:
    value = env.get(name, "")
    if not value.isdecimal():
        raise UserError(f"{name}={value!r} in the environment: not a number; is it the launcher's?")
    return int(value)


def _port(env: Mapping[str, str]) -> int:
    port = _number(env, "MASTER_PORT")
    if not 0 < port < 65536:
        raise UserError(
            f"MASTER_PORT={port} in the environment: agents cannot meet there; give a port of 1 "
            "to 65535 (torchrun: --standalone, or --master-port without 0)"
        )
    return port


def _address(env: Mapping[str, str]) -> str:
    """Agent 0's; whatever a host calls its own loopback, the store listens on one address of it."""
    given = env.get("MASTER_ADDR") or _first_host(env)
    return "127.0.0.1" if given == "::1" or _LOOPBACK.fullmatch(given) else given


def _first_host(env: Mapping[str, str]) -> str:
    if env.get("SLURM_STEP_NUM_NODES") == "1":
        return "127.0.0.1"
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST")
    if nodes:
        try:
            shown = subprocess.run(
                ["scontrol", "show", "hostnames", nodes],
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError:  # a container without SLURM's commands
            hosts = []
        else:
            hosts = shown.stdout.split() if shown.returncode == 0 else []
        if hosts:
            return hosts[0]
    if env.get("OMPI_COMM_WORLD_LOCAL_SIZE") == env.get("OMPI_COMM_WORLD_SIZE", "?"):
        return "127.0.0.1"
    raise UserError(
        "MASTER_ADDR is not set and the first host of this job is unknown; "
        "export MASTER_ADDR=<the first host> before starting the agents"
    )


def _job_port(env: Mapping[str, str]) -> int:
    """A port that all processes of one job step agree on without talking."""
    for names in (("SLURM_JOB_ID", "SLURM_STEP_ID"), ("PMIX_NAMESPACE",), ("PMI_JOBID",)):
        if all(name in env for name in names):
            text = "/".join(env[name] for name in names)
            return 20000 + int(hashlib.sha256(text.encode()).hexdigest(), 16) % 12000
    raise UserError(
        "MASTER_PORT is not set and this launcher gives nothing to choose one by; "
        "export MASTER_PORT=<a free port on the first host>"
    )


def connect(place: Place, stop: StopRequest) -> Control:
    """Open or join the control store. Raises UserError when agent 0 cannot be reached."""
    if place.count == 1:
        own = open_server("127.0.0.1", 0, loopback=True)
        return _control(place, own, "127.0.0.1", own.port)
    assert place.address is not None
    assert place.port is not None
    store: Store
    try:
        if place.launcher_store:
            return _through_launcher(place, _join(place.address, place.port, stop), stop)
        if place.index == 0:
            store = open_server(place.address, place.port, loopback=_is_loopback(place.address))
        else:
            store = _join(place.address, place.port, stop)
    except (RuntimeError, OSError) as error:
        what = "open" if place.index == 0 and not place.launcher_store else "reach"
        raise UserError(
            f"cannot {what} agent 0's store at {place.address}:{place.port} "
            f"({str(error).splitlines()[0]}); check MASTER_ADDR and MASTER_PORT"
        ) from None
    return _control(place, store, place.address, place.port)


def _control(place: Place, store: Store, host: str, port: int) -> Control:
    return Control(
        store, host=host, port=port, agent=place.index, num_agents=place.count, node=place.host
    )


def _join(host: str, port: int, stop: StopRequest) -> Store:
    """Connect, in attempts short enough to hear a signal between them."""
    deadline = time.monotonic() + ARRIVAL_S
    while True:
        try:
            return open_client(host, port, _ATTEMPT_S)
        except RuntimeError:
            if stop.requested or time.monotonic() > deadline:
                raise


def _ask(store: Store, key: str, stop: StopRequest) -> str:
    """A key that another agent will set; torch's own wait would hear no signal."""
    deadline = time.monotonic() + ARRIVAL_S
    while not store.check([key]):
        if stop.requested or time.monotonic() > deadline:
            raise UserError(f"another agent did not say its {key}; did it fail, or never start?")
        time.sleep(0.02)
    return store.get(key).decode()


def _through_launcher(place: Place, launcher: Store, stop: StopRequest) -> Control:
    """agent 0 opens a store of its own and says where through torchrun's."""
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # no stubs

    assert place.address is not None
    shared = PrefixStore(f"andromeda_scale/{place.scope}", launcher)
    shared.set(f"host/{place.index}", place.host)
    hosts = {_ask(shared, f"host/{i}", stop) for i in range(place.count)}
    if place.index == 0:
        local = len(hosts) == 1
        host = "127.0.0.1" if local else _own_address(place.address)
        own = open_server(host, 0, loopback=local)
        shared.set("address", f"{host} {own.port}")
    host, _, port = _ask(shared, "address", stop).partition(" ")
    store: Store = _join(host, int(port), stop) if place.index else own
    return _control(place, store, host, int(port))


def _is_loopback(address: str) -> bool:
    return address in ("localhost", "127.0.0.1", "::1")


def _own_address(master: str) -> str:
    """This host's address as the other hosts see it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((master, 9))  # sends nothing; asks the routing table
        address = str(probe.getsockname()[0])
    # A route through loopback means that the master is this host: others reach it by that name.
    return master if address.startswith("127.") else address


# What a launcher leaves in the environment would make a rank's libraries believe that they were
# started by it, with its rank and its world.
_LAUNCHER = ("TORCHELASTIC_", "OMPI_", "PMI_", "PMIX_", "SLURM_", "ACCELERATE_", "FSDP_", "ROLE_")
_LAUNCHER_EXACT = frozenset(
    "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE LOCAL_SIZE NODE_RANK GROUP_RANK "
    "GROUP_WORLD_SIZE CROSS_RANK CROSS_SIZE MASTER_ADDR MASTER_PORT".split()
)


def without_guesses(env: Mapping[str, str]) -> dict[str, str]:
    """Variables but for those that a launcher sets where its user had said nothing: threads, which
    ranks set by torch, and how NCCL ends, for which torchrun writes 1 where nothing was set."""
    torchrun = "TORCHELASTIC_RUN_ID" in env
    guessed = set()
    if torchrun or "ACCELERATE_MIXED_PRECISION" in env:
        guessed.add("OMP_NUM_THREADS")
    if torchrun and env.get("TORCH_NCCL_ASYNC_ERROR_HANDLING") == "1":
        guessed.add("TORCH_NCCL_ASYNC_ERROR_HANDLING")
    if env.get("ACCELERATE_USE_CPU") == "True":
        guessed |= {"KMP_AFFINITY", "KMP_BLOCKTIME"}
    return {name: value for name, value in env.items() if name not in guessed}


def rank_environment(
    env: Mapping[str, str], device: str, extra: Mapping[str, str]
) -> dict[str, str]:
    """The environment a forkserver imports in: the launcher's traces out, the case's added."""
    clean = {
        name: value
        for name, value in without_guesses(env).items()
        if name not in _LAUNCHER_EXACT and not name.startswith(_LAUNCHER)
    }
    clean["DS_ACCELERATOR"] = device
    if device == "cpu":
        clean["CUDA_VISIBLE_DEVICES"] = ""
    return clean | dict(extra)


def wait_for_agents(
    control: Control, word: str, stop: StopRequest, limit_s: float = ARRIVAL_S
) -> list[int]:
    """Wait until every other agent has said `word`; returns those that did not."""
    deadline = time.monotonic() + limit_s
    missing = list(range(1, control.num_agents))
    while missing and time.monotonic() < deadline and not stop.requested:
        missing = [i for i in missing if not control.said(f"{word}/{i}")]
        time.sleep(0.02)
    return missing
