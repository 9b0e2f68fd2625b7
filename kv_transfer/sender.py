"""Pushes the KV of one rank to the ranks of a decode worker while it is being computed.

The life of a `Push`: `begin` checks that the two sides fit and starts one task for each
destination rank; `ready` says how far the prompt is computed, and what is new goes out; `finish`
sends the rest and commits, sending again what the receiver says it misses, a bounded number of
times; or `abort` gives up at any point. Both `finish` and `abort` leave no task, call or buffer
behind, also when they are cancelled.

Everything runs on one event loop, reading blocks included: a frame is read, encoded and handed to
gRPC in well under a millisecond, which costs less than passing it to a thread and back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Protocol

from eastwest.clock import Clock, seconds
from eastwest.config import KVConfig
from eastwest.errors import (
    ConfigError,
    DeadlineExceeded,
    EastWestError,
    Incompatible,
    InvalidArgument,
    Phase,
    TransferFailed,
    Unavailable,
)
from eastwest.layout import ParallelLayout
from eastwest.messages import Ticket
from eastwest.ports import KVMemory
from eastwest.types import SampledToken
from eastwest.v1 import kv_transfer_pb2 as wire
from eastwest.wire import token_to_wire
from kv_transfer.frame_codec import Header, encode, message_bytes
from kv_transfer.peer import Peer
from kv_transfer.plan import Region, Slice, frames, overlap, reshard

# Connections that no transfer uses are kept for the next one, up to so many.
PEERS_MAX = 64
# A commit is tried so often before the transfer fails; between two tries, what is missing is sent.
ATTEMPTS_MAX = 4
_ABORT_TIMEOUT_S = 2.0


class FrameTap(Protocol):
    """Sees every encoded frame of one stream on its way out; a test may change what goes out."""

    def __call__(self, frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]: ...


async def pass_through(frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The tap that changes nothing."""
    async for frame in frames:
        yield frame


@dataclass(frozen=True, slots=True)
class PushStats:
    """What one rank sent for one transfer. bytes: payload, repeated frames included.

    seconds: first block ready to commit acknowledged.
    """

    bytes: int
    frames: int
    resent_frames: int
    seconds: float


@dataclass(slots=True)
class _Target:
    """One destination rank: what it gets from this rank, and whether more may be ready."""

    address: str
    peer: Peer
    slices: list[Slice]
    more: asyncio.Event = field(default_factory=asyncio.Event)


