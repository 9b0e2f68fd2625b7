"""SIMULATED links: KV between replicas, at a bandwidth that senders share, with faults.

A transfer takes its bytes at the sender's link, one after the other, as far as the prompt did not
hide it: what is ready leaves while the rest is computed. The commit goes to the real books of the
receiver, which may refuse it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass

from eastwest.blocks import BlockHash
from eastwest.clock import Clock, seconds
from eastwest.errors import (
    DeadlineExceeded,
    ErrorCode,
    Phase,
    StoreUnavailable,
    TransferFailed,
    Unavailable,
)
from eastwest.messages import KvSource, ModelInfo, Ticket
from eastwest.ports import Buffer
from eastwest.types import SampledToken
from kv_transfer.plan import Region
from kv_transfer.ranks import Arrived, Opening, PushStats
from kv_transfer.transfers import Transfers
from runtime.holdings import Holdings


@dataclass(slots=True)
class LinkFaults:
    """Probabilities, each of one transfer."""

    lost: float = 0.0
    slow: float = 0.0
    slow_factor: float = 20.0


class Fabric:
    """What connects the replicas of a cluster: who listens where.

    bytes_per_s: of each sender. latency_s: of a commit, and of each message.
    """

    def __init__(self, rng: random.Random, bytes_per_s: float, latency_s: float) -> None:
        self.rng = rng
        self.bytes_per_s = bytes_per_s
        self.latency_s = latency_s
        self.faults = LinkFaults()
        self._listening: dict[str, Transfers] = {}
        self._lending: dict[str, tuple[Holdings, SimulatedSender]] = {}

    def listen(
        self, address: str, transfers: Transfers, holdings: Holdings, sender: SimulatedSender
    ) -> None:
        self._listening[address] = transfers
        self._lending[address] = holdings, sender

    def leave(self, address: str) -> None:
        """Nobody answers there any more. Idempotent."""
        self._listening.pop(address, None)
        self._lending.pop(address, None)

    def lender(self, address: str) -> tuple[Holdings, SimulatedSender]:
        """Who lends at an address, by which link. Raises `StoreUnavailable`."""
        if (found := self._lending.get(address)) is None:
            raise StoreUnavailable(f"nobody answers at {address}")
        return found

    def at(self, address: str) -> Transfers:
        """The books at an address. Raises `Unavailable` where nobody listens."""
        transfers = self._listening.get(address)
        if transfers is None:
            raise Unavailable(f"nobody answers at {address}", phase=Phase.TRANSFER)
        return transfers


class SimulatedReceiving:
    """Is a `ReceivingRank`: one rank that gets all of a transfer, or nothing."""

    def __init__(self) -> None:
        self._open: dict[str, Opening] = {}

    def open(self, opening: Opening) -> None:
        self._open[opening.transfer_id] = opening

    def close(self, transfer_id: str, reason: ErrorCode | None) -> Awaitable[None]:
        self._open.pop(transfer_id, None)
        closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        closed.set_result(None)
        return closed

    async def missing(self, transfer_id: str) -> list[Region]:
        return [Region(range(0, 1), range(0, 1), range(0, 1))]


class SimulatedSender:
    """In the place of a `GroupSender`, for one replica that may die (`fall`)."""

    def __init__(self, fabric: Fabric, clock: Clock) -> None:
        self._fabric = fabric
        self._clock = clock
        self._free_at_s = 0.0
        self.sent_bytes = 0

    def begin(self, ticket: Ticket, blocks: Sequence[int], *, deadline_ns: int) -> SimulatedPush:
        return SimulatedPush(self, ticket, deadline_ns)

    async def move(self, size: int, begun_s: float) -> float:
        """Take so many bytes over this replica's link; returns the seconds that it took. Those
        that could leave since `begun_s` have left."""
        fabric, loop = self._fabric, asyncio.get_running_loop()
        slow = fabric.faults.slow and fabric.rng.random() < fabric.faults.slow
        taken = size / fabric.bytes_per_s * (fabric.faults.slow_factor if slow else 1.0)
        start = max(begun_s, self._free_at_s)
        self._free_at_s = start + taken
        # The last layer of the last chunk leaves when it is computed, which is now.
        ends = max(self._free_at_s, loop.time() + fabric.latency_s)
        await asyncio.sleep(max(0.0, ends - loop.time()))
        self.sent_bytes += size
        return taken

    @property
    def fabric(self) -> Fabric:
        return self._fabric

    @property
    def clock(self) -> Clock:
        return self._clock


class SimulatedPush:
    """Is a `Target`."""

    def __init__(self, sender: SimulatedSender, ticket: Ticket, deadline_ns: int) -> None:
        self._sender = sender
        self._ticket = ticket
        self._deadline_ns = deadline_ns
        self._begun_s = asyncio.get_running_loop().time()

    def ready(self, tokens: int) -> None:
        """What is ready leaves; when, `finish` works out."""

    async def finish(self, first_token: SampledToken, *, finished: bool) -> PushStats:
        ticket, fabric = self._ticket, self._sender.fabric
        tokens = ticket.num_tokens - ticket.first_block * ticket.block_tokens
        size = tokens * ticket.kv.bytes_per_token
        left_s = seconds(self._deadline_ns - self._sender.clock.now_ns())
        try:
            async with asyncio.timeout(max(left_s, 0.0)):
                taken = await self._sender.move(size, self._begun_s)
                if fabric.faults.lost and fabric.rng.random() < fabric.faults.lost:
                    raise TransferFailed("SIMULATED: KV was lost", phase=Phase.TRANSFER)
                books = fabric.at(ticket.address)
                books.on_arrived(0, ticket.transfer_id, Arrived(size, 1, round(taken * 1e9), 0))
                await books.commit(ticket.transfer_id, ticket.epoch, first_token, finished=finished)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed", phase=Phase.TRANSFER) from None
        return PushStats(size, 1, 0)

    async def abort(self) -> None:
        ticket, fabric = self._ticket, self._sender.fabric
        await asyncio.sleep(fabric.latency_s)
        try:
            await fabric.at(ticket.address).abort(ticket.transfer_id, ticket.epoch, "given up")
        except Unavailable:
            return
        except Exception as error:
            if getattr(error, "code", None) is not ErrorCode.STALE_EPOCH:
                raise


class SimulatedLenders:
    """Is `eastwest.ports.Lenders`: what others hold comes over their links, as their pushes do."""

    def __init__(self, fabric: Fabric, model: ModelInfo, block_tokens: int) -> None:
        self._fabric = fabric
        self._block_bytes = model.kv.bytes_per_token * block_tokens

    def blocks_of(self, lender: KvSource) -> SimulatedLender:
        return SimulatedLender(self._fabric, lender.address, self._block_bytes)


class SimulatedLender:
    """Is a `BlockSource`. What is read stays where it is meanwhile, as in a deployment."""

    def __init__(self, fabric: Fabric, address: str, block_bytes: int) -> None:
        self._fabric = fabric
        self._address = address
        self._block_bytes = block_bytes

    async def match(self, hashes: Sequence[BlockHash]) -> int:
        await asyncio.sleep(self._fabric.latency_s)
        holdings, _ = self._fabric.lender(self._address)
        return holdings.pool.match(hashes)

    async def read(self, hashes: Sequence[BlockHash]) -> list[Buffer]:
        fabric = self._fabric
        holdings, sender = fabric.lender(self._address)
        found = holdings.pool.match(hashes)
        await sender.move(found * self._block_bytes, asyncio.get_running_loop().time())
        fabric.lender(self._address)
        if fabric.faults.lost and fabric.rng.random() < fabric.faults.lost:
            raise StoreUnavailable("SIMULATED: KV was lost")
        return [b""] * found

    async def touch(self, hashes: Sequence[BlockHash]) -> None:
        """It was used by being read."""
