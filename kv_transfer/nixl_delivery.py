"""KV written straight into the reserved blocks of a rank by NIXL: RDMA where there is such a
network, else UCX over TCP or shared memory.

Nobody can stop another host from writing what it has begun, so this fence is weaker than that of
`kv_transfer.fence`; ADR 7 says how weak. A sender tells the receiver that it begins, then reads the
receiver's table of open transfers before each piece and after it, and tells when it has ended. The
receiver clears the row of a closed transfer and holds its blocks until each sender that began has
ended; without a word from any, for `QUARANTINE_S`, twice as long as what a sender read is valid.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3
from xxhash import xxh3_64

from eastwest.clock import Clock, ns
from eastwest.errors import LeaseExpired, Overloaded, Phase, TransferFailed
from eastwest.layout import shard_of
from eastwest.messages import RankEndpoint, Ticket, Transport
from eastwest.paged_kv import block_runs, pool_bytes
from eastwest.ports import Buffer
from kv_transfer.frame_codec import Header, Message, checksum_seed, encode_in_place
from kv_transfer.nixl_agent import Agent, places
from kv_transfer.plan import Region, tokens_of
from kv_transfer.transport import Outgoing

TRANSFERS_MAX = 4096
PERMISSION_S = 0.25
QUARANTINE_S = 0.5
_ROW_BYTES = 32
_TABLE_BYTES = TRANSFERS_MAX * _ROW_BYTES
_DESCRIPTOR = re.compile(r"nixl1:(\d{1,20}):(\d{1,20}):(\d{1,20}):([A-Za-z0-9+/=]+)")
_BEGIN, _END = b"begin ", b"end "

Bytes = npt.NDArray[np.uint8]


@dataclass(slots=True)
class _Row:
    number: int
    writing: set[str] = field(default_factory=set)
    ended: bool = False  # some sender has, and none is writing
    closed_ns: int | None = None


class NixlPool:
    """Makes `buffer`, the paged KV of one rank, a target of NIXL. Is a `kv_transfer.ranks.Fence`.

    descriptor: for `RankEndpoint.memory`. silence_s: a sender that began is given up so long after
    its transfer was closed. Used on one thread. Raises `TransferFailed` where there is no NIXL.
    """

    def __init__(self, buffer: Buffer, clock: Clock, *, silence_s: float) -> None:
        self._agent = Agent()
        self._clock = clock
        self._silence_ns = ns(silence_s)
        self._memory = np.frombuffer(buffer, np.uint8)
        self._table: Bytes = np.zeros((TRANSFERS_MAX, _ROW_BYTES), np.uint8)
        self._free = list(range(TRANSFERS_MAX - 1, -1, -1))
        self._rows: dict[str, _Row] = {}
        memory, table = self._agent.register(self._memory), self._agent.register(self._table)
        metadata = base64.b64encode(self._agent.metadata()).decode()
        self.descriptor = f"nixl1:{memory}:{self._memory.nbytes}:{table}:{metadata}"

    def open(self, transfer_id: str) -> None:
        """See `Fence.open`. `Overloaded` where too many are open or still being closed."""
        assert transfer_id not in self._rows, f"transfer {transfer_id} is open already"
        if not self._free:
            raise Overloaded(
                f"{TRANSFERS_MAX} transfers by NIXL are open; allowed: so many at once"
            )
        row = self._rows[transfer_id] = _Row(self._free.pop())
        self._table[row.number] = np.frombuffer(_name(transfer_id), np.uint8)

    def close(self, transfer_id: str) -> bool:
        """See `Fence.close`. True for a transfer that is not open."""
        row = self._rows.get(transfer_id)
        if row is None:
            return True
        now_ns = self._clock.now_ns()
        if row.closed_ns is None:
            row.closed_ns = now_ns
            self._table[row.number] = 0
        # Who read the row before that had begun before.
        self._listen()
        patience_ns = self._silence_ns if row.writing else 0 if row.ended else ns(QUARANTINE_S)
        if now_ns < row.closed_ns + patience_ns:
            return False
        del self._rows[transfer_id]
        self._free.append(row.number)
        return True

    def shut(self) -> None:
        """Nobody can begin to write to it any more."""
        self._table[...] = 0
        self._agent.close()

    def _listen(self) -> None:
        for sender, note in self._agent.notes():
            for kind in (_BEGIN, _END):
                row = self._rows.get(note.removeprefix(kind).decode("utf-8", "replace"))
                if row is None or not note.startswith(kind):
                    continue
                if kind is _BEGIN:
                    row.writing.add(sender)
                else:
                    row.writing.discard(sender)
                row.ended = not row.writing


class Nixl:
    """The `TransportProvider` of one sender. Raises `TransferFailed` where there is no NIXL."""

    transport = Transport.NIXL

    def __init__(self, clock: Clock) -> None:
        self._agent = Agent()
        self._clock = clock
        self._known: dict[str, str] = {}  # agents by descriptor
        self._free: list[Staging] = []  # of deliveries that have ended

    def deliver(self, ticket: Ticket, endpoint: RankEndpoint) -> NixlDelivery:
        """See `TransportProvider.deliver`."""
        parts = _DESCRIPTOR.fullmatch(endpoint.memory)
        if parts is None:
            raise TransferFailed(
                f"rank {endpoint.rank} of {ticket.worker_id} names no NIXL agent; allowed: what a "
                f"rank with NIXL says of itself",
                phase=Phase.TRANSFER,
            )
        memory, size, table = (int(part) for part in parts.groups()[:3])
        where = Placement(ticket, endpoint.rank, size)
        name = self._known.get(endpoint.memory)
        if name is None:
            name = self._known[endpoint.memory] = self._agent.add(_decoded(parts[4]))
        staging = self._free.pop() if self._free else Staging(self._agent)
        link = _Link(self._agent, name, staging, memory, table)
        return NixlDelivery(link, ticket, where, self._clock, self._free)

    def close(self) -> None:
        """Forget every receiver. Idempotent."""
        while self._known:
            self._agent.remove(self._known.popitem()[1])
        self._agent.close()


class NixlDelivery:
    """Is a `Delivery`: writes a region from a staging buffer, while the transfer is open."""

    def __init__(
        self, link: _Link, ticket: Ticket, where: Placement, clock: Clock, free: list[Staging]
    ) -> None:
        self._link: _Link | None = link
        self._transfer_id = ticket.transfer_id.encode()
        self._row_text = _name(ticket.transfer_id)
        self._where = where
        self._clock = clock
        self._free = free
        self._row: int | None = None

    async def pack(self, header: Header, outgoing: Outgoing) -> Message:
        """See `Delivery.pack`."""
        header, link = replace(header, in_place=True), self._link
        assert link is not None, "the delivery is closed"
        pieces = self._where.pieces(header.region)
        checksum = xxh3_64(seed=checksum_seed(header))
        at = 0
        room = link.staging.room(max(_TABLE_BYTES, sum(length for _, length in pieces)))
        for part in outgoing.parts(header.region):
            size = len(part)
            room[at : at + size] = np.frombuffer(part, np.uint8)
            checksum.update(part)
            at += size
        row = self._row if self._row is not None else await self._find(link)
        begin_ns = self._clock.now_ns()
        await self._check(link, row, at)
        if self._clock.now_ns() > begin_ns + ns(PERMISSION_S):
            raise TransferFailed("a write was not begun in time", phase=Phase.TRANSFER)
        await link.move("WRITE", 0, pieces, link.memory)
        await self._check(link, row, at)
        return (encode_in_place(header, checksum.intdigest()),)

    async def close(self) -> None:
        """See `Delivery.close`."""
        link, self._link = self._link, None
        if link is not None:
            await link.idle()
            if self._row is not None:
                link.agent.tell(link.name, _END + self._transfer_id)
            self._free.append(link.staging)

    async def _find(self, link: _Link) -> int:
        """The transfer's row, after telling the receiver that it begins."""
        link.agent.tell(link.name, _BEGIN + self._transfer_id)
        self._row = -1
        # The table goes behind what is to be written.
        at = link.staging.size
        room = link.staging.room(at + _TABLE_BYTES)
        await link.move("READ", at, [(0, _TABLE_BYTES)], link.table)
        rows = room[at : at + _TABLE_BYTES].reshape(-1, _ROW_BYTES)
        found = np.flatnonzero((rows == np.frombuffer(self._row_text, np.uint8)).all(axis=1))
        self._row = int(found[0]) if len(found) else 0
        return self._row

    async def _check(self, link: _Link, row: int, at: int) -> None:
        """Raise `LeaseExpired` unless the receiver's table names the transfer."""
        room = link.staging.room(at + _ROW_BYTES)
        await link.move("READ", at, [(row * _ROW_BYTES, _ROW_BYTES)], link.table)
        if room[at : at + _ROW_BYTES].tobytes() != self._row_text:
            raise LeaseExpired(
                f"transfer {self._transfer_id.decode()!r} is not open any more",
                phase=Phase.TRANSFER,
            )