class KvSender:
    """The sending side of one rank of one replica, over any number of transfers at once.

    kv, layout, rank: what this rank holds. fingerprint: of the model whose KV that is. Bytes on
    the way to one address stay within ``config.inflight_bytes``.
    """

    def __init__(
        self,
        kv: KVMemory,
        layout: ParallelLayout,
        rank: int,
        config: KVConfig,
        clock: Clock,
        *,
        fingerprint: str,
        tap: FrameTap = pass_through,
    ) -> None:
        self.kv = kv
        self.rank = rank
        self.clock = clock
        self.tap = tap
        self.frame_bytes = min(config.frame_bytes, config.inflight_bytes)
        self._layout = layout
        self._fingerprint = fingerprint
        self._slots = config.inflight_bytes // self.frame_bytes
        smallest = kv.spec.slice_bytes(kv.block_tokens, 1, 1)
        if smallest > self.frame_bytes:
            raise ConfigError(
                f"kv.frame_bytes is {self.frame_bytes}; allowed: at least {smallest}, the bytes "
                f"of one block of one layer and head"
            )
        self._peers: dict[str, Peer] = {}
        # Open pushes and the addresses that each one uses.
        self._pushes: dict[Push, list[str]] = {}

    def begin(self, ticket: Ticket, blocks: Sequence[int], *, deadline_ns: int) -> Push:
        """Start the transfer that `ticket` makes room for; does no I/O.

        `blocks` are this rank's physical blocks of the sequence, from its first on, at least
        ``ticket.num_blocks``; they must stay as they are until the push has ended. Raises
        `Incompatible` or `InvalidArgument`, naming both sides.
        """
        self._check(ticket, len(blocks))
        try:
            slices = [
                s
                for s in reshard(self._layout, ticket.layout, ticket.kv)
                if s.src_rank == self.rank
            ]
        except ConfigError as error:
            raise Incompatible(f"layouts cannot be matched: {error}") from error
        addresses = {endpoint.rank: endpoint.address for endpoint in ticket.endpoints}
        by_rank: dict[int, list[Slice]] = {}
        for part in slices:
            by_rank.setdefault(part.dst_rank, []).append(part)
        if absent := sorted(by_rank.keys() - addresses.keys()):
            raise InvalidArgument(f"the ticket names no address for ranks {absent}")
        targets = [_Target(addresses[r], self._peer(addresses[r]), s) for r, s in by_rank.items()]
        push = Push(self, ticket, tuple(blocks), targets, deadline_ns)
        self._pushes[push] = [target.address for target in targets]
        return push

    async def close(self) -> None:
        """Stop every push and close every connection. Idempotent."""
        for push in list(self._pushes):
            await push.stop()
        while self._peers:
            _, peer = self._peers.popitem()
            await peer.close()

    async def release(self, push: Push) -> None:
        """A push has ended; idle connections beyond the bound are closed, oldest first."""
        self._pushes.pop(push, None)
        used = {address for addresses in self._pushes.values() for address in addresses}
        idle = [address for address in self._peers if address not in used]
        surplus = len(self._peers) - PEERS_MAX
        for address in idle[: max(0, surplus)]:
            await self._peers.pop(address).close()

    def _peer(self, address: str) -> Peer:
        peer = self._peers.pop(address, None)
        if peer is None:
            size = message_bytes(self.frame_bytes)
            peer = Peer(address, message_bytes=size, slots=self._slots)
        # The last one used comes last.
        self._peers[address] = peer
        return peer

    def _check(self, ticket: Ticket, num_blocks: int) -> None:
        pairs = (
            ("model fingerprint", self._fingerprint, ticket.fingerprint),
            ("KV form", self.kv.spec, ticket.kv),
            ("block size", self.kv.block_tokens, ticket.block_tokens),
        )
        for name, ours, theirs in pairs:
            if ours != theirs:
                raise Incompatible(f"{name} is {ours} here and {theirs} at {ticket.worker_id}")
        if not 0 <= ticket.first_block <= ticket.num_blocks <= num_blocks:
            raise InvalidArgument(
                f"the ticket is for blocks {ticket.first_block} to {ticket.num_blocks}; "
                f"allowed: inside the sequence's {num_blocks}"
            )


