"""Two processes of one machine: what their collectives take, and KV from one to the other.

The second process is rank 1 of a group of two, and then a rank that receives KV. Collectives are
those of the engine's groups; KV moves by the transports of `kv_transfer`, read from one paged KV,
checked, and in the blocks of another when a push counts as done.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import torch

from deploy.calibrate.repeated import Progress, timed, typical_s
from eastwest.clock import Clock, SystemClock, seconds
from eastwest.config import KVConfig
from eastwest.errors import InvalidArgument, Unavailable
from eastwest.heap import keep_freed_memory
from eastwest.layout import KVSpec, ParallelLayout, shard_of
from eastwest.messages import RankEndpoint, Ticket, Transport
from eastwest.paged_kv import PagedKV, pool_bytes
from engine.comm import Group
from engine.process_groups import connect, join_rendezvous, open_rendezvous
from kv_transfer.frame_codec import message_bytes
from kv_transfer.grpc_delivery import GrpcTransport
from kv_transfer.host_identity import host_identity
from kv_transfer.negotiate import allowed_transports
from kv_transfer.push_server import PushServer
from kv_transfer.ranks import Arrived, Opening
from kv_transfer.receiver import Receiver
from kv_transfer.sender import KvSender
from kv_transfer.shared_memory import SharedMemory, SharedPool
from kv_transfer.transport import TransportProvider

_HOST = "127.0.0.1"
_LIMIT_S = 60.0
_SMALL_BYTES = 4 << 10
# Small collectives to each large one.
_SMALL_ONES = 20
_PAIR = ParallelLayout(tp=2)
_ONE = ParallelLayout()


@dataclass(frozen=True, slots=True)
class LinkPlan:
    """What to move. rounds: how often each kind. large_bytes: of the large collective, and about
    those of the large push."""

    spec: KVSpec
    block_tokens: int
    kv: KVConfig
    rounds: int
    large_bytes: int

    @property
    def num_blocks(self) -> int:
        """Of the large push."""
        return max(2, self.large_bytes // self.bytes_of(1))

    def bytes_of(self, num_blocks: int) -> int:
        return pool_bytes(self.spec, shard_of(self.spec, _ONE, 0), num_blocks, self.block_tokens)

    @property
    def transports(self) -> tuple[Transport, ...]:
        """gRPC, which goes anywhere, and shared memory where configuration and host allow it."""
        shared = Transport.SHARED_MEMORY in allowed_transports(self.kv) and host_identity()
        return (Transport.GRPC, Transport.SHARED_MEMORY) if shared else (Transport.GRPC,)


@dataclass(frozen=True, slots=True)
class Link:
    """latency_s: of the smallest message. bytes_per_s: of a large one, latency aside."""

    latency_s: float
    bytes_per_s: float

    @staticmethod
    def between(
        small_s: float, large_s: float, large_bytes: float, small_bytes: float, what: str
    ) -> Link:
        """Of a small and a large message. Raises `InvalidArgument` where the large one took no
        longer, which no link does."""
        if not 0 < small_s < large_s:
            raise InvalidArgument(
                f"{what}: {small_bytes:.0f} bytes took {small_s:.3g} s, and {large_bytes:.0f} took "
                f"{large_s:.3g} s; the machine is too busy to be measured"
            )
        return Link(small_s, (large_bytes - small_bytes) / (large_s - small_s))


@dataclass(frozen=True, slots=True)
class Links:
    """collective: an all-reduce between two ranks; bytes as each rank has them. pushes: of KV,
    by transport."""

    collective: Link
    pushes: Mapping[Transport, Link]


def measure_links(plan: LinkPlan, clock: Clock, progress: Progress) -> Links:
    """Starts the second process and ends it. Raises `Unavailable` where that dies."""
    keep_freed_memory()
    context = multiprocessing.get_context("spawn")
    commands, theirs = context.Pipe()
    peer = context.Process(target=_peer, args=(theirs, plan), daemon=True)
    peer.start()
    # The parent's copy, so that a process that dies is noticed at the other end.
    theirs.close()
    try:
        store, address = open_rendezvous(_HOST)
        commands.send(address)
        comm = connect(store, _PAIR, 0, torch.device("cpu"))
        collective = _collective(comm.tensor, plan, clock, progress)
        pushes = asyncio.run(_pushes(commands, plan, clock, progress))
        commands.send(None)
    except (EOFError, BrokenPipeError, ConnectionResetError) as error:
        raise Unavailable("the second process of the calibration has died") from error
    finally:
        commands.close()
        peer.join(timeout=_LIMIT_S)
        if peer.is_alive():
            peer.kill()
    return Links(collective, pushes)


# Collectives: both processes run the same, and the first one's times count.


def _collective(group: Group, plan: LinkPlan, clock: Clock, progress: Progress) -> Link:
    small = torch.ones(_SMALL_BYTES // 4)
    large = torch.ones(plan.large_bytes // 4)
    small_s: list[float] = []
    large_s: list[float] = []
    for round_ in range(plan.rounds + 1):
        taken_s = [timed(lambda: group.all_reduce(small), clock) for _ in range(_SMALL_ONES)]
        took_s = timed(lambda: group.all_reduce(large), clock)
        if round_:  # the first one warms up
            small_s += taken_s
            large_s.append(took_s)
        for tensor in (small, large):  # each reduction doubles it
            tensor.fill_(1.0)
        progress(0.3 * (round_ + 1) / (plan.rounds + 1))
    return Link.between(
        typical_s(small_s), typical_s(large_s), large.nbytes, small.nbytes, "an all-reduce"
    )


# KV: this process sends.


async def _pushes(
    commands: Connection, plan: LinkPlan, clock: Clock, progress: Progress
) -> dict[Transport, Link]:
    endpoint: RankEndpoint = await asyncio.to_thread(commands.recv)
    providers: dict[Transport, TransportProvider] = {
        Transport.GRPC: GrpcTransport(),
        Transport.SHARED_MEMORY: SharedMemory(),
    }
    memory = np.random.default_rng(1).integers(0, 256, plan.bytes_of(plan.num_blocks), np.uint8)
    shard = shard_of(plan.spec, _ONE, 0)
    kv = PagedKV(memory.data, plan.spec, shard, plan.num_blocks, plan.block_tokens)
    sender = KvSender(kv, _ONE, 0, providers, plan.kv, clock, fingerprint="calibrate")
    sizes = (1, plan.num_blocks)
    taken: dict[tuple[Transport, int], list[float]] = {
        (transport, size): [] for transport in plan.transports for size in sizes
    }
    try:
        for round_ in range(plan.rounds + 1):
            for (transport, size), times in taken.items():
                name = f"{round_}-{transport}-{size}"
                taken_s = await _push(
                    commands, sender, _ticket(plan, endpoint, name, transport, size), clock
                )
                if round_:  # the first one warms up
                    times.append(taken_s)
            progress(0.3 + 0.7 * (round_ + 1) / (plan.rounds + 1))
    finally:
        await sender.close()
    large, small = plan.bytes_of(plan.num_blocks), plan.bytes_of(1)
    return {
        transport: Link.between(
            typical_s(taken[transport, 1]),
            typical_s(taken[transport, plan.num_blocks]),
            large,
            small,
            f"a push over {transport}",
        )
        for transport in plan.transports
    }


async def _push(commands: Connection, sender: KvSender, ticket: Ticket, clock: Clock) -> float:
    """Seconds from its beginning to all of it checked by the receiver."""
    commands.send(ticket)
    await asyncio.to_thread(commands.recv)
    begun_ns = clock.now_ns()
    sender.begin(ticket, range(ticket.num_blocks), _LIMIT_S)
    sender.ready(ticket.transfer_id, ticket.num_tokens)
    await sender.drain(ticket.transfer_id)
    taken_s = seconds(clock.now_ns() - begun_ns)
    await sender.stop(ticket.transfer_id)
    commands.send(None)
    return taken_s


def _ticket(
    plan: LinkPlan, endpoint: RankEndpoint, transfer_id: str, transport: Transport, blocks: int
) -> Ticket:
    return Ticket(
        transfer_id=transfer_id,
        worker_id="calibrate",
        epoch=1,
        address=endpoint.address,
        endpoints=(endpoint,),
        layout=_ONE,
        kv=plan.spec,
        fingerprint="calibrate",
        block_tokens=plan.block_tokens,
        first_block=0,
        num_blocks=blocks,
        num_tokens=blocks * plan.block_tokens,
        lease_s=_LIMIT_S,
        transport=transport,
        blocks=tuple(range(blocks)),
    )


# The second process.


def _peer(commands: Connection, plan: LinkPlan) -> None:
    """Ends when the first process says so, or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        store = join_rendezvous(commands.recv())
        comm = connect(store, _PAIR, 1, torch.device("cpu"))
        with suppress(InvalidArgument):  # the first process judges
            _collective(comm.tensor, plan, SystemClock(), lambda _: None)
        asyncio.run(_receive(commands, plan))


