"""A sender and receiving ranks, joined by real gRPC on loopback; no engine, no router.

Every pair ends by asserting that nothing is left: no owner of blocks, no open transfer, no task.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio

from eastwest.clock import SystemClock, ns
from eastwest.config import KVConfig
from eastwest.layout import KVSpec, ParallelLayout, shard_of
from eastwest.messages import RankEndpoint, Ticket
from eastwest.rpc import server_options
from eastwest.testing.kv_memory import ArrayKVMemory
from eastwest.types import SampledToken
from kv_transfer.frame_codec import message_bytes
from kv_transfer.ledger import Ledger, Owner, OwnerKind
from kv_transfer.receiver import Receiver, TransferStats
from kv_transfer.sender import FrameTap, KvSender, Push, pass_through
from kv_transfer.service import KvTransferService

SPEC = KVSpec(num_layers=4, num_kv_heads=2, key_dim=8, value_dim=8, dtype="float32")
BLOCK_TOKENS = 16
NUM_BLOCKS = 32
EPOCH = 3
LEASE_S = 30.0
TOKEN = SampledToken(11)
WAIT_S = 20.0
# The smallest frames: one layer of four blocks.
CONFIG = KVConfig(block_tokens=BLOCK_TOKENS, frame_bytes=1 << 13)
SOURCE_BLOCKS = (7, 8, 9, 3, 20, 21)
TARGET_BLOCKS = (0, 14, 15, 16, 2, 30)


class MovableClock(SystemClock):
    """The machine's clock, `ahead_ns` later."""

    ahead_ns = 0

    def now_ns(self) -> int:
        return super().now_ns() + self.ahead_ns


@dataclass
class ReceivingRank:
    """One rank of a decode worker, as far as KV is concerned. Is the `TransferOwner`."""

    memory: ArrayKVMemory
    clock: MovableClock = field(default_factory=MovableClock)
    idle_s: float = LEASE_S
    frame_bytes: int = CONFIG.frame_bytes
    ledger: Ledger = field(default_factory=Ledger)
    progressed: asyncio.Event = field(default_factory=asyncio.Event)
    committed: dict[str, TransferStats] = field(default_factory=dict)
    aborted: list[str] = field(default_factory=list)

    async def start(self) -> None:
        self.receiver = Receiver(self.memory, self.ledger, self, epoch=EPOCH, lease_ns=ns(LEASE_S))
        await self.listen("127.0.0.1:0")

    async def listen(self, address: str) -> None:
        self.server = grpc.aio.server(options=server_options(message_bytes(self.frame_bytes)))
        KvTransferService(self.receiver, self.clock, idle_s=self.idle_s).add_to(self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port(address)}"
        await self.server.start()

    async def break_connections(self) -> None:
        """Cut every connection; new ones are taken at the same address."""
        await self.server.stop(None)
        await self.listen(self.address)

    def reserve(self, transfer_id: str, first_block: int) -> None:
        owner = Owner(OwnerKind.RESERVATION, transfer_id)
        lease = self.clock.now_ns() + ns(LEASE_S)
        self.ledger.open(owner, TARGET_BLOCKS, lease_until_ns=lease)
        self.receiver.open(
            transfer_id,
            owner,
            blocks=TARGET_BLOCKS,
            first_block=first_block,
            num_blocks=len(TARGET_BLOCKS),
        )

    def cancel(self, transfer_id: str) -> None:
        self.receiver.close(transfer_id)
        self.ledger.close(Owner(OwnerKind.RESERVATION, transfer_id))

    def on_progress(self, transfer_id: str) -> None:
        self.progressed.set()

    def on_committed(
        self, transfer_id: str, first_token: SampledToken, finished: bool, stats: TransferStats
    ) -> None:
        assert first_token == TOKEN
        self.committed[transfer_id] = stats
        self.ledger.close(Owner(OwnerKind.RESERVATION, transfer_id))

    def on_aborted(self, transfer_id: str, reason: str) -> None:
        self.aborted.append(transfer_id)
        self.ledger.close(Owner(OwnerKind.RESERVATION, transfer_id))

    def holds(self, source: ArrayKVMemory, first_block: int = 0) -> bool:
        """Whether blocks from `first_block` on have arrived, and nothing else was written."""
        layers, heads = self.memory.shard.layers, self.memory.shard.heads
        expected = ArrayKVMemory(SPEC, self.memory.shard, NUM_BLOCKS, BLOCK_TOKENS)
        sent = source.read(SOURCE_BLOCKS[first_block:], layers, heads)
        expected.write(TARGET_BLOCKS[first_block:], layers, heads, sent)
        everything = range(NUM_BLOCKS)
        return bool(
            self.memory.read(everything, layers, heads) == expected.read(everything, layers, heads)
        )

    @property
    def untouched(self) -> bool:
        return not self.memory.keys.any() and not self.memory.values.any()


