"""The open transfers of one rank of one worker incarnation: what to do with each frame.

A transfer is *open* from the reservation on. It ends *committed* (every cell of its region has
arrived and the sender said so), *aborted* by the sender, or *closed* by the worker (lease ran
out, request cancelled). An ended transfer takes no frame any more: its blocks may belong to
somebody else. Ended ones are remembered, up to a bound, so that a repeated commit gets the same
answer and a late frame a fitting error.

Everything here runs on one thread. The only effect outside is `KVMemory.write`.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from eastwest.errors import (
    ErrorCode,
    InvalidArgument,
    LeaseExpired,
    StaleEpoch,
    error_from,
)
from eastwest.ports import KVMemory
from eastwest.types import SampledToken
from kv_transfer.coverage import Coverage
from kv_transfer.frame_codec import Frame
from kv_transfer.ledger import Ledger, Owner
from kv_transfer.plan import Region

ENDED_MAX = 4096


class FrameResult(enum.Enum):
    """What became of a frame that was not refused."""

    ACCEPTED = enum.auto()
    DUPLICATE = enum.auto()  # all of it had arrived before; nothing is written
    CORRUPT = enum.auto()  # its check failed; nothing is written, it must come again


@dataclass(frozen=True, slots=True)
class TransferStats:
    """A committed transfer, in payload bytes and nanoseconds of this process's clock.

    transfer_ns: first frame to last accepted frame. import_ns: from there to the commit.
    """

    bytes: int
    frames: int
    transfer_ns: int
    import_ns: int


class TransferOwner(Protocol):
    """The worker that reserved the blocks. Called on the receiver's thread, never reentrantly."""

    def on_progress(self, transfer_id: str) -> None:
        """A frame brought something new; the lease in the ledger is renewed already."""

    def on_committed(
        self, transfer_id: str, first_token: SampledToken, finished: bool, stats: TransferStats
    ) -> None:
        """Once per transfer: the KV is complete and nothing will write to it any more.

        `finished`: the first token is also the last; there is nothing to decode.
        """

    def on_aborted(self, transfer_id: str, reason: str) -> None:
        """Once per transfer: the sender gave up; nothing will write to the blocks any more."""


@dataclass(slots=True)
class _Transfer:
    owner: Owner
    blocks: tuple[int, ...]
    region: Region
    coverage: Coverage
    bytes: int = 0
    frames: int = 0
    first_frame_ns: int | None = None
    last_frame_ns: int | None = None

    def stats(self, now_ns: int) -> TransferStats:
        last = now_ns if self.last_frame_ns is None else self.last_frame_ns
        first = last if self.first_frame_ns is None else self.first_frame_ns
        return TransferStats(self.bytes, self.frames, last - first, now_ns - last)


