"""KV written straight into the reserved blocks of a rank by NIXL: RDMA where there is such a
network, else UCX over TCP or shared memory.

This is the sender's side, with its half of the fence that `kv_transfer.nixl_pool` describes.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from xxhash import xxh3_64

from eastwest.clock import Clock, ns
from eastwest.errors import LeaseExpired, Phase, TransferFailed
from eastwest.in_thread import in_thread
from eastwest.layout import shard_of
from eastwest.messages import RankEndpoint, Ticket, Transport
from eastwest.paged_kv import block_runs, pool_bytes
from kv_transfer.frame_codec import Header, Message, checksum_seed, encode_in_place
from kv_transfer.nixl_agent import Agent, places
from kv_transfer.nixl_pool import (
    BEGIN,
    END,
    PERMISSION_S,
    ROW_BYTES,
    TABLE_BYTES,
    Bytes,
    row_name,
)
from kv_transfer.plan import Region, tokens_of
from kv_transfer.transport import Outgoing

# Receivers that no transfer goes to are kept for the next one, up to so many; staging likewise.
RECEIVERS_MAX = 64
STAGING_MAX = 16
SWEEP_S = 0.01
# A wait for NIXL gives way to the rest of the event loop so often before it lets time pass.
_TURNS = 100
_TURN_S = 0.0005
_DESCRIPTOR = re.compile(r"nixl1:(\d{1,20}):(\d{1,20}):(\d{1,20}):([A-Za-z0-9+/=]+)")


@dataclass(slots=True)
class _Receiver:
    """Another agent, by its name here. users: deliveries to it that have not ended. failed: it
    could not be reached; the connection is made anew once nobody uses it."""

    name: str
    users: int = 0
    failed: bool = False


class Nixl:
    """The `TransportProvider` of one sender. Used on one event loop. Raises `TransferFailed` where
    there is no NIXL."""

    transport = Transport.NIXL

    def __init__(self, clock: Clock) -> None:
        self._agent = Agent()
        self._clock = clock
        self._receivers: dict[str, _Receiver] = {}  # by descriptor; the last one used comes last
        self._free: list[Staging] = []  # of deliveries that have ended
        self._ending: list[tuple[_Link, bytes]] = []
        self._sweeping: asyncio.TimerHandle | None = None

    def deliver(self, ticket: Ticket, endpoint: RankEndpoint) -> NixlDelivery:
        """See `TransportProvider.deliver`."""
        descriptor = endpoint.memory
        parts = _DESCRIPTOR.fullmatch(descriptor)
        if parts is None:
            raise TransferFailed(
                f"rank {endpoint.rank} of {ticket.worker_id} names no NIXL agent; allowed: what a "
                f"rank with NIXL says of itself",
                phase=Phase.TRANSFER,
            )
        memory, size, table = (int(part) for part in parts.groups()[:3])
        where = Placement(ticket, endpoint.rank, size)
        self._forget_idle(RECEIVERS_MAX - 1)
        receiver = self._receivers.pop(descriptor, None)
        if receiver is None:
            receiver = _Receiver(self._agent.add(_decoded(parts[4])))
        self._receivers[descriptor] = receiver
        receiver.users += 1
        staging = self._free.pop() if self._free else Staging(self._agent)
        link = _Link(self._agent, receiver, staging, memory, table)
        return NixlDelivery(link, ticket, where, self._clock, self._end)

    def close(self) -> None:
        """See `TransportProvider.close`."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        for receiver in self._receivers.values():
            self._remove(receiver)
        self._receivers.clear()
        self._ending.clear()
        self._free.clear()
        self._agent.close()

    def _end(self, link: _Link, note: bytes) -> None:
        """A delivery has ended; its receiver hears `note`, unless empty, when nothing moves."""
        self._ending.append((link, note))
        self._sweep()

    def _sweep(self) -> None:
        """End what does not move any more, now and later. Nobody waits for it: it reads staging
        memory only, and a peer that was suspended may take for ever."""
        self._sweeping = None
        ending, self._ending = self._ending, []
        for link, note in ending:
            with contextlib.suppress(TransferFailed):
                if not link.still():
                    self._ending.append((link, note))
                    continue
                if note:
                    self._agent.tell(link.receiver.name, note)
            link.receiver.users -= 1
            if len(self._free) < STAGING_MAX:
                self._free.append(link.staging)
            else:
                link.staging.close()
        self._forget_idle(RECEIVERS_MAX)
        if self._ending:
            self._sweeping = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _forget_idle(self, kept: int) -> None:
        """Receivers that failed, and those beyond `kept`, while no delivery goes to them."""
        surplus = len(self._receivers) - kept
        for descriptor, receiver in list(self._receivers.items()):
            if not receiver.users and (receiver.failed or surplus > 0):
                surplus -= 1
                self._remove(self._receivers.pop(descriptor))

    def _remove(self, receiver: _Receiver) -> None:
        # One whose process has ended may be unknown already.
        with contextlib.suppress(TransferFailed):
            self._agent.remove(receiver.name)


