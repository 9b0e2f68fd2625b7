"""A rank offers what it can both send and take by, and ends its ways with itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from eastwest.clock import SystemClock
from eastwest.config import KVConfig
from eastwest.layout import ParallelLayout
from eastwest.messages import RankEndpoint, Transport
from eastwest.testing.engine import SimulatedEngine, simulated_group
from kv_transfer.grpc_delivery import GrpcTransport
from kv_transfer.ranks import Fence
from runtime.rank import Rank, Ways
from tests.rank_groups import local_group


class OpenFence:
    """A `Fence` that nobody is behind."""

    def open(self, transfer_id: str) -> None:
        pass

    def close(self, transfer_id: str) -> bool:
        return True


@dataclass
class RecordingTarget:
    """A `Target` that remembers its end."""

    descriptor: str
    fence: Fence = field(default_factory=OpenFence)
    shuts: int = 0

    def shut(self) -> None:
        self.shuts += 1


class RecordingProvider(GrpcTransport):
    """A `TransportProvider` that remembers its end."""

    closes = 0

    def close(self) -> None:
        self.closes += 1


async def test_a_rank_that_ends_closes_its_ways() -> None:
    provider, target = RecordingProvider(), RecordingTarget("here")
    ways = Ways({Transport.GRPC: provider}, {Transport.NIXL: target})
    rank = Rank(SimulatedEngine(16, 8), ways, 1, KVConfig(), SystemClock())
    await rank.close()
    assert (provider.closes, target.shuts) == (1, 1)


async def test_each_rank_is_found_in_a_way_of_its_own_for_each_transport() -> None:
    targets = [
        {t: RecordingTarget(f"{t} {rank}") for t in (Transport.SHARED_MEMORY, Transport.NIXL)}
        for rank in range(2)
    ]
    # Rank 1 cannot send by shared memory.
    providers = [
        {t: GrpcTransport() for t in Transport},
        {t: GrpcTransport() for t in (Transport.NIXL, Transport.GRPC)},
    ]
    engines = simulated_group(ParallelLayout(tp=2), 16, 8)
    local = await local_group(
        engines, ways=lambda engine: Ways(providers[engine.rank], targets[engine.rank])
    )
    group = local.group
    assert group.transports == (Transport.NIXL, Transport.GRPC)
    for transport, memories in (
        (Transport.NIXL, ["nixl 0", "nixl 1"]),
        (Transport.SHARED_MEMORY, ["shared_memory 0", "shared_memory 1"]),
        (Transport.GRPC, ["", ""]),
    ):
        endpoints: tuple[RankEndpoint, ...] = group.endpoints(0, transport)
        assert [(e.rank, e.memory) for e in endpoints] == list(enumerate(memories))
    await group.close()
    await local.stop_servers()
