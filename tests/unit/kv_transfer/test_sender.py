"""A sender closes the ways to receiving ranks that it opened, also where it cannot begin."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from eastwest.clock import SystemClock
from eastwest.config import KVConfig
from eastwest.errors import TransferFailed
from eastwest.layout import KVSpec, ParallelLayout, shard_of
from eastwest.messages import RankEndpoint, Ticket, Transport
from eastwest.testing.kv_memory import ArrayKVMemory
from kv_transfer.grpc_delivery import GrpcDelivery
from kv_transfer.sender import KvSender

SPEC = KVSpec(num_layers=4, num_kv_heads=2, key_dim=8, value_dim=8, dtype="float32")
TICKET = Ticket(
    transfer_id="t1",
    worker_id="d0",
    epoch=1,
    address="127.0.0.1:1",
    endpoints=tuple(RankEndpoint(rank, f"127.0.0.1:{rank + 1}") for rank in range(4)),
    layout=ParallelLayout(pp=4),
    kv=SPEC,
    fingerprint="model",
    block_tokens=16,
    first_block=0,
    num_blocks=2,
    num_tokens=32,
    lease_s=30.0,
)


class CountedDelivery(GrpcDelivery):
    closed = 0

    async def close(self) -> None:
        self.closed += 1


@dataclass
class BreakingProvider:
    """A `TransportProvider` that has no way to rank `broken`."""

    broken: int
    transport: Transport = Transport.GRPC
    deliveries: list[CountedDelivery] = field(default_factory=list)

    def deliver(self, ticket: Ticket, endpoint: RankEndpoint) -> CountedDelivery:
        if endpoint.rank == self.broken:
            raise TransferFailed(f"no way to rank {endpoint.rank}")
        self.deliveries.append(CountedDelivery())
        return self.deliveries[-1]

    def close(self) -> None:
        pass


@pytest.mark.parametrize("broken", range(4))
async def test_a_push_that_cannot_begin_leaves_no_way_open(broken: int) -> None:
    provider = BreakingProvider(broken)
    memory = ArrayKVMemory(SPEC, shard_of(SPEC, ParallelLayout(), 0), 8, 16)
    sender = KvSender(
        memory,
        ParallelLayout(),
        0,
        {Transport.GRPC: provider},
        KVConfig(),
        SystemClock(),
        fingerprint="model",
    )
    sender.begin(TICKET, (0, 1), 10.0)
    with pytest.raises(TransferFailed, match=f"no way to rank {broken}"):
        await sender.drain("t1")
    await sender.stop("t1")
    assert [delivery.closed for delivery in provider.deliveries] == [1] * broken
    sender.begin(replace(TICKET, transfer_id="t2"), (0, 1), 10.0)
    await sender.close()
    assert [delivery.closed for delivery in provider.deliveries] == [1] * (2 * broken)