class NixlDelivery:
    """Is a `Delivery`: writes a region from a staging buffer, while the transfer is open.

    end: takes the link once the delivery has ended, and what the receiver is to be told.
    """

    def __init__(
        self,
        link: _Link,
        ticket: Ticket,
        where: Placement,
        clock: Clock,
        end: Callable[[_Link, bytes], None],
    ) -> None:
        self._link: _Link | None = link
        self._transfer_id = ticket.transfer_id.encode()
        self._row_text = row_name(ticket.transfer_id)
        self._where = where
        self._clock = clock
        self._end = end
        self._row: int | None = None  # known from the announcement on, until the end is told

    async def pack(self, header: Header, outgoing: Outgoing) -> Message:
        """See `Delivery.pack`."""
        header, link = replace(header, in_place=True), self._link
        assert link is not None, "the delivery is closed"
        region = header.region
        pieces = self._where.pieces(region)
        if outgoing.converts:
            parts = await in_thread(outgoing.parts, region)
        else:
            parts = outgoing.parts(region)
        await link.idle()
        checksum = xxh3_64(seed=checksum_seed(header))
        at = 0
        # The table, or a row of it, goes behind what is to be written.
        room = link.staging.room(sum(length for _, length in pieces) + TABLE_BYTES)
        for part in parts:
            size = len(part)
            room[at : at + size] = np.frombuffer(part, np.uint8)
            checksum.update(part)
            at += size
        row = self._row if self._row is not None else await self._find(link, at)
        begin_ns = self._clock.now_ns()
        await self._check(link, row, at)
        if self._clock.now_ns() > begin_ns + ns(PERMISSION_S):
            raise TransferFailed("a write was not begun in time", phase=Phase.TRANSFER)
        await link.move("WRITE", 0, pieces, link.memory)
        await self._check(link, row, at)
        return (encode_in_place(header, checksum.intdigest()),)

    def settle(self) -> None:
        """See `Delivery.settle`: the receiver need not wait for this sender."""
        if self._link is not None and self._row is not None and self._link.still():
            self._row = None
            self._link.agent.tell(self._link.receiver.name, END + self._transfer_id)

    async def close(self) -> None:
        """See `Delivery.close`."""
        link, self._link = self._link, None
        if link is not None:
            self._end(link, b"" if self._row is None else END + self._transfer_id)

    async def _find(self, link: _Link, at: int) -> int:
        """The transfer's row, after telling the receiver that it begins."""
        self._row = -1
        link.agent.tell(link.receiver.name, BEGIN + self._transfer_id)
        room = link.staging.room(at + TABLE_BYTES)
        await link.move("READ", at, [(0, TABLE_BYTES)], link.table)
        rows = room[at : at + TABLE_BYTES].reshape(-1, ROW_BYTES)
        found = np.flatnonzero((rows == np.frombuffer(self._row_text, np.uint8)).all(axis=1))
        self._row = int(found[0]) if len(found) else 0
        return self._row

    async def _check(self, link: _Link, row: int, at: int) -> None:
        """Raise `LeaseExpired` unless the receiver's table names the transfer."""
        room = link.staging.room(at + ROW_BYTES)
        await link.move("READ", at, [(row * ROW_BYTES, ROW_BYTES)], link.table)
        if room[at : at + ROW_BYTES].tobytes() != self._row_text:
            raise LeaseExpired(
                f"transfer {self._transfer_id.decode()!r} is not open any more",
                phase=Phase.TRANSFER,
            )