@dataclass
class Pair:
    """A sending rank and the ranks it sends to."""

    source: ArrayKVMemory
    sender: KvSender
    layout: ParallelLayout
    ranks: list[ReceivingRank]
    transfers: int = 0

    @property
    def rank(self) -> ReceivingRank:
        return self.ranks[0]

    def reserve(self, *, first_block: int = 0) -> Ticket:
        """Room on every receiving rank for one transfer."""
        self.transfers += 1
        ticket = Ticket(
            transfer_id=f"t{self.transfers}",
            worker_id="d0",
            epoch=EPOCH,
            endpoints=tuple(RankEndpoint(i, rank.address) for i, rank in enumerate(self.ranks)),
            layout=self.layout,
            kv=SPEC,
            fingerprint="model",
            block_tokens=BLOCK_TOKENS,
            first_block=first_block,
            num_blocks=len(TARGET_BLOCKS),
            lease_s=LEASE_S,
        )
        for rank in self.ranks:
            rank.reserve(ticket.transfer_id, first_block)
        return ticket

    def begin(self, ticket: Ticket, *, timeout_s: float = WAIT_S) -> Push:
        deadline_ns = SystemClock().now_ns() + ns(timeout_s)
        return self.sender.begin(ticket, SOURCE_BLOCKS, deadline_ns=deadline_ns)

    def begin_ready(self, ticket: Ticket, *, timeout_s: float = WAIT_S) -> Push:
        """A push whose blocks are all computed."""
        push = self.begin(ticket, timeout_s=timeout_s)
        push.ready(ticket.num_blocks)
        return push

    def cancel(self, ticket: Ticket) -> None:
        """The decode worker gives the reservation up."""
        for rank in self.ranks:
            rank.cancel(ticket.transfer_id)


@asynccontextmanager
async def a_pair(
    *,
    tap: FrameTap = pass_through,
    config: KVConfig = CONFIG,
    layout: ParallelLayout | None = None,
    idle_s: float = LEASE_S,
) -> AsyncIterator[Pair]:
    """`layout` is that of the receiving side; the sender has one rank."""
    layout = layout or ParallelLayout()
    source = ArrayKVMemory(SPEC, shard_of(SPEC, ParallelLayout(), 0), NUM_BLOCKS, BLOCK_TOKENS)
    source.fill(1)
    ranks = []
    for number in range(layout.world_size):
        shard = shard_of(SPEC, layout, number)
        memory = ArrayKVMemory(SPEC, shard, NUM_BLOCKS, BLOCK_TOKENS)
        ranks.append(ReceivingRank(memory, idle_s=idle_s, frame_bytes=config.frame_bytes))
        await ranks[-1].start()
    sender = KvSender(
        source, ParallelLayout(), 0, config, SystemClock(), fingerprint="model", tap=tap
    )
    try:
        yield Pair(source, sender, layout, ranks)
        for rank in ranks:
            rank.ledger.check_integrity()
            rank.receiver.check_integrity()
            assert rank.ledger.owners() == []
            assert rank.receiver.transfers_open == 0
    finally:
        await sender.close()
        for rank in ranks:
            await rank.server.stop(None)
    # The server's own tasks take a few turns of the loop to end.
    if left := asyncio.all_tasks() - {asyncio.current_task()}:
        _, left = await asyncio.wait(left, timeout=WAIT_S)
    assert not left, f"tasks are left: {left}"
