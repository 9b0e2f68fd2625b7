"""The seam between sending KV and the ways it can travel.

Whatever the way, the receiver learns of each region by one frame on the push stream, in any
order, and its coverage map decides when a transfer is complete. Over gRPC the frame carries the
payload. A transport that writes by itself (shared memory, RDMA) has put the payload into the
receiver's reserved blocks when the frame leaves, which carries only the header: the receiver
checks what lies in its blocks against the checksum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from eastwest.messages import RankEndpoint, Ticket, Transport
from eastwest.paged_kv import Blocks, PagedKV
from eastwest.ports import Buffer
from kv_transfer.frame_codec import Header, Message
from kv_transfer.plan import Region
from kv_transfer.ranks import Fence


class Outgoing(Protocol):
    """What one push has to send to one receiving rank, in the receiver's blocks and dtype.

    Where it `converts`, it is read in a thread (`in_thread`); else at once, which takes less time
    than passing it to a thread and back."""

    @property
    def converts(self) -> bool:
        """Whether the receiver's dtype is another one, so that reading takes tens of
        milliseconds."""

    def read(self, region: Region) -> Buffer:
        """The canonical payload of a region: one new buffer."""

    def parts(self, region: Region) -> Sequence[Buffer]:
        """The same in flat pieces, in order: views of where it lies where those are long, which
        stay as they are until the push is stopped; else one new buffer."""

    def copy_to(self, pool: PagedKV, blocks: Blocks, region: Region, seed: int) -> int:
        """Write the same straight into the receiver's mapped pool, where `blocks` are the
        region's, and return its xxh3_64 with `seed`. May be called in a thread."""


class Delivery(Protocol):
    """One transfer's way to one receiving rank. Used by one task at a time."""

    async def pack(self, header: Header, outgoing: Outgoing) -> Message:
        """The message that tells the receiver of ``header.region``; see above.

        Raises `TransferFailed`, `Unavailable` or `LeaseExpired` where the way is closed."""

    def settle(self) -> None:
        """All that was packed has been sent: nothing is written before the next `pack`, so that
        the receiver need not wait for this sender to close the transfer."""

    async def close(self) -> None:
        """Nothing of the sender's blocks is read any more, and nothing new is written. Idempotent,
        never raises."""


class TransportProvider(Protocol):
    """One transport, as this process has it. Whoever made it closes it, once every delivery is
    closed."""

    @property
    def transport(self) -> Transport: ...

    def deliver(self, ticket: Ticket, endpoint: RankEndpoint) -> Delivery:
        """The way to one rank. Raises `TransferFailed` where it turns out not to exist."""

    def close(self) -> None:
        """Let go of every receiver. Idempotent, never raises."""


class Target(Protocol):
    """The paged KV of one rank, as senders find it that write to it by themselves."""

    @property
    def descriptor(self) -> str:
        """For `RankEndpoint.memory`."""

    @property
    def fence(self) -> Fence:
        """Opens and closes transfers into it."""

    def shut(self) -> None:
        """Nobody can find it, or begin to write to it, any more. The memory itself stays.
        Idempotent."""
