"""The open transfers of one rank: what to do with each frame.

A transfer is *open* from the reservation on, and *arrived* once every cell of its region has come,
which the leader of the replica is told. It ends *closed*: committed, aborted or given up, as the
leader decides. A closed transfer takes no frame any more: its blocks may belong to somebody else.
Ended ones are remembered, up to a bound, so that a late frame gets a fitting error.

Everything here runs on one thread. The only effect outside is `KVMemory.write`.
"""

from __future__ import annotations

import enum
from collections.abc import Generator
from dataclasses import dataclass, field

from eastwest.blocks import blocks_for
from eastwest.clock import NS_PER_S
from eastwest.errors import ErrorCode, InvalidArgument, NotFound, StaleEpoch, error_from
from eastwest.messages import Transport
from eastwest.paged_kv import PagedKV
from eastwest.ports import KVMemory
from kv_transfer.coverage import Coverage
from kv_transfer.digest import digest, stretches
from kv_transfer.frame_codec import Frame, checksum_seed
from kv_transfer.landing import Landing
from kv_transfer.plan import Region, holds, meets, tokens_of
from kv_transfer.ranks import Arrived, Opening, ReceiverEvents

ENDED_MAX = 4096
# Shorter stretches, on average, cost more in reads from the socket than in copying.
LANDING_BYTES_MIN = 1 << 17


class FrameResult(enum.Enum):
    """What became of a frame that was not refused."""

    ACCEPTED = enum.auto()
    DUPLICATE = enum.auto()  # all of it had arrived before; nothing is written
    CORRUPT = enum.auto()  # its check failed; nothing counts as written, it must come again


