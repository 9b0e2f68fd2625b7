"""KV that is converted on its way is read in a thread, whose end is always waited for."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import pytest

from eastwest.layout import KVSpec
from eastwest.messages import Ticket, Transport
from eastwest.paged_kv import Blocks, pool_bytes
from eastwest.ports import Buffer
from eastwest.testing.kv_memory import ArrayKVMemory
from kv_transfer.frame_codec import Header
from kv_transfer.grpc_delivery import GrpcTransport
from kv_transfer.outgoing import PushedKV
from kv_transfer.shared_memory import SharedMemory, SharedPool
from kv_transfer.transport import Delivery, TransportProvider
from tests.integration.one_sided import (
    BLOCK_TOKENS,
    NUM_BLOCKS,
    OURS,
    REGION,
    SHARD,
    SPEC,
    a_ticket,
)

WAIT_S = 20.0
FLOAT8 = replace(SPEC, dtype="float8_e4m3")


class WatchedMemory(ArrayKVMemory):
    """Paged KV that says which thread reads it, and stops there until it may go on."""

    def __init__(self) -> None:
        super().__init__(SPEC, SHARD, NUM_BLOCKS, BLOCK_TOKENS)
        self.fill(1)
        self.threads: list[threading.Thread] = []
        self.entered = threading.Event()
        self.released = threading.Event()
        self.left = threading.Event()

    def read(
        self, blocks: Blocks, layers: range, heads: range, tokens: range | None = None
    ) -> Buffer:
        self.threads.append(threading.current_thread())
        self.entered.set()
        assert self.released.wait(WAIT_S), "the event loop is held up"
        payload = super().read(blocks, layers, heads, tokens)
        self.left.set()
        return payload


@pytest.fixture(params=[Transport.GRPC, Transport.SHARED_MEMORY])
def transport(request: pytest.FixtureRequest) -> Transport:
    value: Transport = request.param
    return value


class Way:
    """From `source` into a pool of `kv`, by one transport."""

    def __init__(self, transport: Transport, kv: KVSpec) -> None:
        self.source = WatchedMemory()
        self.pool = SharedPool(pool_bytes(kv, SHARD, NUM_BLOCKS, BLOCK_TOKENS))
        self.pool.fence.open("t1")
        shared = transport is Transport.SHARED_MEMORY
        provider: TransportProvider = SharedMemory() if shared else GrpcTransport()
        self.ticket: Ticket = replace(a_ticket(self.pool.descriptor, transport), kv=kv)
        self.delivery: Delivery = provider.deliver(self.ticket, self.ticket.endpoints[0])

    def pack(self) -> asyncio.Task[object]:
        header = Header("t1", 1, 0, REGION)
        outgoing = PushedKV(self.source, OURS, self.ticket)
        return asyncio.ensure_future(self.delivery.pack(header, outgoing))

    async def close(self) -> None:
        await self.delivery.close()
        assert self.pool.fence.close("t1")


async def test_the_event_loop_runs_while_kv_is_converted(transport: Transport) -> None:
    way = Way(transport, FLOAT8)
    packing = way.pack()
    assert await asyncio.to_thread(way.source.entered.wait, WAIT_S)
    way.source.released.set()
    await packing
    assert threading.current_thread() not in way.source.threads
    await way.close()


async def test_a_push_that_is_stopped_waits_until_its_blocks_are_not_read_any_more(
    transport: Transport,
) -> None:
    way = Way(transport, FLOAT8)
    packing = way.pack()
    assert await asyncio.to_thread(way.source.entered.wait, WAIT_S)
    packing.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not packing.done()
    way.source.released.set()
    with pytest.raises(asyncio.CancelledError):
        await packing
    assert way.source.left.is_set()
    await way.close()


async def test_kv_that_stays_as_it_is_needs_no_thread(transport: Transport) -> None:
    way = Way(transport, SPEC)
    way.source.released.set()
    await way.pack()
    assert way.source.threads == [threading.current_thread()]
    await way.close()