class Staging:
    """Memory of a sender that NIXL can read and write."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._memory: Bytes = np.empty(0, np.uint8)
        self.address = 0

    def room(self, size: int) -> Bytes:
        """At least `size` bytes. Their contents stay unless it grows."""
        if size > self._memory.nbytes:
            self.close()
            grown = np.zeros(size, np.uint8)
            self.address = self._agent.register(grown)
            self._memory = grown
        return self._memory

    def close(self) -> None:
        """Give the memory back; nothing moves there any more."""
        if self._memory.nbytes:
            self._agent.unregister(self.address)
            self._memory = np.empty(0, np.uint8)


@dataclass(slots=True)
class _Link:
    """What one delivery reads and writes through. memory, table: the receiver's addresses."""

    agent: Agent
    receiver: _Receiver
    staging: Staging
    memory: int
    table: int
    moving: Any = None

    async def move(
        self, operation: str, at: int, pieces: Sequence[tuple[int, int]], base: int
    ) -> None:
        """Between consecutive bytes of the staging buffer, from `at` on, and pieces of theirs."""
        await self.idle()
        lengths = [length for _, length in pieces]
        starts = itertools.accumulate(lengths, initial=at)
        own = places(self.staging.address, list(zip(starts, lengths, strict=False)))
        name = self.receiver.name
        with self._noting_failure():
            self.moving = self.agent.begin(operation, own, places(base, pieces), name)
        await self.idle()

    async def idle(self) -> None:
        """Until nothing is being moved, also where a `move` was cancelled."""
        turns = 0
        while not self.still():
            await asyncio.sleep(0 if turns < _TURNS else _TURN_S)
            turns += 1

    def still(self) -> bool:
        """Whether nothing is being moved. `TransferFailed`, once, where the last move failed."""
        if self.moving is None:
            return True
        with self._noting_failure():
            if not self.agent.done(self.moving):
                return False
        moved, self.moving = self.moving, None
        self.agent.release(moved)
        return True

    @contextlib.contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except TransferFailed:
            self.receiver.failed = True
            moved, self.moving = self.moving, None
            if moved is not None:
                with contextlib.suppress(TransferFailed):
                    self.agent.release(moved)
            raise


class Placement:
    """Where the regions of a transfer lie in the paged KV of receiving rank `rank`, which has
    `size` bytes. Raises `TransferFailed` where the blocks of the ticket are not in it."""

    def __init__(self, ticket: Ticket, rank: int, size: int) -> None:
        self._ticket = ticket
        self._shard = shard_of(ticket.kv, ticket.layout.of_group, rank)
        num_blocks, rest = divmod(size, pool_bytes(ticket.kv, self._shard, 1, ticket.block_tokens))
        wanted = ticket.num_blocks - ticket.first_block
        inside = all(0 <= block < num_blocks for block in ticket.blocks)
        if rest or len(ticket.blocks) != wanted or not inside:
            raise TransferFailed(
                f"{wanted} blocks {list(ticket.blocks[:8])} do not lie in a pool of {size} bytes",
                phase=Phase.TRANSFER,
            )
        self._slots = num_blocks * ticket.block_tokens

    def pieces(self, region: Region) -> list[tuple[int, int]]:
        """``(offset, length)`` of the contiguous pieces of a region, in canonical order."""
        ticket, kv, shard = self._ticket, self._ticket.kv, self._shard
        first = ticket.first_block
        blocks = ticket.blocks[region.blocks.start - first : region.blocks.stop - first]
        left = len(tokens_of(region.blocks, ticket.block_tokens, ticket.num_tokens))
        runs = []
        for block, count in block_runs(blocks):
            tokens = min(left, count * ticket.block_tokens)
            runs.append((block * ticket.block_tokens, tokens))
            left -= tokens
        plane = len(shard.heads) * self._slots
        layer_bytes = plane * (kv.key_bytes + kv.value_bytes)
        return [
            (
                (layer - shard.layers.start) * layer_bytes
                + start
                + ((head - shard.heads.start) * self._slots + slot) * row,
                tokens * row,
            )
            for layer in region.layers
            for start, row in ((0, kv.key_bytes), (plane * kv.key_bytes, kv.value_bytes))
            if row
            for head in region.heads
            for slot, tokens in runs
        ]


def _decoded(metadata: str) -> bytes:
    try:
        return base64.b64decode(metadata, validate=True)
    except ValueError as error:
        raise TransferFailed(f"no NIXL metadata: {error}", phase=Phase.TRANSFER) from None
