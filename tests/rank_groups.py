"""A replica's ranks in one process: real links over gRPC on loopback, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from eastwest.clock import SystemClock
from eastwest.config import KVConfig
from eastwest.ports import Engine
from kv_transfer.push import FrameTap, pass_through
from runtime.rank import Rank, Ways
from runtime.rank_group import RankGroup, form_group
from runtime.rank_service import Place, RankServer

SILENCE_S = 20.0


@dataclass
class LocalGroup:
    """A group and the servers of its other ranks, by rank."""

    group: RankGroup
    servers: dict[int, RankServer] = field(default_factory=dict)

    async def stop_servers(self) -> None:
        for server in self.servers.values():
            await server.stop()


async def local_group(
    engines: Sequence[Engine],
    *,
    worker_id: str = "w",
    epoch: int = 1,
    config: KVConfig | None = None,
    tap: FrameTap = pass_through,
    ways: Callable[[Engine], Ways] = lambda _: Ways(),
    silence_s: float = SILENCE_S,
) -> LocalGroup:
    """All ranks of a replica, `engines` being in their order. Everything is ended by closing the
    group and then the servers."""
    kv_config = config or KVConfig()
    layout = engines[0].layout

    async def build(place: Place) -> Rank:
        engine = engines[place.rank]
        return Rank(engine, ways(engine), place.epoch, kv_config, SystemClock(), tap=tap)

    servers, addresses = {}, []
    for rank in range(layout.world_size):
        if rank != layout.leader:
            servers[rank] = RankServer("127.0.0.1", build, silence_s=silence_s)
            addresses.append(await servers[rank].start())
    place = Place(worker_id, epoch, layout.leader, layout, "")
    try:
        group = await form_group(build(place), addresses, place, silence_s=silence_s)
    except BaseException:
        for server in servers.values():
            await server.stop()
        raise
    return LocalGroup(group, servers)