class Receiver:
    """Transfers into `kv`, whose leases are kept in `ledger`.

    epoch: this incarnation. lease_ns: how long a lease runs from the last new frame on.
    """

    def __init__(
        self, kv: KVMemory, ledger: Ledger, owner: TransferOwner, *, epoch: int, lease_ns: int
    ) -> None:
        self._kv = kv
        self._ledger = ledger
        self._owner = owner
        self._epoch = epoch
        self._lease_ns = lease_ns
        self._open: dict[str, _Transfer] = {}
        # Why a transfer ended; None where it was committed. Oldest first.
        self._ended: dict[str, ErrorCode | None] = {}

    @property
    def transfers_open(self) -> int:
        return len(self._open)

    def is_open(self, transfer_id: str) -> bool:
        return transfer_id in self._open

    def open(
        self,
        transfer_id: str,
        owner: Owner,
        *,
        blocks: Sequence[int],
        first_block: int,
        num_blocks: int,
    ) -> None:
        """Take frames for blocks ``[first_block, num_blocks)`` of a sequence.

        `blocks` are the sequence's physical blocks from its first on; the ones to be written are
        held by `owner` in the ledger, and by nobody else. A transfer id is never used twice.
        """
        assert transfer_id not in self._open, f"transfer {transfer_id} is open already"
        assert transfer_id not in self._ended, f"transfer {transfer_id} has ended already"
        assert 0 <= first_block <= num_blocks <= len(blocks), "blocks outside the sequence"
        written = blocks[first_block:num_blocks]
        assert set(written) <= set(self._ledger.blocks(owner)), f"blocks outside {owner}"
        shard = self._kv.shard
        region = Region(shard.layers, range(first_block, num_blocks), shard.heads)
        self._open[transfer_id] = _Transfer(owner, tuple(blocks), region, Coverage(region))

    def accept(self, frame: Frame, now_ns: int) -> FrameResult:
        """Write the payload where its header says, unless it is there already or damaged.

        Errors, with nothing written: `StaleEpoch`, `NotFound`, `LeaseExpired` or what ended the
        transfer, `InvalidArgument` where the header names KV outside the reservation or the
        payload has another size than the KV it names. The check comes first: a frame that fails
        it says nothing reliable, not even whose it is.
        """
        if not frame.intact():
            return FrameResult.CORRUPT
        header, region = frame.header, frame.header.region
        self._check_epoch(header.epoch)
        transfer = self._find(header.transfer_id, now_ns)
        _check_inside(region, transfer.region)
        expected = self._kv.spec.slice_bytes(
            len(region.blocks) * self._kv.block_tokens, len(region.layers), len(region.heads)
        )
        if frame.payload.nbytes != expected:
            raise InvalidArgument(
                f"a frame's payload has {frame.payload.nbytes} bytes; allowed: the {expected} "
                f"of the KV it names"
            )
        duplicate = transfer.coverage.contains(region.layers, region.blocks, region.heads)
        if not duplicate:
            blocks = transfer.blocks[region.blocks.start : region.blocks.stop]
            self._kv.write(blocks, region.layers, region.heads, frame.payload)
            transfer.coverage.add(region.layers, region.blocks, region.heads)
            transfer.bytes += expected
            transfer.frames += 1
            transfer.last_frame_ns = now_ns
            if transfer.first_frame_ns is None:
                transfer.first_frame_ns = now_ns
            # Only what is new counts as progress, so that no sender can hold blocks for ever.
            self._ledger.renew(transfer.owner, now_ns + self._lease_ns)
            self._owner.on_progress(header.transfer_id)
        return FrameResult.DUPLICATE if duplicate else FrameResult.ACCEPTED

    def commit(
        self,
        transfer_id: str,
        epoch: int,
        first_token: SampledToken,
        *,
        finished: bool,
        now_ns: int,
    ) -> list[Region]:
        """What is missing, or nothing: then the transfer is committed. Idempotent.

        Raises like `accept`. A commit that is refused leaves the transfer open.
        """
        self._check_epoch(epoch)
        if transfer_id in self._ended and self._ended[transfer_id] is None:
            return []
        transfer = self._find(transfer_id, now_ns)
        if not transfer.coverage.complete:
            return transfer.coverage.missing()
        self._end(transfer_id, None)
        self._owner.on_committed(transfer_id, first_token, finished, transfer.stats(now_ns))
        return []

    def abort(self, transfer_id: str, epoch: int, reason: str) -> None:
        """The sender gives up. Idempotent; without effect on a transfer that is not open."""
        self._check_epoch(epoch)
        if transfer_id in self._open:
            self._end(transfer_id, ErrorCode.NOT_FOUND)
            self._owner.on_aborted(transfer_id, reason)

    def close(self, transfer_id: str, reason: ErrorCode = ErrorCode.NOT_FOUND) -> None:
        """The worker gives up, `reason` being what late frames are answered. Idempotent.

        From here on nothing writes to the transfer's blocks. No callback is made.
        """
        if transfer_id in self._open:
            self._end(transfer_id, reason)

    def check_integrity(self) -> None:
        """Assert that every open transfer writes only to blocks that its owner holds."""
        for transfer_id, transfer in self._open.items():
            held = set(self._ledger.blocks(transfer.owner))
            written = transfer.region.blocks
            outside = set(transfer.blocks[written.start : written.stop]) - held
            assert not outside, f"transfer {transfer_id} writes to blocks it does not hold"

    def _find(self, transfer_id: str, now_ns: int) -> _Transfer:
        transfer = self._open.get(transfer_id)
        if transfer is None:
            code = self._ended.get(transfer_id) or ErrorCode.NOT_FOUND
            raise error_from(code, f"transfer {transfer_id!r} is not open")
        if self._ledger[transfer.owner].expired(now_ns):
            raise LeaseExpired(f"the lease of transfer {transfer_id!r} has run out")
        return transfer

    def _check_epoch(self, epoch: int) -> None:
        if epoch != self._epoch:
            raise StaleEpoch(f"epoch is {epoch}; allowed: this incarnation's, {self._epoch}")

    def _end(self, transfer_id: str, reason: ErrorCode | None) -> None:
        del self._open[transfer_id]
        self._ended[transfer_id] = reason
        if len(self._ended) > ENDED_MAX:
            del self._ended[next(iter(self._ended))]


def _check_inside(region: Region, reserved: Region) -> None:
    parts = (
        ("layers", region.layers, reserved.layers),
        ("blocks", region.blocks, reserved.blocks),
        ("heads", region.heads, reserved.heads),
    )
    for name, part, whole in parts:
        if not part or part.start < whole.start or part.stop > whole.stop:
            raise InvalidArgument(
                f"a frame names {name} {part.start} to {part.stop}; allowed: inside "
                f"{whole.start} to {whole.stop}, at least one"
            )
