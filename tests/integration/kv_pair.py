"""A sending and a receiving replica, each of any layout, joined by real gRPC on loopback; no
engine, no router.

Every pair ends by asserting that nothing is left: no owner of blocks, no open transfer, no task.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import grpc
import grpc.aio
import numpy as np

from eastwest.blocks import blocks_for
from eastwest.clock import SystemClock, ns
from eastwest.config import KVConfig
from eastwest.layout import KVSpec, ParallelLayout, shard_of
from eastwest.messages import RankEndpoint, Ticket, Transport
from eastwest.rpc import server_options
from eastwest.testing.kv_memory import ArrayKVMemory
from eastwest.types import SampledToken
from kv_transfer.convert import convert
from kv_transfer.frame_codec import message_bytes
from kv_transfer.group_push import GroupPush, GroupSender
from kv_transfer.grpc_delivery import GrpcTransport
from kv_transfer.ledger import Ledger, Owner, OwnerKind
from kv_transfer.push import FrameTap, pass_through
from kv_transfer.ranks import Arrived
from kv_transfer.receiver import Receiver
from kv_transfer.sender import KvSender
from kv_transfer.service import KvTransferService
from kv_transfer.transfers import Transfers, TransferStats
from kv_transfer.transport import TransportProvider

SPEC = KVSpec(num_layers=4, num_kv_heads=2, key_dim=8, value_dim=8, dtype="float32")
BLOCK_TOKENS = 16
NUM_TOKENS = 90
NUM_BLOCKS = 32
EPOCH = 3
LEASE_S = 30.0
TOKEN = SampledToken(11)
WAIT_S = 20.0
# The smallest frames: one layer of four blocks.
CONFIG = KVConfig(block_tokens=BLOCK_TOKENS, frame_bytes=1 << 13)
ONE = ParallelLayout()


class MovableClock(SystemClock):
    """The machine's clock, `ahead_ns` later."""

    ahead_ns = 0

    def now_ns(self) -> int:
        return super().now_ns() + self.ahead_ns


