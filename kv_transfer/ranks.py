"""What the leader of a replica asks of each rank to move KV, wherever the rank runs.

A rank in the leader's own process is a `Receiver` and a `KvSender`; one in another process is
reached over a link. Commands to one rank take effect in the order in which they are given, steps
of the engine included: what a command releases may be used by whatever is given after it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Protocol

from eastwest.errors import ErrorCode
from eastwest.messages import Ticket, Transport
from kv_transfer.plan import Region


@dataclass(frozen=True, slots=True)
class Opening:
    """A transfer that one rank shall take.

    blocks: the rank's own blocks of the sequence, from its first on. Blocks
    ``[first_block, num_blocks)`` of the sequence are to come, the last of which ends with token
    `num_tokens`; a rank writes nowhere else.
    """

    transfer_id: str
    blocks: tuple[int, ...]
    first_block: int
    num_blocks: int
    num_tokens: int
    transport: Transport


@dataclass(frozen=True, slots=True)
class Arrived:
    """All of one rank's share of a transfer is there. Payload bytes; nanoseconds since its first
    frame, and since its last one when this was made."""

    bytes: int
    frames: int
    transfer_ns: int
    since_last_ns: int


class ReceivingRank(Protocol):
    """The receiving side of one rank."""

    def open(self, opening: Opening) -> None:
        """Take frames for it from now on. `InvalidArgument` where its id was used before, or where
        it makes no sense."""

    def close(self, transfer_id: str, reason: ErrorCode | None) -> Awaitable[None]:
        """Take no more, from now on; None for a committed one. Late frames are answered `reason`.

        The result may be ignored, or awaited, also more than once and by somebody who is then
        cancelled: until it is there, a sender that writes by itself may still be writing, and the
        blocks must not be reused. Idempotent."""

    async def missing(self, transfer_id: str) -> list[Region]:
        """What has not arrived, bounded; empty where all has (`ReceiverEvents.on_arrived` was
        called then). `NotFound` where the transfer is not open."""


class ReceiverEvents(Protocol):
    """Told on the leader's event loop what happens on the ranks of its replica.

    rank: of the replica.
    """

    def on_progress(self, rank: int, transfer_id: str) -> None:
        """Something new has arrived; at most a few times a second and transfer."""

    def on_arrived(self, rank: int, transfer_id: str, arrived: Arrived) -> None:
        """Once for each rank and transfer."""


class Fence(Protocol):
    """Keeps senders that write by themselves out of blocks that are no longer theirs."""

    def open(self, transfer_id: str) -> None:
        """From now on the transfer's senders may write. Called before any of them can know it."""

    def close(self, transfer_id: str) -> bool:
        """Let nobody begin to write any more; true once nobody can be writing. Asked again until
        it is."""


@dataclass(frozen=True, slots=True)
class PushStats:
    """What one rank sent for one transfer. bytes: payload, repeated frames included."""

    bytes: int
    frames: int
    resent_frames: int


@dataclass(frozen=True, slots=True)
class Missing:
    """What one receiving rank (within its group) has not got."""

    dst_rank: int
    region: Region


class SendingRank(Protocol):
    """The sending side of one rank; a push is known by the transfer id of its ticket."""

    def begin(self, ticket: Ticket, blocks: Sequence[int], timeout_s: float) -> None:
        """Start a push. `blocks`: the rank's own blocks of the sequence, from its first on; they
        stay as they are until the push is stopped. What does not fit is raised by `drain`."""

    def ready(self, transfer_id: str, tokens: int) -> None:
        """KV before position `tokens` is there in all layers of the rank. Steps that name the
        transfer in their rows say the same by themselves, layer by layer."""

    async def drain(self, transfer_id: str) -> PushStats:
        """Until all of this rank's share has been sent; all must be ready, or become so.

        Raises the typed error that ended the push."""

    async def resend(self, transfer_id: str, missing: Sequence[Missing]) -> PushStats:
        """Send again what of `missing` is this rank's share; the push so far."""

    async def stop(self, transfer_id: str) -> None:
        """End the push: nothing reads its blocks any more. Idempotent."""
