"""Which agents hold which ranks of a world. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from andromeda_scale.launch.messages import Hello, Seat
from andromeda_scale.suite.world import World


def hosts(agents: Sequence[Hello], gone: Collection[int] = ()) -> dict[str, list[Hello]]:
    """The agents of each host, hosts in the order of their first agent."""
    by_host: dict[str, list[Hello]] = {}
    for hello in sorted(agents, key=lambda h: h.agent):
        if hello.agent not in gone:
            by_host.setdefault(hello.host, []).append(hello)
    return by_host


def place(
    world: World, agents: Sequence[Hello], gone: Collection[int] = ()
) -> tuple[Seat, ...] | str:
    """Seats for a world on the first hosts that have room, or the reason why there are none.

    Ranks are numbered host by host, so that a rank's neighbours are on its own node.
    """
    by_host = hosts(agents, gone)
    fitting = [
        members
        for members in by_host.values()
        if sum(m.num_slots for m in members) >= world.ranks_per_node
    ]
    if len(fitting) < world.nodes:
        present = ", ".join(
            f"{host}: {sum(m.num_slots for m in members)}" for host, members in by_host.items()
        )
        return (
            f"world {world} needs {world.nodes} host(s) with {world.ranks_per_node} rank(s) each; "
            f"present are {present or 'none'}"
        )
    seats: list[Seat] = []
    rank = 0
    for node_rank, members in enumerate(fitting[: world.nodes]):
        local_rank = 0
        for member in members:
            num_ranks = min(member.num_slots, world.ranks_per_node - local_rank)
            if num_ranks == 0:
                break
            seats.append(
                Seat(
                    agent=member.agent,
                    host=member.host,
                    node_rank=node_rank,
                    first_rank=rank,
                    first_local_rank=local_rank,
                    num_ranks=num_ranks,
                )
            )
            rank += num_ranks
            local_rank += num_ranks
    return tuple(seats)
