"""Which blocks a worker holds, on the wire: hashes go as one run of bytes a tier."""

from __future__ import annotations

from eastwest.blocks import HASH_BYTES, BlockHash
from eastwest.errors import InvalidArgument
from eastwest.kv_events import KvEvents, TierBlocks
from eastwest.types import Tier
from eastwest.v1 import worker_pb2 as worker
from eastwest.wire.workers import enum_from_wire


def kv_events_to_wire(events: KvEvents) -> worker.KvEvents:
    return worker.KvEvents(
        sequence=events.sequence,
        cleared=[tier.value for tier in events.cleared],
        removed=[_blocks_to_wire(blocks) for blocks in events.removed],
        stored=[_blocks_to_wire(blocks) for blocks in events.stored],
        whole=events.whole,
    )


def kv_events_from_wire(wire: worker.KvEvents) -> KvEvents:
    return KvEvents(
        wire.sequence,
        tuple(enum_from_wire(Tier, tier, "tier") for tier in wire.cleared),
        tuple(_blocks_from_wire(blocks) for blocks in wire.removed),
        tuple(_blocks_from_wire(blocks) for blocks in wire.stored),
        wire.whole,
    )


def _blocks_to_wire(blocks: TierBlocks) -> worker.TierBlocks:
    return worker.TierBlocks(tier=blocks.tier.value, hashes=b"".join(blocks.hashes))


def _blocks_from_wire(wire: worker.TierBlocks) -> TierBlocks:
    return TierBlocks(enum_from_wire(Tier, wire.tier, "tier"), hashes_from_wire(wire.hashes))


def hashes_from_wire(run: bytes) -> tuple[BlockHash, ...]:
    """The hashes in a run of bytes."""
    if len(run) % HASH_BYTES:
        raise InvalidArgument(
            f"block hashes take {len(run)} bytes; allowed: a multiple of {HASH_BYTES}"
        )
    return tuple(BlockHash(run[at : at + HASH_BYTES]) for at in range(0, len(run), HASH_BYTES))
