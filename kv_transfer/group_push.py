"""The leader's side of sending: one transfer from all ranks of a group, and its commit.

The life of a `GroupPush`: `begin` starts a push on every rank of the group that holds the blocks;
`ready` says how far the prompt is computed; `finish` waits until every rank has sent its share and
commits, having sent again what the receivers say they miss, a bounded number of times; or `abort`
gives up at any point. Both leave nothing running on any rank, also when they are cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import suppress

from eastwest.clock import Clock, seconds
from eastwest.errors import DeadlineExceeded, EastWestError, Phase, TransferFailed, Unavailable
from eastwest.layout import ParallelLayout
from eastwest.messages import Ticket
from eastwest.rpc import CONTROL_MESSAGE_BYTES
from eastwest.types import SampledToken
from eastwest.v1 import kv_transfer_pb2 as wire
from eastwest.wire import token_to_wire
from kv_transfer.connections import Connections
from kv_transfer.plan import Region
from kv_transfer.push_client import IDLE_S
from kv_transfer.ranks import Missing, PushStats, SendingRank

# A commit is tried so often before the transfer fails; between two tries, what is missing is sent.
ATTEMPTS_MAX = 4
# Grows with each try: a connection that broke is dialled again within a second.
_PAUSE_S = 0.2
_ABORT_TIMEOUT_S = 2.0


class GroupSender:
    """Sends from a whole replica. ranks: all of them, by their number; blocks_per_group: of one.
    idle_s: a commit that is not answered for so long is repeated.

    The ranks are the caller's, who closes them.
    """

    def __init__(
        self,
        ranks: Sequence[SendingRank],
        layout: ParallelLayout,
        clock: Clock,
        *,
        blocks_per_group: int,
        idle_s: float = IDLE_S,
    ) -> None:
        self._idle_s = idle_s
        self._ranks = ranks
        self._layout = layout
        self._clock = clock
        self._blocks_per_group = blocks_per_group
        self._connections = Connections(message_bytes=CONTROL_MESSAGE_BYTES, slots=1)
        self._pushes: set[GroupPush] = set()

    def begin(self, ticket: Ticket, blocks: Sequence[int], *, deadline_ns: int) -> GroupPush:
        """Start the transfer that `ticket` makes room for; does no I/O.

        `blocks` hold the sequence, as the replica numbers them, from its first token on; they
        must stay as they are until the push has ended. What does not fit is raised by `finish`.
        """
        group = blocks[0] // self._blocks_per_group
        first = group * self._blocks_per_group
        own = [block - first for block in blocks]
        assert all(0 <= b < self._blocks_per_group for b in own), f"blocks outside group {group}"
        ranks = [self._ranks[rank] for rank in self._layout.ranks_of_group(group)]
        timeout_s = seconds(deadline_ns - self._clock.now_ns())
        for rank in ranks:
            rank.begin(ticket, own, timeout_s)
        push = GroupPush(ticket, ranks, self._connections, self._clock, deadline_ns, self._idle_s)
        self._pushes = {open_push for open_push in self._pushes if not open_push.stopped}
        self._pushes.add(push)
        return push

    async def close(self) -> None:
        """Stop every push and close every connection. Idempotent."""
        for push in list(self._pushes):
            await push.stop()
        await self._connections.close()


class GroupPush:
    """One transfer from one group. Made by `GroupSender.begin`; used on its event loop."""

    def __init__(
        self,
        ticket: Ticket,
        ranks: Sequence[SendingRank],
        connections: Connections,
        clock: Clock,
        deadline_ns: int,
        idle_s: float,
    ) -> None:
        self.stopped = False
        self._idle_s = idle_s
        self._ticket = ticket
        self._ranks = ranks
        self._connections = connections
        self._clock = clock
        self._deadline_ns = deadline_ns

    def ready(self, tokens: int) -> None:
        """KV before position `tokens` is there in all layers of all ranks. Steps that name the
        transfer in their rows say the same by themselves, layer by layer."""
        for rank in self._ranks:
            rank.ready(self._ticket.transfer_id, tokens)

    async def finish(self, first_token: SampledToken, *, finished: bool) -> PushStats:
        """Send what is left, commit, and say what all ranks sent; all KV must be ready.

        finished: the first token is also the last. Raises `TransferFailed` where the KV does not
        get across intact, `DeadlineExceeded`, `Incompatible` or `InvalidArgument` where the
        ticket does not fit, `Unavailable` where the peer is gone, or what it refused with.
        """
        transfer_id = self._ticket.transfer_id
        request = wire.CommitRequest(
            transfer_id=transfer_id,
            epoch=self._ticket.epoch,
            first_token=token_to_wire(first_token),
            finished=finished,
        )
        try:
            async with asyncio.timeout(self._remaining_s()):
                stats = await _all(rank.drain(transfer_id) for rank in self._ranks)
                return _sum(await self._commit(request, stats))
        except TimeoutError:
            raise self._late() from None
        finally:
            await self.stop()

    async def abort(self) -> None:
        """Give up and tell the receiver, which frees the reservation. Idempotent, never raises.

        A receiver that cannot be told frees it when the lease runs out.
        """
        await self.stop()
        request = wire.AbortTransferRequest(
            transfer_id=self._ticket.transfer_id, epoch=self._ticket.epoch
        )
        with suppress(EastWestError):
            async with self._connections.lend(self._ticket.address) as peer:
                await peer.abort(request, _ABORT_TIMEOUT_S)

    async def stop(self) -> None:
        """End what runs on this side, without a word to the receiver. Idempotent, never raises."""
        stops = (rank.stop(self._ticket.transfer_id) for rank in self._ranks)
        for result in await asyncio.gather(*stops, return_exceptions=True):
            # A rank that is gone reads no block any more.
            if isinstance(result, BaseException) and not isinstance(result, EastWestError):
                raise result
        self.stopped = True

    async def _commit(self, request: wire.CommitRequest, stats: list[PushStats]) -> list[PushStats]:
        for attempt in range(ATTEMPTS_MAX):
            receipt = await self._receipt(request)
            if receipt.committed:
                return stats
            if attempt < ATTEMPTS_MAX - 1:
                await asyncio.sleep(attempt * _PAUSE_S)
                missing = [_missing(hole) for hole in receipt.missing]
                stats = await _all(
                    rank.resend(self._ticket.transfer_id, missing) for rank in self._ranks
                )
        raise TransferFailed(
            f"KV of transfer {self._ticket.transfer_id!r} was incomplete after {ATTEMPTS_MAX} "
            f"attempts",
            phase=Phase.TRANSFER,
        )

    async def _receipt(self, request: wire.CommitRequest) -> wire.CommitReceipt:
        """What the receiver makes of a commit. An answer that does not come is asked for again,
        which changes nothing; so is a receiver that cannot be reached for a moment."""
        for attempt in range(ATTEMPTS_MAX):
            timeout_s = min(self._remaining_s(), self._idle_s)
            async with self._connections.lend(self._ticket.address) as peer:
                try:
                    return await peer.commit(request, timeout_s)
                except DeadlineExceeded:
                    continue
                except Unavailable:
                    if attempt == ATTEMPTS_MAX - 1:
                        raise
            await asyncio.sleep((attempt + 1) * _PAUSE_S)
        raise TransferFailed(
            f"{self._ticket.address} did not answer {ATTEMPTS_MAX} commits of transfer "
            f"{self._ticket.transfer_id!r}",
            phase=Phase.TRANSFER,
        )

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


async def _all(parts: Iterable[Awaitable[PushStats]]) -> list[PushStats]:
    """What each of them gives. The first error ends the others."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _sum(stats: Sequence[PushStats]) -> PushStats:
    return PushStats(
        sum(s.bytes for s in stats),
        sum(s.frames for s in stats),
        sum(s.resent_frames for s in stats),
    )


def _missing(hole: wire.FrameSlice) -> Missing:
    return Missing(
        hole.rank,
        Region(
            range(hole.layer_start, hole.layer_start + hole.layer_count),
            range(hole.block_start, hole.block_start + hole.block_count),
            range(hole.head_start, hole.head_start + hole.head_count),
        ),
    )
