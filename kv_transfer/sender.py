"""The sending side of one rank: pushes its KV to the ranks of decode workers, while it is computed.

`begin` works out what this rank sends to whom, and starts a `Push`; `progress` and `ready` say how
far the prompt is computed, and what is new goes out; `drain` waits until all of it is out. The
commit is the leader's (`kv_transfer.group_push`).

Everything runs on one event loop. So does reading blocks that need no conversion: the largest frame
is read, encoded and handed on in a few milliseconds, a usual one, of one layer of one prompt, in
well under one, which costs less than passing it to a thread and back. Those that need one are read
and converted in a thread, whose end a push that is stopped waits for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eastwest.clock import Clock, ns
from eastwest.config import KVConfig
from eastwest.errors import (
    ConfigError,
    EastWestError,
    Incompatible,
    InvalidArgument,
    NotFound,
    Phase,
)
from eastwest.layout import ParallelLayout
from eastwest.messages import Ticket, Transport
from eastwest.ports import KVMemory
from kv_transfer.connections import Connections
from kv_transfer.convert import check_convertible
from kv_transfer.frame_codec import message_bytes
from kv_transfer.outgoing import PushedKV
from kv_transfer.plan import Slice, reshard
from kv_transfer.push import Destination, FrameTap, Push, pass_through
from kv_transfer.ranks import Missing, PushStats
from kv_transfer.readiness import Readiness, Unsent
from kv_transfer.transport import Delivery, TransportProvider


@dataclass(frozen=True, slots=True)
class _Unbegun:
    """A push that could not begin: why, and the ways that had been opened for it."""

    error: EastWestError
    deliveries: Sequence[Delivery]


class KvSender:
    """The sending side of rank `rank` of a replica, over any number of transfers at once. Is a
    `SendingRank`.

    kv: what this rank holds. fingerprint: of the model whose KV that is. providers: the ways that
    this process has for KV to travel. Bytes on the way to one address stay within
    ``config.inflight_bytes``.
    """

    def __init__(
        self,
        kv: KVMemory,
        layout: ParallelLayout,
        rank: int,
        providers: Mapping[Transport, TransportProvider],
        config: KVConfig,
        clock: Clock,
        *,
        fingerprint: str,
        tap: FrameTap = pass_through,
    ) -> None:
        self._kv = kv
        self._layout = layout.of_group
        self._rank = rank % layout.group_size
        self._providers = providers
        self._clock = clock
        self._fingerprint = fingerprint
        self._tap = tap
        self._frame_bytes = min(config.frame_bytes, config.inflight_bytes)
        smallest = kv.spec.slice_bytes(kv.block_tokens, 1, 1)
        if smallest > self._frame_bytes:
            raise ConfigError(
                f"kv.frame_bytes is {self._frame_bytes}; allowed: at least {smallest}, the bytes "
                f"of one block of one layer and head"
            )
        self._connections = Connections(
            message_bytes=message_bytes(self._frame_bytes),
            slots=config.inflight_bytes // self._frame_bytes,
            idle_s=config.lease_s,
        )
        # What was begun and not stopped.
        self._pushes: dict[str, Push | _Unbegun] = {}

    def begin(self, ticket: Ticket, blocks: Sequence[int], timeout_s: float) -> None:
        """See `SendingRank.begin`."""
        transfer_id = ticket.transfer_id
        if transfer_id in self._pushes:
            raise InvalidArgument(f"transfer {transfer_id!r} is being sent already; allowed: once")
        deliveries: list[Delivery] = []
        try:
            push = self._begin(ticket, tuple(blocks), timeout_s, deliveries)
        except EastWestError as error:
            error.phase = error.phase or Phase.TRANSFER
            self._pushes[transfer_id] = _Unbegun(error, deliveries)
        else:
            self._pushes[transfer_id] = push

    def ready(self, transfer_id: str, tokens: int) -> None:
        """See `SendingRank.ready`."""
        self.progress(transfer_id, self._kv.shard.layers, tokens)

    def progress(self, transfer_id: str, layers: range, tokens: int) -> None:
        """KV before position `tokens` is there in `layers`. Without effect on a push that is not
        there: a step may still name it."""
        push = self._pushes.get(transfer_id)
        if isinstance(push, Push):
            push.progress(layers, tokens)

    async def drain(self, transfer_id: str) -> PushStats:
        """See `SendingRank.drain`."""
        return await self._push(transfer_id).drain()

    async def resend(self, transfer_id: str, missing: Sequence[Missing]) -> PushStats:
        """See `SendingRank.resend`."""
        return await self._push(transfer_id).resend(missing)

    async def stop(self, transfer_id: str) -> None:
        """See `SendingRank.stop`."""
        push = self._pushes.get(transfer_id)
        if isinstance(push, Push) and await push.stop():
            for destination in push.destinations:
                await self._connections.release(destination.address)
        elif isinstance(push, _Unbegun):
            for delivery in push.deliveries:
                await delivery.close()
        self._pushes.pop(transfer_id, None)

    async def close(self) -> None:
        """Stop every push and close every connection. Idempotent."""
        for transfer_id in list(self._pushes):
            await self.stop(transfer_id)
        await self._connections.close()

    def _push(self, transfer_id: str) -> Push:
        push = self._pushes.get(transfer_id)
        if push is None:
            raise NotFound(f"transfer {transfer_id!r} is not being sent", phase=Phase.TRANSFER)
        if isinstance(push, _Unbegun):
            raise push.error
        return push

    def _begin(
        self,
        ticket: Ticket,
        blocks: tuple[int, ...],
        timeout_s: float,
        deliveries: list[Delivery],
    ) -> Push:
        """The push; `deliveries` become those that have been made, also where it raises."""
        self._check(ticket, len(blocks) * self._kv.block_tokens)
        endpoints = {endpoint.rank: endpoint for endpoint in ticket.endpoints}
        slices = self._slices(ticket)
        if absent := sorted(slices.keys() - endpoints.keys()):
            raise InvalidArgument(f"the ticket names no address for ranks {absent}")
        provider = self._providers.get(ticket.transport)
        if provider is None:
            raise Incompatible(
                f"KV shall come to {ticket.worker_id} by {ticket.transport}; allowed here: "
                f"{', '.join(self._providers)}"
            )
        for rank in slices:
            # One that raises must leave those before it in the list.
            deliveries.append(provider.deliver(ticket, endpoints[rank]))  # noqa: PERF401
        return Push(
            ticket,
            self._rank,
            PushedKV(self._kv, blocks, ticket),
            Readiness(self._kv.shard.layers),
            [
                Destination(
                    rank,
                    endpoints[rank].address,
                    self._connections.use(endpoints[rank].address),
                    parts,
                    Unsent(parts, ticket, self._frame_bytes),
                    delivery,
                )
                for (rank, parts), delivery in zip(slices.items(), deliveries, strict=True)
            ],
            self._clock,
            self._clock.now_ns() + ns(timeout_s),
            self._tap,
        )

    def _slices(self, ticket: Ticket) -> dict[int, list[Slice]]:
        """What this rank sends to each destination rank."""
        try:
            plan = reshard(self._layout, ticket.layout.of_group, ticket.kv)
        except ConfigError as error:
            raise Incompatible(f"layouts cannot be matched: {error}") from error
        slices: dict[int, list[Slice]] = {}
        for part in plan:
            if part.src_rank == self._rank:
                slices.setdefault(part.dst_rank, []).append(part)
        return slices

    def _check(self, ticket: Ticket, tokens: int) -> None:
        """Raise `Incompatible` or `InvalidArgument`, naming both sides."""
        there = ticket.worker_id
        if ticket.fingerprint != self._fingerprint:
            raise Incompatible(
                f"model fingerprint is {self._fingerprint} here and {ticket.fingerprint} at {there}"
            )
        check_convertible(self._kv.spec, ticket.kv, "here", f"at {there}")
        first, last = ticket.first_block, ticket.num_blocks
        if ticket.block_tokens < 1 or not 0 <= first <= last:
            raise InvalidArgument(
                f"the ticket is for blocks {first} to {last} of {ticket.block_tokens} tokens; "
                f"allowed: an ordered pair from 0 up, of at least 1"
            )
        whole = last * ticket.block_tokens
        if not whole - ticket.block_tokens < ticket.num_tokens <= min(whole, tokens):
            raise InvalidArgument(
                f"the ticket's {last} blocks of {ticket.block_tokens} tokens end with token "
                f"{ticket.num_tokens}; allowed: inside the last block, and up to {tokens}, for "
                f"which there are blocks here"
            )
        smallest = ticket.kv.slice_bytes(ticket.block_tokens, 1, 1)
        if smallest > self._frame_bytes:
            raise Incompatible(
                f"a block of one layer and head has {smallest} bytes at {there}; allowed here: "
                f"up to kv.frame_bytes, {self._frame_bytes}"
            )