class Push:
    """One transfer from one rank. Made by `KvSender.begin`; used on the sender's event loop."""

    def __init__(
        self,
        sender: KvSender,
        ticket: Ticket,
        blocks: tuple[int, ...],
        targets: list[_Target],
        deadline_ns: int,
    ) -> None:
        self._sender = sender
        self._ticket = ticket
        self._blocks = blocks
        self._targets = targets
        self._deadline_ns = deadline_ns
        self._ready = ticket.first_block
        self._ready_ns: int | None = None
        self._bytes = 0
        self._frames = 0
        self._resent = 0
        nothing = ticket.first_block == ticket.num_blocks
        self._tasks = [] if nothing else [asyncio.create_task(self._fill(t)) for t in targets]

    def ready(self, num_blocks: int) -> None:
        """Blocks ``[0, num_blocks)`` of the sequence are computed and will not change."""
        num_blocks = min(num_blocks, self._ticket.num_blocks)
        if num_blocks <= self._ready:
            return
        if self._ready_ns is None:
            self._ready_ns = self._sender.clock.now_ns()
        self._ready = num_blocks
        for target in self._targets:
            target.more.set()

    async def finish(self, first_token: SampledToken, *, finished: bool) -> PushStats:
        """Send what is left, commit, and say what it took; every block must be ready.

        finished: the first token is also the last. Raises `TransferFailed` where the KV does not
        get across intact, `DeadlineExceeded`, `Unavailable` where the peer is gone, or what the
        peer refused with.
        """
        assert self._ready == self._ticket.num_blocks, "blocks that are not computed"
        request = wire.CommitRequest(
            transfer_id=self._ticket.transfer_id,
            epoch=self._ticket.epoch,
            first_token=token_to_wire(first_token),
            finished=finished,
        )
        try:
            async with asyncio.timeout(self._remaining_s()):
                await _all(self._tasks)
                for target in self._targets:
                    await self._commit(target, request)
        except TimeoutError:
            raise self._late() from None
        finally:
            await self.stop()
        now_ns = self._sender.clock.now_ns()
        took_ns = 0 if self._ready_ns is None else now_ns - self._ready_ns
        return PushStats(self._bytes, self._frames, self._resent, seconds(took_ns))

    async def abort(self) -> None:
        """Give up and tell the receivers, which free the reservation. Idempotent, never raises.

        A receiver that cannot be told frees it when the lease runs out.
        """
        await self.stop()
        request = wire.AbortTransferRequest(
            transfer_id=self._ticket.transfer_id, epoch=self._ticket.epoch
        )
        tell = [target.peer.abort(request, _ABORT_TIMEOUT_S) for target in self._targets]
        for result in await asyncio.gather(*tell, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, EastWestError):
                raise result

    async def stop(self) -> None:
        """End what runs on this side, without a word to the receivers. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._sender.release(self)

    async def _fill(self, target: _Target) -> None:
        """Send one destination all it gets from this rank, as it becomes ready."""
        await target.more.wait()
        await self._send(target, self._computed(target))

    async def _computed(self, target: _Target) -> AsyncGenerator[Region, None]:
        """The regions for one destination, each as soon as its blocks are ready."""
        sent = self._ticket.first_block
        while sent < self._ticket.num_blocks:
            while self._ready == sent:
                target.more.clear()
                await target.more.wait()
            blocks = range(sent, self._ready)
            for part in target.slices:
                for region in self._cut(part.layers, blocks, part.heads):
                    yield region
            sent = blocks.stop

    async def _commit(self, target: _Target, request: wire.CommitRequest) -> None:
        for attempt in range(ATTEMPTS_MAX):
            receipt = await target.peer.commit(request, self._remaining_s())
            if receipt.committed:
                return
            if attempt < ATTEMPTS_MAX - 1:
                before = self._frames
                await self._send(target, self._again(target, receipt.missing))
                self._resent += self._frames - before
        raise TransferFailed(
            f"KV of transfer {self._ticket.transfer_id!r} was incomplete after {ATTEMPTS_MAX} "
            f"attempts",
            phase=Phase.TRANSFER,
        )

    async def _again(
        self, target: _Target, missing: Sequence[wire.FrameSlice]
    ) -> AsyncGenerator[Region, None]:
        """What this rank has to send of what a receiver misses."""
        wanted = range(self._ticket.first_block, self._ticket.num_blocks)
        for hole in missing:
            layers = range(hole.layer_start, hole.layer_start + hole.layer_count)
            blocks = range(hole.block_start, hole.block_start + hole.block_count)
            heads = range(hole.head_start, hole.head_start + hole.head_count)
            for part in target.slices:
                for region in self._cut(
                    overlap(layers, part.layers),
                    overlap(blocks, wanted),
                    overlap(heads, part.heads),
                ):
                    yield region

    def _cut(self, layers: range, blocks: range, heads: range) -> Iterator[Region]:
        kv = self._sender.kv
        return frames(
            layers,
            blocks,
            heads,
            spec=kv.spec,
            block_tokens=kv.block_tokens,
            frame_bytes=self._sender.frame_bytes,
        )

    async def _send(self, target: _Target, regions: AsyncGenerator[Region, None]) -> None:
        """Send frames on a stream of their own. One that breaks off counts as lost frames: the
        commit finds out whether the receiver is still there, and what it misses."""
        with suppress(Unavailable):
            async with (
                aclosing(regions),
                aclosing(self._encoded(target, regions)) as clean,
                aclosing(self._sender.tap(clean)) as messages,
                target.peer.push(self._remaining_s()) as stream,
            ):
                async for message in messages:
                    await stream.write(message)
                await stream.finish()

    async def _encoded(
        self, target: _Target, regions: AsyncIterator[Region]
    ) -> AsyncGenerator[bytes, None]:
        """Frames of `regions`, each holding a slot of the peer until the next one is asked for."""
        async for region in regions:
            async with target.peer.slots:
                yield self._frame(region)

    def _frame(self, region: Region) -> bytes:
        blocks = self._blocks[region.blocks.start : region.blocks.stop]
        payload = self._sender.kv.read(blocks, region.layers, region.heads)
        self._bytes += memoryview(payload).nbytes
        self._frames += 1
        ticket = self._ticket
        header = Header(ticket.transfer_id, ticket.epoch, self._sender.rank, region)
        return encode(header, payload)

    def _remaining_s(self) -> float:
        left_ns = self._deadline_ns - self._sender.clock.now_ns()
        if left_ns <= 0:
            raise self._late()
        return seconds(left_ns)

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"the deadline passed during transfer {self._ticket.transfer_id!r}",
            phase=Phase.TRANSFER,
        )


async def _all(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Until every task is done; the first error ends the waiting."""
    if tasks:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