@dataclass(frozen=True)
class Side:
    """How one replica keeps KV. A sequence lies in blocks in no order, in the last group."""

    layout: ParallelLayout = ONE
    kv: KVSpec = SPEC
    block_tokens: int = BLOCK_TOKENS

    @property
    def group(self) -> int:
        return self.layout.dp - 1

    @property
    def blocks(self) -> tuple[int, ...]:
        """Of one sequence, in one rank's count: some neighbours, some not."""
        count = blocks_for(NUM_TOKENS, self.block_tokens)
        order = [*range(7, 7 + count // 2), *range(0, 7), *range(7 + count // 2, 7 + count)]
        return tuple(order[:count])

    @property
    def num_blocks(self) -> int:
        return max(NUM_BLOCKS, 8 + blocks_for(NUM_TOKENS, self.block_tokens))

    @property
    def replica_blocks(self) -> tuple[int, ...]:
        return tuple(self.group * self.num_blocks + block for block in self.blocks)

    def memory(self, rank: int) -> ArrayKVMemory:
        """Zeros, in the shape of one rank."""
        shard = shard_of(self.kv, self.layout, rank)
        return ArrayKVMemory(self.kv, shard, self.num_blocks, self.block_tokens)

    def fill(self, whole: ArrayKVMemory, rank: int, first: int) -> ArrayKVMemory:
        """What a rank holds once tokens from `first` on of the sequence are there."""
        memory = self.memory(rank)
        layers, heads = memory.shard.layers, memory.shard.heads
        tokens = range(first, NUM_TOKENS)
        if tokens:
            run = whole.read(range(whole.num_blocks), layers, heads, tokens)
            shape = (len(layers), len(heads), len(tokens))
            memory.write(
                self.blocks, layers, heads, convert(run, whole.spec, self.kv, shape), tokens
            )
        return memory


def a_sequence(kv: KVSpec, seed: int = 1) -> ArrayKVMemory:
    """All of a sequence's KV in one block: finite values of many sizes."""
    memory = ArrayKVMemory(kv, shard_of(kv, ONE, 0), 1, NUM_TOKENS)
    rng = np.random.default_rng(seed)
    plain = replace(kv, dtype="float32")
    count = plain.bytes_per_token * NUM_TOKENS // 4
    values = rng.standard_normal(count, np.float32) * np.exp(rng.standard_normal(count, np.float32))
    shape = (kv.num_layers, kv.num_kv_heads, NUM_TOKENS)
    run = convert(values.tobytes(), plain, kv, shape)
    memory.write([0], memory.shard.layers, memory.shard.heads, run)
    return memory


class ReceivingReplica:
    """The ranks of a decode worker, as far as KV is concerned. Is the `TransferOwner`."""

    def __init__(self, side: Side, *, idle_s: float, frame_bytes: int) -> None:
        self.side = side
        self.clock = MovableClock()
        self.ledger = Ledger()
        self.progressed = asyncio.Event()
        self.committed: dict[str, TransferStats] = {}
        self.aborted: list[str] = []
        self.memories = [side.memory(rank) for rank in range(side.layout.world_size)]
        self.receivers = [
            Receiver(memory, self, rank=rank, epoch=EPOCH)
            for rank, memory in enumerate(self.memories)
        ]
        self.transfers = Transfers(
            self.receivers,
            side.layout,
            self.ledger,
            self,
            self.clock,
            epoch=EPOCH,
            lease_ns=ns(LEASE_S),
            blocks_per_group=side.num_blocks,
        )
        self.servers: dict[int, grpc.aio.Server] = {}
        self.addresses: dict[int, str] = {}
        self._idle_s = idle_s
        self._frame_bytes = frame_bytes

    async def start(self) -> None:
        for rank in range(self.side.layout.world_size):
            await self.listen(rank, "127.0.0.1:0")

    async def listen(self, rank: int, address: str) -> None:
        server = grpc.aio.server(options=server_options(message_bytes(self._frame_bytes)))
        commits = self.transfers if rank == self.side.layout.leader else None
        service = KvTransferService(self.receivers[rank], commits, self.clock, idle_s=self._idle_s)
        service.add_to(server)
        self.addresses[rank] = f"127.0.0.1:{server.add_insecure_port(address)}"
        self.servers[rank] = server
        await server.start()

    async def stop(self) -> None:
        for server in self.servers.values():
            await server.stop(None)

    async def break_connections(self, rank: int) -> None:
        """Cut every connection of a rank; new ones are taken at the same address."""
        await self.servers[rank].stop(None)
        await self.listen(rank, self.addresses[rank])

    @property
    def address(self) -> str:
        """The leader's."""
        return self.addresses[self.side.layout.leader]

    def reserve(self, transfer_id: str, first_block: int) -> Ticket:
        """Room on every rank of the group for one transfer."""
        side, layout = self.side, self.side.layout
        ranks = layout.ranks_of_group(side.group)
        owner = Owner(OwnerKind.RESERVATION, transfer_id)
        lease = self.clock.now_ns() + ns(LEASE_S)
        self.ledger.open(owner, side.replica_blocks, lease_until_ns=lease)
        self.transfers.open(
            transfer_id,
            owner,
            group=side.group,
            blocks=side.replica_blocks,
            first_block=first_block,
            num_blocks=len(side.blocks),
            num_tokens=NUM_TOKENS,
            transport=Transport.GRPC,
            source="p0",
        )
        return Ticket(
            transfer_id=transfer_id,
            worker_id="d0",
            epoch=EPOCH,
            address=self.address,
            endpoints=tuple(RankEndpoint(i, self.addresses[r]) for i, r in enumerate(ranks)),
            layout=layout.of_group,
            kv=side.kv,
            fingerprint="model",
            block_tokens=side.block_tokens,
            first_block=first_block,
            num_blocks=len(side.blocks),
            num_tokens=NUM_TOKENS,
            lease_s=LEASE_S,
        )

    def cancel(self, transfer_id: str) -> None:
        """Give a reservation up."""
        self.transfers.close(transfer_id)
        self.ledger.close(Owner(OwnerKind.RESERVATION, transfer_id))

    @property
    def untouched(self) -> bool:
        return not any(memory.buffer.any() for memory in self.memories)

    def on_progress(self, rank: int, transfer_id: str) -> None:
        self.transfers.on_progress(rank, transfer_id)
        self.progressed.set()

    def on_arrived(self, rank: int, transfer_id: str, arrived: Arrived) -> None:
        self.transfers.on_arrived(rank, transfer_id, arrived)
        self.progressed.set()

    def check_commit(self, transfer_id: str, first_token: SampledToken, finished: bool) -> None:
        pass

    def on_committed(
        self, transfer_id: str, first_token: SampledToken, finished: bool, stats: TransferStats
    ) -> None:
        assert first_token == TOKEN
        self.committed[transfer_id] = stats
        self.ledger.close(Owner(OwnerKind.RESERVATION, transfer_id))

    def on_aborted(self, transfer_id: str, reason: str) -> None:
        self.aborted.append(transfer_id)
        self.ledger.close(Owner(OwnerKind.RESERVATION, transfer_id))

    def check(self) -> None:
        """Nothing is left."""
        self.ledger.check_integrity()
        self.transfers.check_integrity()
        assert self.ledger.owners() == []
        assert self.transfers.transfers_open == 0
        for receiver in self.receivers:
            receiver.check_integrity()
            assert receiver.transfers_open == 0


class SendingReplica:
    """The ranks of a prefill worker, which hold one sequence."""

    def __init__(
        self,
        side: Side,
        sequence: ArrayKVMemory,
        config: KVConfig,
        taps: Callable[[int], FrameTap],
        providers: Mapping[Transport, TransportProvider],
    ) -> None:
        self.side = side
        self.sequence = sequence
        layout, clock = side.layout, SystemClock()
        self.ranks = [
            KvSender(
                side.fill(sequence, rank, 0),
                layout,
                rank,
                providers,
                config,
                clock,
                fingerprint="model",
                tap=taps(rank),
            )
            for rank in range(layout.world_size)
        ]
        self.group = GroupSender(self.ranks, layout, clock, blocks_per_group=side.num_blocks)

    async def close(self) -> None:
        await self.group.close()
        for rank in self.ranks:
            await rank.close()


@dataclass
class Pair:
    """Both replicas."""

    source: SendingReplica
    target: ReceivingReplica
    transfers: int = 0

    def reserve(self, *, first_block: int = 0) -> Ticket:
        self.transfers += 1
        return self.target.reserve(f"t{self.transfers}", first_block)

    def begin(self, ticket: Ticket, *, timeout_s: float = WAIT_S) -> GroupPush:
        deadline_ns = SystemClock().now_ns() + ns(timeout_s)
        blocks = self.source.side.replica_blocks
        return self.source.group.begin(ticket, blocks, deadline_ns=deadline_ns)

    def begin_ready(self, ticket: Ticket, *, timeout_s: float = WAIT_S) -> GroupPush:
        """A push whose KV is all computed."""
        push = self.begin(ticket, timeout_s=timeout_s)
        push.ready(NUM_TOKENS)
        return push

    def cancel(self, ticket: Ticket) -> None:
        self.target.cancel(ticket.transfer_id)

    def arrived(self, first_block: int = 0) -> bool:
        """Whether all KV from `first_block` on has arrived, in place on every rank of the group,
        and nothing else was written anywhere."""
        side = self.target.side
        first = min(first_block * side.block_tokens, NUM_TOKENS)
        in_group = side.layout.ranks_of_group(side.group)
        for rank, memory in enumerate(self.target.memories):
            expected = side.memory(rank)
            if rank in in_group:
                expected = side.fill(self.source.sequence, rank, first)
            if not (memory.buffer == expected.buffer).all():
                return False
        return True

    def payload_bytes(self, first_block: int = 0) -> int:
        """Bytes of all KV from `first_block` on: each one of each rank once."""
        side = self.target.side
        tokens = NUM_TOKENS - first_block * side.block_tokens
        shards = [self.target.memories[r].shard for r in range(side.layout.group_size)]
        return sum(side.kv.slice_bytes(tokens, len(s.layers), len(s.heads)) for s in shards)


def everywhere(tap: FrameTap) -> Callable[[int], FrameTap]:
    """The same tap for all sending ranks."""
    return lambda rank: tap


@asynccontextmanager
async def a_pair(
    src: Side | None = None,
    dst: Side | None = None,
    *,
    taps: Callable[[int], FrameTap] | None = None,
    config: KVConfig = CONFIG,
    idle_s: float = LEASE_S,
    providers: Sequence[TransportProvider] = (GrpcTransport(),),
) -> AsyncIterator[Pair]:
    """`taps` gives that of each sending rank."""
    src, dst = src or Side(), dst or Side()
    target = ReceivingReplica(dst, idle_s=idle_s, frame_bytes=config.frame_bytes)
    await target.start()
    by_name = {provider.transport: provider for provider in providers}
    source = SendingReplica(
        src, a_sequence(src.kv), config, taps or everywhere(pass_through), by_name
    )
    try:
        yield Pair(source, target)
        target.check()
    finally:
        await source.close()
        await target.stop()
    # The server's own tasks take a few turns of the loop to end.
    if left := asyncio.all_tasks() - {asyncio.current_task()}:
        _, left = await asyncio.wait(left, timeout=WAIT_S)
    assert not left, f"tasks are left: {left}"
