"""The transfers into one replica, as its leader sees them: opened, arrived rank by rank, ended.

A transfer is *open* from the reservation on, and *sealed* once every rank of the group that holds
its blocks has got its share and the sender said that this is all: from then on nobody begins to
write to them. It ends *committed*, once nobody can be writing to them any more, *aborted* by the
sender, or *closed* by the worker (lease ran out, request cancelled). Ended ones are remembered, up
to a bound, so that a repeated commit gets the same answer and a late one a fitting error.

Everything runs on one event loop. The ranks take the frames; here the leases are renewed, and the
one decision is made that all of a transfer is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from eastwest.clock import Clock
from eastwest.errors import (
    EastWestError,
    ErrorCode,
    InternalError,
    LeaseExpired,
    NotFound,
    StaleEpoch,
    error_from,
)
from eastwest.layout import ParallelLayout
from eastwest.messages import KvLink, Transport
from eastwest.types import SampledToken
from kv_transfer.ledger import Ledger, Owner
from kv_transfer.ranks import Arrived, Missing, Opening, ReceivingRank

ENDED_MAX = 4096
# Prefill workers whose figures are kept; the one that sent nothing for longest goes first.
SOURCES_MAX = 256


@dataclass(frozen=True, slots=True)
class TransferStats:
    """A committed transfer, in payload bytes and nanoseconds.

    transfer_ns: first frame to last one, on the rank that took longest. import_ns: from the last
    frame of all to the commit.
    """

    bytes: int
    frames: int
    transfer_ns: int
    import_ns: int


class TransferOwner(Protocol):
    """The worker that reserved the blocks. Called on the event loop, never reentrantly."""

    def check_commit(self, transfer_id: str, first_token: SampledToken, finished: bool) -> None:
        """Raise `InvalidArgument` where a commit with this token could not be carried out."""

    def on_committed(
        self, transfer_id: str, first_token: SampledToken, finished: bool, stats: TransferStats
    ) -> None:
        """Once per transfer: the KV is complete, and nobody can write to it any more.

        `finished`: the first token is also the last; there is nothing to decode.
        """

    def on_aborted(self, transfer_id: str, reason: str) -> None:
        """Once per transfer: the sender gave up. The blocks may be reused once
        ``Transfers.close(transfer_id)`` is there."""


class Closing:
    """Awaitable, more than once: there when all `parts` are. Raises typed errors."""

    def __init__(self, parts: Sequence[Awaitable[None]] = ()) -> None:
        self._parts = parts

    def __await__(self) -> Generator[Any, Any, None]:
        return self._all().__await__()

    async def _all(self) -> None:
        for part in self._parts:
            try:
                await part
            except Exception as error:
                raise _as_typed("closing a transfer", error) from error


@dataclass(slots=True)
class _Transfer:
    """`arrived`: replica rank to what it got, and the time of its last frame. `closing`: of its
    ranks, once it is sealed."""

    owner: Owner
    ranks: range
    blocks: tuple[int, ...]
    transport: Transport
    source: str
    arrived: dict[int, tuple[Arrived, int]] = field(default_factory=dict)
    closing: Closing | None = None

    @property
    def waiting(self) -> list[int]:
        """Ranks that have not got all of their share."""
        return [rank for rank in self.ranks if rank not in self.arrived]

    def stats(self, now_ns: int) -> TransferStats:
        got = [arrived for arrived, _ in self.arrived.values()]
        last_ns = max(
            (at for arrived, at in self.arrived.values() if arrived.frames), default=now_ns
        )
        return TransferStats(
            sum(a.bytes for a in got),
            sum(a.frames for a in got),
            max(a.transfer_ns for a in got),
            now_ns - last_ns,
        )


@dataclass(frozen=True, slots=True)
class _Ended:
    """`reason`: why; None where it was committed."""

    reason: ErrorCode | None
    closing: Closing


class Transfers:
    """Transfers into a replica whose leases are kept in `ledger`. Is the `ReceiverEvents` of its
    ranks, and the `Commits` of its service.

    ranks: of the whole replica, by their number. epoch: this incarnation. lease_ns: how long a
    lease runs from the last progress on. blocks_per_group: of one rank.
    """

    def __init__(
        self,
        ranks: Sequence[ReceivingRank],
        layout: ParallelLayout,
        ledger: Ledger,
        owner: TransferOwner,
        clock: Clock,
        *,
        epoch: int,
        lease_ns: int,
        blocks_per_group: int,
    ) -> None:
        self._ranks = ranks
        self._layout = layout
        self._ledger = ledger
        self._owner = owner
        self._clock = clock
        self._epoch = epoch
        self._lease_ns = lease_ns
        self._blocks_per_group = blocks_per_group
        self._open: dict[str, _Transfer] = {}
        self._ended: dict[str, _Ended] = {}  # oldest first
        self._links: dict[str, KvLink] = {}  # the latest to send comes last

    @property
    def transfers_open(self) -> int:
        return len(self._open)

    @property
    def links(self) -> tuple[KvLink, ...]:
        """What came from whom, since this incarnation began."""
        return tuple(self._links.values())

    def is_open(self, transfer_id: str) -> bool:
        return transfer_id in self._open

    def open(
        self,
        transfer_id: str,
        owner: Owner,
        *,
        group: int,
        blocks: Sequence[int],
        first_block: int,
        num_blocks: int,
        num_tokens: int,
        transport: Transport,
        source: str,
    ) -> None:
        """Take frames for blocks ``[first_block, num_blocks)`` of a sequence.

        `blocks` are the sequence's, as the replica numbers them, from its first on, all of one
        data-parallel group; the ones to be written are held by `owner` in the ledger, and by
        nobody else. Block `num_blocks` ends with token `num_tokens`. source: the worker that
        fills them. A transfer id is never used twice. The typed error of a rank that cannot open
        it leaves it closed on all.
        """
        assert transfer_id not in self._open, f"transfer {transfer_id} is open already"
        assert transfer_id not in self._ended, f"transfer {transfer_id} has ended already"
        first = group * self._blocks_per_group
        own = tuple(block - first for block in blocks)
        assert all(0 <= b < self._blocks_per_group for b in own), f"blocks outside group {group}"
        assert 0 <= first_block <= num_blocks <= len(blocks), "blocks outside the sequence"
        written = tuple(blocks[first_block:num_blocks])
        assert set(written) <= set(self._ledger.blocks(owner)), f"blocks outside {owner}"
        ranks = self._layout.ranks_of_group(group)
        self._open[transfer_id] = _Transfer(owner, ranks, written, transport, source)
        opening = Opening(transfer_id, own, first_block, num_blocks, num_tokens, transport)
        try:
            for rank in ranks:
                self._ranks[rank].open(opening)
        except EastWestError:
            self.close(transfer_id)
            raise

    async def commit(
        self, transfer_id: str, epoch: int, first_token: SampledToken, *, finished: bool
    ) -> list[Missing]:
        """What is missing, or nothing: then the transfer is committed. Idempotent.

        Raises `StaleEpoch`, `NotFound` or what ended the transfer, `LeaseExpired`, and what
        `TransferOwner.check_commit` does. A commit that is refused, or cancelled, leaves the
        transfer open or sealed.
        """
        self._check_epoch(epoch)
        if self._committed(transfer_id):
            return []
        transfer = self._find(transfer_id)
        self._owner.check_commit(transfer_id, first_token, finished)
        if asked := transfer.waiting:
            # A rank's answer comes after what it has told before.
            answers = await asyncio.gather(
                *(self._ranks[rank].missing(transfer_id) for rank in asked), return_exceptions=True
            )
            if self._committed(transfer_id):
                return []
            self._find(transfer_id)
            if missing := self._missing(transfer, asked, answers):
                return missing
        # Before anybody reads the blocks, whoever writes by itself must be out of them.
        await self._closed(transfer_id, transfer, None)
        if not self._committed(transfer_id):
            self._commit(transfer_id, self._find(transfer_id), first_token, finished)
        return []

    async def abort(self, transfer_id: str, epoch: int, reason: str) -> None:
        """The sender gives up. Idempotent; without effect on a transfer that is not open."""
        self._check_epoch(epoch)
        if transfer_id in self._open:
            self._end(transfer_id, NotFound.code)
            self._owner.on_aborted(transfer_id, reason)

    def close(self, transfer_id: str, reason: ErrorCode = ErrorCode.NOT_FOUND) -> Closing:
        """The worker gives up, `reason` being what late frames are answered. Idempotent.

        No callback is made. The result may be ignored, or awaited: once it is there, nothing
        writes to the transfer's blocks any more, however it ended.
        """
        if transfer_id in self._open:
            self._end(transfer_id, reason)
        ended = self._ended.get(transfer_id)
        return Closing() if ended is None else ended.closing

    def on_progress(self, rank: int, transfer_id: str) -> None:
        """See `ReceiverEvents`: a rank has got something new."""
        transfer = self._open.get(transfer_id)
        if transfer is not None:
            self._renew(transfer)

    def on_arrived(self, rank: int, transfer_id: str, arrived: Arrived) -> None:
        """See `ReceiverEvents`: a rank has got all of its share."""
        transfer = self._open.get(transfer_id)
        if transfer is not None:
            last_ns = self._clock.now_ns() - arrived.since_last_ns
            transfer.arrived[rank] = (arrived, last_ns)
            self._renew(transfer)

    def check_integrity(self) -> None:
        """Assert that every open transfer writes only to blocks that its owner holds."""
        for transfer_id, transfer in self._open.items():
            outside = set(transfer.blocks) - set(self._ledger.blocks(transfer.owner))
            assert not outside, f"transfer {transfer_id} writes to blocks it does not hold"

    def _missing(
        self,
        transfer: _Transfer,
        asked: Sequence[int],
        answers: Sequence[list[Any] | BaseException],
    ) -> list[Missing]:
        missing = []
        for rank, answer in zip(asked, answers, strict=True):
            if isinstance(answer, BaseException):
                raise _as_typed(f"asking rank {rank} what it misses", answer)
            missing += [Missing(rank - transfer.ranks.start, region) for region in answer]
        if not missing and (silent := transfer.waiting):
            raise InternalError(f"ranks {silent} miss nothing and have not said so before")
        return missing

    def _commit(
        self, transfer_id: str, transfer: _Transfer, first_token: SampledToken, finished: bool
    ) -> None:
        stats = transfer.stats(self._clock.now_ns())
        self._count(transfer, stats.bytes)
        self._end(transfer_id, None)
        self._owner.on_committed(transfer_id, first_token, finished, stats)

    def _count(self, transfer: _Transfer, size: int) -> None:
        old = self._links.pop(transfer.source, None)
        transfers, total = (old.transfers, old.bytes) if old is not None else (0, 0)
        self._links[transfer.source] = KvLink(
            transfer.source, transfer.transport, transfers + 1, total + size
        )
        if len(self._links) > SOURCES_MAX:
            del self._links[next(iter(self._links))]

    def _renew(self, transfer: _Transfer) -> None:
        """What is new is a sign of life; a lease that has run out stays so."""
        now_ns = self._clock.now_ns()
        if not self._ledger[transfer.owner].expired(now_ns):
            self._ledger.renew(transfer.owner, now_ns + self._lease_ns)

    def _committed(self, transfer_id: str) -> bool:
        return transfer_id in self._ended and self._ended[transfer_id].reason is None

    def _find(self, transfer_id: str) -> _Transfer:
        transfer = self._open.get(transfer_id)
        if transfer is None:
            ended = self._ended.get(transfer_id)
            code = NotFound.code if ended is None or ended.reason is None else ended.reason
            raise error_from(code, f"transfer {transfer_id!r} is not open")
        if self._ledger[transfer.owner].expired(self._clock.now_ns()):
            raise LeaseExpired(f"the lease of transfer {transfer_id!r} has run out")
        return transfer

    def _check_epoch(self, epoch: int) -> None:
        if epoch != self._epoch:
            raise StaleEpoch(f"epoch is {epoch}; allowed: this incarnation's, {self._epoch}")

    def _closed(self, transfer_id: str, transfer: _Transfer, reason: ErrorCode | None) -> Closing:
        """Its ranks take nothing more, from now on; see `ReceivingRank.close`."""
        if transfer.closing is None:
            ranks = [self._ranks[rank] for rank in transfer.ranks]
            transfer.closing = Closing([rank.close(transfer_id, reason) for rank in ranks])
        return transfer.closing

    def _end(self, transfer_id: str, reason: ErrorCode | None) -> None:
        transfer = self._open.pop(transfer_id)
        self._ended[transfer_id] = _Ended(reason, self._closed(transfer_id, transfer, reason))
        if len(self._ended) > ENDED_MAX:
            del self._ended[next(iter(self._ended))]


def _as_typed(what: str, error: BaseException) -> BaseException:
    if isinstance(error, EastWestError) or not isinstance(error, Exception):
        return error
    return InternalError.caused_by(what, error)
