"""Reservations that the same replica prefills: the KV is computed where it belongs.

What a transfer does over the network is here a hand-over on the event loop; everything before
and after it is the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from decode_pool.sequence import Work, WorkState
from eastwest.errors import InvalidArgument, LeaseExpired
from eastwest.messages import Prefill, Ticket
from eastwest.types import SampledToken


class InPlaceReservations:
    """The reservations of a decode worker, for the prefill worker of its replica.

    find: the work of an open transfer. commit: turns it into a running sequence. abort: ends it.
    """

    def __init__(
        self,
        find: Callable[[str], Work | None],
        commit: Callable[[Work, SampledToken, bool], None],
        abort: Callable[[str, str], None],
    ) -> None:
        self._find = find
        self.commit = commit
        self.abort = abort

    def holds(self, ticket: Ticket) -> bool:
        """Whether the reservation is still there; its blocks may be written only while it is."""
        work = self._find(ticket.transfer_id)
        return work is not None and work.state is WorkState.RESERVED

    def room_of(self, command: Prefill) -> tuple[Sequence[int], int]:
        """The reserved blocks, and how many of them have their KV already. Raises `LeaseExpired`
        where the reservation is gone, `InvalidArgument` where it is for something else."""
        work = self.work(command.ticket)
        reserved, asked = (
            (c.request_id, c.salt, c.given, c.sampling, c.max_tokens)
            for c in (work.command, command)
        )
        if asked != reserved:
            raise InvalidArgument(
                f"reservation {work.transfer_id} is for request {work.request_id!r} as it was "
                f"reserved; allowed: the same prompt, output and sampling"
            )
        return work.blocks, len(work.hashes)

    def lend(self, ticket: Ticket, writer: asyncio.Task[None]) -> None:
        """`writer` may write to the reserved blocks: where the reservation ends first, it is
        cancelled, and they stay until it is over."""
        self.work(ticket).writer = writer

    def target(self, ticket: Ticket) -> InPlace:
        """Where the prompt of this ticket is handed over."""
        return InPlace(self, ticket)

    def work(self, ticket: Ticket) -> Work:
        work = self._find(ticket.transfer_id)
        if work is None or work.state is not WorkState.RESERVED:
            raise LeaseExpired(f"reservation {ticket.transfer_id} is gone")
        return work


class InPlace:
    """The target of one prompt."""

    def __init__(self, reservations: InPlaceReservations, ticket: Ticket) -> None:
        self._reservations = reservations
        self._ticket = ticket

    def ready(self, tokens: int) -> None:
        """The KV is where it belongs already."""

    async def finish(self, first_token: SampledToken, *, finished: bool) -> None:
        work = self._reservations.work(self._ticket)
        self._reservations.commit(work, first_token, finished)

    async def abort(self) -> None:
        self._reservations.abort(self._ticket.transfer_id, "its prefill ended")
