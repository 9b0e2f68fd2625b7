"""One transfer from one rank: a task for each destination rank, which sends what becomes ready.

A push is *begun*, *drained* once everything has been sent, and *stopped*, at any point: then it
leaves no task, call or reader of its blocks behind. The error that ends a task ends the push.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Protocol

from eastwest.clock import Clock, seconds
from eastwest.errors import (
    Cancelled,
    DeadlineExceeded,
    Incompatible,
    InternalError,
    InvalidArgument,
    Phase,
    Unavailable,
)
from eastwest.messages import Ticket
from kv_transfer.frame_codec import Header, Message
from kv_transfer.peer import Peer
from kv_transfer.plan import Region, Slice, overlap, tokens_of
from kv_transfer.ranks import Missing, PushStats
from kv_transfer.readiness import Readiness, Unsent
from kv_transfer.transport import Delivery, Outgoing


class FrameTap(Protocol):
    """Sees every encoded frame of one stream on its way out; a test may change what goes out."""

    def __call__(self, frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]: ...


async def pass_through(frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The tap that changes nothing: messages go out past it, in pieces."""
    async for frame in frames:
        yield frame


@dataclass(slots=True)
class Destination:
    """One receiving rank: what it gets from this rank and how, and whether more may be ready."""

    rank: int
    address: str
    peer: Peer
    slices: Sequence[Slice]
    unsent: Unsent
    delivery: Delivery
    more: asyncio.Event = field(default_factory=asyncio.Event)

    def share(self, missing: Sequence[Missing], wanted: range) -> Iterable[Region]:
        """The frames of what of `missing` this rank has to send, of the blocks `wanted`."""
        holes = [hole.region for hole in missing if hole.dst_rank == self.rank]
        for hole in holes:
            for part in self.slices:
                yield from self.unsent.cut(
                    overlap(hole.layers, part.layers),
                    overlap(hole.blocks, wanted),
                    overlap(hole.heads, part.heads),
                )


class Push:
    """Made by `KvSender.begin`; used on the sender's event loop. source_rank: within its group."""

    def __init__(
        self,
        ticket: Ticket,
        source_rank: int,
        outgoing: Outgoing,
        ready: Readiness,
        destinations: Sequence[Destination],
        clock: Clock,
        deadline_ns: int,
        tap: FrameTap,
    ) -> None:
        self.destinations = destinations
        self._ticket = ticket
        self._source_rank = source_rank
        self._outgoing = outgoing
        self._ready = ready
        self._clock = clock
        self._deadline_ns = deadline_ns
        self._tap = tap
        self._bytes = 0
        self._frames = 0
        self._resent = 0
        self._stopped = False
        nothing = ticket.first_block == ticket.num_blocks
        self._tasks = [] if nothing else [asyncio.create_task(self._fill(d)) for d in destinations]

    def progress(self, layers: range, tokens: int) -> None:
        """KV before position `tokens` is there in `layers`."""
        self._ready.raise_to(layers, tokens)
        for destination in self.destinations:
            destination.more.set()

    async def drain(self) -> PushStats:
        """See `SendingRank.drain`."""
        await self._finish(self._tasks)
        return self._stats()

    async def resend(self, missing: Sequence[Missing]) -> PushStats:
        """See `SendingRank.resend`. After `drain`."""
        wanted = range(self._ticket.first_block, self._ticket.num_blocks)
        before = self._frames
        again = [
            asyncio.create_task(self._send(destination, _each(regions)))
            for destination in self.destinations
            if (regions := list(destination.share(missing, wanted)))
        ]
        self._tasks += again
        await self._finish(again)
        self._resent += self._frames - before
        return self._stats()

    async def stop(self) -> bool:
        """End what runs; whether this call was the first to have done so. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for destination in self.destinations:
            await destination.delivery.close()
        first, self._stopped = not self._stopped, True
        return first

    def _stats(self) -> PushStats:
        return PushStats(self._bytes, self._frames, self._resent)

    async def _finish(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Until every task is done; the first error ends the waiting."""
        if not tasks:
            return
        done, waiting = await asyncio.wait(
            tasks, timeout=self._remaining_s(), return_when=asyncio.FIRST_EXCEPTION
        )
        for task in done:
            if task.cancelled():
                raise Cancelled("the push has been stopped", phase=Phase.TRANSFER)
            task.result()
        if waiting:
            raise self._late()

    async def _fill(self, destination: Destination) -> None:
        """Send one destination all it gets from this rank, as it becomes ready."""
        await destination.more.wait()
        await self._send(destination, self._computed(destination))

    async def _computed(self, destination: Destination) -> AsyncGenerator[Region, None]:
        """The regions for one destination, each as soon as it is ready."""
        while not destination.unsent.done:
            destination.more.clear()
            while regions := destination.unsent.take(self._ready):
                for region in regions:
                    yield region
            if not destination.unsent.done:
                await destination.more.wait()

    async def _send(self, destination: Destination, regions: AsyncGenerator[Region, None]) -> None:
        """Send frames on a stream of their own. One that breaks off counts as lost frames, as does
        one so damaged that the receiver cannot make sense of it: the commit finds out whether the
        receiver is still there, and what it misses."""
        with suppress(Unavailable, InvalidArgument, Incompatible, InternalError):
            async with (
                aclosing(regions),
                aclosing(self._packed(destination, regions)) as packed,
                aclosing(self._tapped(packed)) as messages,
                destination.peer.push(self._remaining_s()) as stream,
            ):
                async for message in messages:
                    await stream.write(message)
                await stream.finish()
        destination.delivery.settle()

    async def _packed(
        self, destination: Destination, regions: AsyncIterator[Region]
    ) -> AsyncGenerator[Message, None]:
        """Frames of `regions`, each holding a slot of the peer until the next one is asked for."""
        async for region in regions:
            async with destination.peer.slots:
                header = Header(
                    self._ticket.transfer_id, self._ticket.epoch, self._source_rank, region
                )
                message = await destination.delivery.pack(header, self._outgoing)
                self._bytes += self._size(region)
                self._frames += 1
                yield message

    def _tapped(self, messages: AsyncGenerator[Message, None]) -> AsyncGenerator[Message, None]:
        """What goes out of `messages`; a tap sees each whole."""
        return messages if self._tap is pass_through else _through(self._tap, messages)

    def _size(self, region: Region) -> int:
        ticket = self._ticket
        tokens = len(tokens_of(region.blocks, ticket.block_tokens, ticket.num_tokens))
        return ticket.kv.slice_bytes(tokens, len(region.layers), len(region.heads))

    def _remaining_s(self) -> float:
        left_ns = self._deadline_ns - self._clock.now_ns()
        if left_ns <= 0:
            raise self._late()
        return seconds(left_ns)

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"the deadline passed during transfer {self._ticket.transfer_id!r}",
            phase=Phase.TRANSFER,
        )


async def _each(regions: Sequence[Region]) -> AsyncGenerator[Region, None]:
    for region in regions:
        yield region


async def _through(
    tap: FrameTap, messages: AsyncIterator[Message]
) -> AsyncGenerator[Message, None]:
    async def whole() -> AsyncGenerator[bytes, None]:
        async for message in messages:
            yield b"".join(message)

    async with aclosing(whole()) as frames, aclosing(tap(frames)) as changed:
        async for frame in changed:
            yield (frame,)