class Staging:
    """Memory of a sender that NIXL can read and write; it grows as needed, keeping contents."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._memory: Bytes = np.empty(0, np.uint8)
        self.address = 0

    @property
    def size(self) -> int:
        return self._memory.nbytes

    def room(self, size: int) -> Bytes:
        """At least `size` bytes."""
        if size > self._memory.nbytes:
            # Room for a row behind a piece of this size, so that it grows once.
            grown = np.zeros(size + _TABLE_BYTES, np.uint8)
            grown[: self._memory.nbytes] = self._memory
            if self._memory.nbytes:
                self._agent.unregister(self.address)
            self.address = self._agent.register(grown)
            self._memory = grown
        return self._memory


@dataclass(slots=True)
class _Link:
    """What one delivery reads and writes through. memory, table: the receiver's addresses."""

    agent: Agent
    name: str
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
        self.moving = self.agent.begin(operation, own, places(base, pieces), self.name)
        await self.idle()

    async def idle(self) -> None:
        """Until nothing is being moved, also where a `move` was cancelled."""
        while self.moving is not None:
            if self.agent.done(self.moving):
                self.agent.release(self.moving)
                self.moving = None
            else:
                await asyncio.sleep(0)


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


def _name(transfer_id: str) -> bytes:
    return blake3(transfer_id.encode()).digest(length=_ROW_BYTES)


def _decoded(metadata: str) -> bytes:
    try:
        return base64.b64decode(metadata, validate=True)
    except ValueError as error:
        raise TransferFailed(f"no NIXL metadata: {error}", phase=Phase.TRANSFER) from None
