"""Which agent a process is under each launcher, and which ranks it holds."""

from __future__ import annotations

import socket

import pytest

from andromeda_scale.errors import UserError
from andromeda_scale.launch.messages import Hello
from andromeda_scale.launch.placement import place
from andromeda_scale.launch.rendezvous import Place, find_place, rank_environment
from andromeda_scale.suite.world import World

HOST = socket.gethostname()
MASTER = {"MASTER_ADDR": "a", "MASTER_PORT": "29500"}

# What each launcher exports (torch 2.13 torchrun, SLURM 23 srun, Open MPI 4, Hydra).
PLACES = {
    "none": ({}, Place(host=HOST)),
    "torchrun": (
        {"RANK": "3", "WORLD_SIZE": "4", "TORCHELASTIC_USE_AGENT_STORE": "True"}
        | {"TORCHELASTIC_RESTART_COUNT": "1", **MASTER},
        Place(3, 4, HOST, "a", 29500, launcher_store=True, scope="1"),
    ),
    "deepspeed": (
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **MASTER},
        Place(0, 2, HOST, "a", 29500, scope="0"),
    ),
    "srun": (
        {"SLURM_PROCID": "1", "SLURM_NTASKS": "9", "SLURM_STEP_NUM_TASKS": "2"}
        | {"SLURM_STEP_ID": "0", "SLURMD_NODENAME": "n1", **MASTER},
        Place(1, 2, "n1", "a", 29500, scope="0"),
    ),
    "sbatch without srun": (
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURMD_NODENAME": "n0"},
        Place(host="n0"),
    ),
    "mpirun": (
        {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", **MASTER},
        Place(1, 2, HOST, "a", 29500, scope="0"),
    ),
    "mpiexec": ({"PMI_RANK": "0", "PMI_SIZE": "1"}, Place(host=HOST)),
}


@pytest.mark.parametrize("launcher", PLACES)
def test_an_agent_finds_its_place_under_every_launcher(launcher: str) -> None:
    env, expected = PLACES[launcher]
    assert find_place(env) == expected


STEP = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "77"}


@pytest.mark.parametrize(
    "said", [{"SLURM_STEP_NUM_NODES": "1"}, {"MASTER_ADDR": "::1"}, {"MASTER_ADDR": "127.0.1.1"}]
)
def test_agents_of_one_host_meet_on_the_loopback_address(said: dict[str, str]) -> None:
    assert find_place(STEP | said).address == "127.0.0.1"


def test_a_container_without_slurms_commands_is_told_what_to_export(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="export MASTER_ADDR="):
        find_place({**STEP, "SLURM_STEP_NODELIST": "n[1-2]"})


def test_processes_of_one_job_agree_on_a_port_without_talking() -> None:
    job = {"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "77", "MASTER_ADDR": "a"}
    ports = {find_place({**job, "SLURM_PROCID": str(i)}).port for i in range(2)}
    other = find_place({**job, "SLURM_PROCID": "0", "SLURM_JOB_ID": "78"}).port
    assert len(ports) == 1
    assert other not in ports


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK='x'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "rank 2 of 2"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK='-1'"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "MASTER_PORT is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "0"}, "MASTER_PORT=0"),
        ({"OMPI_COMM_WORLD_RANK": "0"}, "OMPI_COMM_WORLD_SIZE=''"),
    ],
)
def test_variables_that_make_no_sense_are_named(env: dict[str, str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        find_place(env)


def test_a_rank_sees_nothing_of_the_launcher_that_started_its_agent() -> None:
    launcher = dict.fromkeys(
        ("RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK MASTER_ADDR MASTER_PORT "
         "TORCHELASTIC_RUN_ID OMP_NUM_THREADS SLURM_PROCID OMPI_COMM_WORLD_RANK PMIX_NAMESPACE "
         "ACCELERATE_MIXED_PRECISION FSDP_VERSION").split(),
        "1",
    )  # fmt: skip
    kept = {"PATH": "/bin", "NCCL_DEBUG": "WARN"}
    found = rank_environment({**launcher, **kept}, "cpu", {"NCCL_NVLS_ENABLE": "0"})
    assert found == {
        **kept,
        "NCCL_NVLS_ENABLE": "0",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }


def test_what_a_launcher_guessed_does_not_reach_the_ranks() -> None:
    # accelerate 1.15 launch without torchrun, on a CPU (utils/launch.py).
    guessed = {"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "1"}
    guessed |= {"ACCELERATE_USE_CPU": "True", "KMP_AFFINITY": "granularity=fine,compact,1,0"}
    assert rank_environment({**guessed, "KMP_BLOCKTIME": "1"}, "cuda", {}) == {
        "DS_ACCELERATOR": "cuda"
    }
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "OMP_NUM_THREADS": "1"}  # elastic agent, torch 2.13
    torchrun |= {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
    assert rank_environment(torchrun, "cuda", {}) == {"DS_ACCELERATOR": "cuda"}
    mine = {"KMP_BLOCKTIME": "0", "OMP_NUM_THREADS": "3", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
    assert rank_environment(mine, "cuda", {}) == {**mine, "DS_ACCELERATOR": "cuda"}


def test_a_rank_on_a_gpu_keeps_its_visible_devices_and_the_users_threads() -> None:
    env = {"CUDA_VISIBLE_DEVICES": "2,3", "OMP_NUM_THREADS": "4"}
    assert rank_environment(env, "cuda", {}) == {**env, "DS_ACCELERATOR": "cuda"}


def agents(*slots: tuple[str, int]) -> list[Hello]:
    return [Hello(agent=i, host=h, num_slots=n, pid=1) for i, (h, n) in enumerate(slots)]


def seats(
    world: World, *slots: tuple[str, int], gone: tuple[int, ...] = ()
) -> list[tuple[int, ...]]:
    found = place(world, agents(*slots), gone)
    assert not isinstance(found, str), found
    return [(s.agent, s.node_rank, s.first_rank, s.first_local_rank, s.num_ranks) for s in found]


def test_one_agent_holds_all_ranks_of_a_node() -> None:
    assert seats(World(ranks_per_node=2), ("a", 8)) == [(0, 0, 0, 0, 2)]


def test_agents_with_one_slot_fill_their_host_before_the_next() -> None:
    slots = [("a", 1), ("b", 1), ("a", 1), ("b", 1)]
    world = World(nodes=2, ranks_per_node=2)
    expected = [(0, 0, 0, 0, 1), (2, 0, 1, 1, 1), (1, 1, 2, 0, 1), (3, 1, 3, 1, 1)]
    assert seats(world, *slots) == expected


def test_a_smaller_world_takes_the_first_hosts() -> None:
    assert seats(World(nodes=1, ranks_per_node=2), ("a", 2), ("b", 2)) == [(0, 0, 0, 0, 2)]


def test_a_lost_agent_gives_its_place_to_the_next_host() -> None:
    world = World(nodes=2, ranks_per_node=1)
    found = seats(world, ("a", 1), ("b", 1), ("c", 1), gone=(1,))
    assert found == [(0, 0, 0, 0, 1), (2, 1, 1, 0, 1)]


def test_a_world_that_does_not_fit_says_what_is_there() -> None:
    reason = place(World(nodes=2, ranks_per_node=2), agents(("a", 2), ("b", 1)))
    assert reason == (
        "world 2x2 needs 2 host(s) with 2 rank(s) each; present are a: 2, b: 1"
    )  # fmt: skip