class Closed:
    """Awaitable, and there already."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


@dataclass(slots=True)
class _Transfer:
    opening: Opening
    region: Region
    coverage: Coverage
    bytes: int = 0
    frames: int = 0
    first_frame_ns: int = 0
    told_ns: int = 0  # when the leader last heard of progress
    landings: list[Landing] = field(default_factory=list)

    def tokens(self, blocks: range, block_tokens: int) -> range:
        """Positions of the tokens that are to come in `blocks`, from the first of them on."""
        inside = tokens_of(blocks, block_tokens, self.opening.num_tokens)
        return range(len(inside))


class Receiver:
    """Transfers into `kv`, the paged KV of rank `rank` of the replica. Is a `ReceivingRank`.

    epoch: this incarnation. progress_ns: `events` hear of progress at most so often.
    """

    def __init__(
        self,
        kv: KVMemory,
        events: ReceiverEvents,
        *,
        rank: int,
        epoch: int,
        progress_ns: int = NS_PER_S,
    ) -> None:
        self._kv = kv
        self._events = events
        self._rank = rank
        self._epoch = epoch
        self._progress_ns = progress_ns
        self._open: dict[str, _Transfer] = {}
        # Why a transfer ended; None where it was committed. Oldest first.
        self._ended: dict[str, ErrorCode | None] = {}

    @property
    def transfers_open(self) -> int:
        return len(self._open)

    def is_open(self, transfer_id: str) -> bool:
        return transfer_id in self._open

    def open(self, opening: Opening) -> None:
        """See `ReceivingRank.open`. Where nothing is to come, it has arrived at once."""
        transfer_id, blocks = opening.transfer_id, range(opening.first_block, opening.num_blocks)
        if transfer_id in self._open or transfer_id in self._ended:
            raise InvalidArgument(f"transfer {transfer_id!r} was opened before; allowed: once")
        _check_opening(opening, self._kv)
        shard = self._kv.shard
        region = Region(shard.layers, blocks, shard.heads)
        self._open[transfer_id] = _Transfer(opening, region, Coverage(region))
        if not blocks:
            self._events.on_arrived(self._rank, transfer_id, Arrived(0, 0, 0, 0))

    def close(self, transfer_id: str, reason: ErrorCode | None) -> Closed:
        """See `ReceivingRank.close`: this writes nothing more, from now on. Who lets senders
        write by themselves waits for them too (`kv_transfer.closing`)."""
        if transfer_id in self._open:
            for landing in self._open.pop(transfer_id).landings:
                landing.revoke()
            self._ended[transfer_id] = reason
            if len(self._ended) > ENDED_MAX:
                del self._ended[next(iter(self._ended))]
        return Closed()

    async def missing(self, transfer_id: str) -> list[Region]:
        """See `ReceivingRank.missing`."""
        return self._find(transfer_id).coverage.missing()

    def accept(self, frame: Frame, now_ns: int) -> FrameResult:
        """Take what a frame brings, unless it is there already or damaged.

        Its payload is written where its header says. A frame `in_place` has none: what lies in
        the blocks is checked. Errors, with nothing written: `StaleEpoch`, `NotFound` or what
        ended the transfer, `InvalidArgument` where the header names KV outside the reservation,
        the payload has another size than the KV it names, or nobody may write by itself. The
        check of a payload comes first: a frame that fails it says nothing reliable, not even
        whose it is.
        """
        header, region = frame.header, frame.header.region
        if not header.in_place and not frame.intact():
            return FrameResult.CORRUPT
        if header.epoch != self._epoch:
            raise StaleEpoch(f"epoch is {header.epoch}; allowed: this incarnation's, {self._epoch}")
        transfer = self._find(header.transfer_id)
        _check_inside(region, transfer.region)
        tokens = transfer.tokens(region.blocks, self._kv.block_tokens)
        size = self._kv.spec.slice_bytes(len(tokens), len(region.layers), len(region.heads))
        _check_payload(frame, 0 if header.in_place else size, transfer.opening.transport)
        if transfer.coverage.contains(region.layers, region.blocks, region.heads):
            return FrameResult.DUPLICATE
        blocks = transfer.opening.blocks[region.blocks.start : region.blocks.stop]
        # What counts must not be written to by a frame that is still on its way to the same cells.
        for landing in transfer.landings:
            if meets(landing.frame.header.region, region):
                landing.revoke()
        if header.in_place:
            if digest(self._kv, blocks, region, tokens, checksum_seed(header)) != frame.checksum:
                return FrameResult.CORRUPT
        else:
            self._kv.write(blocks, region.layers, region.heads, frame.payload, tokens)
        self._count(transfer, region, size, now_ns)
        return FrameResult.ACCEPTED

    def land(self, frame: Frame, size: int) -> Landing | None:
        """Where the payload, of `size` bytes, of a frame that has none yet can be received to.

        None for any that `accept` would refuse, and where its place is not free or not in long
        stretches: such a frame goes to `accept` once it is there. Until `landed`, or until the
        landing is revoked, its cells take nothing else.
        """
        header, region = frame.header, frame.header.region
        transfer = self._open.get(header.transfer_id)
        if transfer is None or header.epoch != self._epoch or header.in_place:
            return None
        if not holds(transfer.region, region) or transfer.coverage.touches(region):
            return None
        if any(meets(other.frame.header.region, region) for other in transfer.landings):
            return None
        tokens = transfer.tokens(region.blocks, self._kv.block_tokens)
        blocks = transfer.opening.blocks[region.blocks.start : region.blocks.stop]
        if not isinstance(self._kv, PagedKV):
            return None
        targets = stretches(self._kv, blocks, region, tokens)
        if len(targets) * LANDING_BYTES_MIN > size:
            return None
        landing = Landing(frame, targets)
        if not landing.left or landing.size != size:
            return None
        transfer.landings = [kept for kept in transfer.landings if not kept.revoked]
        transfer.landings.append(landing)
        return landing

    def landed(self, landing: Landing, now_ns: int) -> FrameResult:
        """All of a payload is there: check and count it. Raises what ended the transfer."""
        frame, region = landing.frame, landing.frame.header.region
        transfer = self._find(frame.header.transfer_id)
        if landing.revoked:
            return FrameResult.CORRUPT
        transfer.landings.remove(landing)
        if not landing.intact():
            return FrameResult.CORRUPT
        self._count(transfer, region, landing.size, now_ns)
        return FrameResult.ACCEPTED

    def check_integrity(self) -> None:
        """Assert that no two open transfers write to one block."""
        written: set[int] = set()
        for transfer in self._open.values():
            opening = transfer.opening
            blocks = opening.blocks[opening.first_block : opening.num_blocks]
            assert written.isdisjoint(blocks), f"{opening.transfer_id} shares blocks"
            written.update(blocks)

    def _count(self, transfer: _Transfer, region: Region, size: int, now_ns: int) -> None:
        """A region has come."""
        transfer.coverage.add(region.layers, region.blocks, region.heads)
        transfer.bytes += size
        self._tell(transfer, now_ns)

    def _tell(self, transfer: _Transfer, now_ns: int) -> None:
        """A frame has brought something new."""
        transfer.frames += 1
        first = transfer.frames == 1
        if first:
            transfer.first_frame_ns = now_ns
        transfer_id = transfer.opening.transfer_id
        if transfer.coverage.complete:
            took_ns = now_ns - transfer.first_frame_ns
            arrived = Arrived(transfer.bytes, transfer.frames, took_ns, 0)
            self._events.on_arrived(self._rank, transfer_id, arrived)
        elif first or now_ns - transfer.told_ns >= self._progress_ns:
            transfer.told_ns = now_ns
            self._events.on_progress(self._rank, transfer_id)

    def _find(self, transfer_id: str) -> _Transfer:
        transfer = self._open.get(transfer_id)
        if transfer is None:
            code = self._ended.get(transfer_id) or NotFound.code
            raise error_from(code, f"transfer {transfer_id!r} is not open")
        return transfer


def _check_opening(opening: Opening, kv: KVMemory) -> None:
    first, stop, held = opening.first_block, opening.num_blocks, len(opening.blocks)
    if not 0 <= first <= stop <= held:
        raise InvalidArgument(f"blocks {first} to {stop} are to come; allowed: inside 0 to {held}")
    if first < stop and blocks_for(opening.num_tokens, kv.block_tokens) != stop:
        raise InvalidArgument(f"token {opening.num_tokens} does not end in block {stop - 1}")
    if not all(0 <= block < kv.num_blocks for block in opening.blocks):
        raise InvalidArgument(f"a block is outside 0 to {kv.num_blocks - 1}")


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


def _check_payload(frame: Frame, expected: int, transport: Transport) -> None:
    if frame.header.in_place and transport is Transport.GRPC:
        raise InvalidArgument(
            f"a frame of transfer {frame.header.transfer_id!r} is in place; allowed: frames with "
            f"a payload, since KV comes by {transport}"
        )
    if frame.payload.nbytes != expected:
        raise InvalidArgument(
            f"a frame's payload has {frame.payload.nbytes} bytes; allowed: the {expected} of the "
            f"KV it names"
        )