class _Events:
    def on_progress(self, rank: int, transfer_id: str) -> None:
        pass

    def on_arrived(self, rank: int, transfer_id: str, arrived: Arrived) -> None:
        pass


async def _receive(commands: Connection, plan: LinkPlan) -> None:
    memory = SharedPool(plan.bytes_of(plan.num_blocks))
    shard = shard_of(plan.spec, _ONE, 0)
    kv = PagedKV(memory.buffer, plan.spec, shard, plan.num_blocks, plan.block_tokens)
    receiver = Receiver(kv, _Events(), rank=0, epoch=1)
    size = message_bytes(plan.kv.frame_bytes)
    server = PushServer(receiver, SystemClock(), idle_s=_LIMIT_S, message_bytes=size)
    port = await server.start(_HOST)
    commands.send(RankEndpoint(0, f"{_HOST}:{port}", memory.descriptor))
    while (ticket := await asyncio.to_thread(commands.recv)) is not None:
        memory.fence.open(ticket.transfer_id)
        receiver.open(
            Opening(
                ticket.transfer_id, ticket.blocks, 0, ticket.num_blocks, ticket.num_tokens,
                ticket.transport,
            )
        )  # fmt: skip
        commands.send(None)
        await asyncio.to_thread(commands.recv)
        receiver.close(ticket.transfer_id, None)
        memory.fence.close(ticket.transfer_id)
