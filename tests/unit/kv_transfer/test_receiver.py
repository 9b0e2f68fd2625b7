"""What a receiver does with frames, what it tells its leader, and what it never writes."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from xxhash import xxh3_64_intdigest

from eastwest.errors import (
    Cancelled,
    EastWestError,
    ErrorCode,
    InvalidArgument,
    LeaseExpired,
    NotFound,
    StaleEpoch,
)
from eastwest.layout import KVSpec, ParallelLayout, shard_of
from eastwest.messages import Transport
from eastwest.testing.kv_memory import ArrayKVMemory
from kv_transfer.frame_codec import Frame, Header, checksum_seed, decode, encode, encode_in_place
from kv_transfer.plan import Region
from kv_transfer.ranks import Arrived, Opening
from kv_transfer.receiver import ENDED_MAX, FrameResult, Receiver
from tests.unit.kv_transfer.builders import (
    EPOCH,
    NUM_BLOCKS,
    PROGRESS_NS,
    RANK,
    TRANSFER,
    Receiving,
    RecordingEvents,
    a_frame,
    a_memory,
    a_payload,
    an_opening,
)

ALL = Receiving.region
FIRST_LAYER = Region(range(1), ALL.blocks, ALL.heads)
# Blocks 4 and 5 of the memory are written, all but the second token of the latter.
WRITTEN = range(3)


def missing(rig: Receiving, transfer_id: str = TRANSFER) -> list[Region]:
    return asyncio.run(rig.receiver.missing(transfer_id))


def test_a_frame_lands_in_the_reserved_blocks_and_nowhere_else() -> None:
    rig, source = Receiving(), a_memory(seed=3)
    payload = bytes(source.read([0, 1], ALL.layers, ALL.heads, WRITTEN))
    assert rig.receiver.accept(a_frame(ALL, payload=payload), 0) is FrameResult.ACCEPTED
    assert rig.memory.read([4, 5], ALL.layers, ALL.heads, WRITTEN) == payload
    expected = a_memory()
    expected.write([4, 5], ALL.layers, ALL.heads, payload, WRITTEN)
    assert (rig.memory.buffer == expected.buffer).all()


def test_the_last_block_brings_only_the_tokens_that_exist() -> None:
    rig = Receiving()
    last = Region(ALL.layers, range(2, 3), ALL.heads)
    assert rig.receiver.accept(a_frame(last), 0) is FrameResult.ACCEPTED
    assert rig.memory.read([5], ALL.layers, ALL.heads, range(1)) == a_payload(last)
    assert not any(rig.memory.read([5], ALL.layers, ALL.heads, range(1, 2)))


def test_the_leader_is_told_once_that_all_has_arrived() -> None:
    rig = Receiving()
    rest = Region(range(1, 4), ALL.blocks, ALL.heads)
    rig.receiver.accept(a_frame(FIRST_LAYER), 10)
    rig.receiver.accept(a_frame(rest), 25)
    rig.receiver.accept(a_frame(rest), 30)
    arrived = Arrived(len(a_payload(ALL)), frames=2, transfer_ns=15, since_last_ns=0)
    assert rig.events.arrived == [(RANK, TRANSFER, arrived)]
    assert missing(rig) == []


def test_what_is_missing_is_named() -> None:
    rig = Receiving()
    rig.receiver.accept(a_frame(FIRST_LAYER), 0)
    assert missing(rig) == [Region(range(1, 4), ALL.blocks, ALL.heads)]
    assert rig.events.arrived == []


def test_where_nothing_is_to_come_it_has_arrived_at_once() -> None:
    rig = Receiving()
    rig.receiver.open(an_opening("t2", first_block=3))
    assert rig.events.arrived == [(RANK, "t2", Arrived(0, 0, 0, 0))]
    assert missing(rig, "t2") == []


def test_the_leader_hears_of_progress_now_and_then() -> None:
    rig = Receiving()
    heard = []
    for layer, now in enumerate((5, 5 + PROGRESS_NS - 1, 5 + PROGRESS_NS)):
        rig.receiver.accept(a_frame(Region(range(layer, layer + 1), ALL.blocks, ALL.heads)), now)
        heard.append(len(rig.events.progress))
    assert heard == [1, 1, 2]
    assert rig.events.progress[0] == (RANK, TRANSFER)


def test_a_repeated_frame_is_neither_written_nor_progress() -> None:
    rig = Receiving()
    rig.receiver.accept(a_frame(FIRST_LAYER), 0)
    again = a_frame(FIRST_LAYER, fill=2)
    assert rig.receiver.accept(again, 10 * PROGRESS_NS) is FrameResult.DUPLICATE
    written = rig.memory.read([4, 5], range(1), ALL.heads, WRITTEN)
    assert written == a_payload(FIRST_LAYER)
    assert len(rig.events.progress) == 1


def test_a_partly_new_frame_is_accepted() -> None:
    rig = Receiving()
    rig.receiver.accept(a_frame(FIRST_LAYER), 0)
    assert rig.receiver.accept(a_frame(ALL), 0) is FrameResult.ACCEPTED
    assert missing(rig) == []


def test_a_damaged_frame_is_counted_and_not_written() -> None:
    rig = Receiving()
    frame = a_frame(ALL)
    damaged = replace(frame, payload=memoryview(b"\x02" + bytes(frame.payload[1:])))
    assert rig.receiver.accept(damaged, 0) is FrameResult.CORRUPT
    assert rig.untouched()
    assert rig.events.progress == []


def test_good_bytes_under_a_damaged_header_are_not_written() -> None:
    rig = Receiving()
    frame = a_frame(FIRST_LAYER)
    moved = Region(range(1, 2), ALL.blocks, ALL.heads)
    damaged = replace(frame, header=replace(frame.header, region=moved))
    assert rig.receiver.accept(damaged, 0) is FrameResult.CORRUPT
    assert rig.untouched()


OUTSIDE = [
    Region(range(4, 5), ALL.blocks, ALL.heads),
    Region(range(3, 5), ALL.blocks, ALL.heads),
    Region(range(0), ALL.blocks, ALL.heads),
    Region(ALL.layers, range(1), ALL.heads),
    Region(ALL.layers, range(2, 4), ALL.heads),
    Region(ALL.layers, range(2**32 - 1, 2**33 - 2), ALL.heads),
    Region(ALL.layers, ALL.blocks, range(1, 3)),
    Region(ALL.layers, ALL.blocks, range(2, 2)),
]


@pytest.mark.parametrize("region", OUTSIDE)
def test_kv_outside_the_reservation_is_refused(region: Region) -> None:
    rig = Receiving()
    with pytest.raises(InvalidArgument, match="allowed: inside"):
        rig.receiver.accept(a_frame(region, payload=b"x" * 64), 0)
    assert rig.untouched()


@pytest.mark.parametrize("change", [-1, 1])
def test_a_payload_of_another_size_is_refused(change: int) -> None:
    rig = Receiving()
    size = len(a_payload(ALL))
    with pytest.raises(InvalidArgument, match=f"allowed: the {size}"):
        rig.receiver.accept(a_frame(ALL, payload=b"x" * (size + change)), 0)
    assert rig.untouched()
    assert missing(rig) == [ALL]


@pytest.mark.parametrize("epoch", [EPOCH - 1, EPOCH + 1])
def test_another_incarnation_is_refused(epoch: int) -> None:
    rig = Receiving()
    with pytest.raises(StaleEpoch):
        rig.receiver.accept(a_frame(ALL, epoch=epoch), 0)
    assert rig.untouched()


def test_an_unknown_transfer_is_not_found() -> None:
    rig = Receiving()
    with pytest.raises(NotFound):
        rig.receiver.accept(a_frame(ALL, transfer_id="t2"), 0)
    with pytest.raises(NotFound):
        missing(rig, "t2")
    assert rig.untouched()


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        (None, NotFound),
        (ErrorCode.NOT_FOUND, NotFound),
        (ErrorCode.LEASE_EXPIRED, LeaseExpired),
        (ErrorCode.CANCELLED, Cancelled),
    ],
)
async def test_a_closed_transfer_never_writes_and_says_why(
    reason: ErrorCode | None, error: type[EastWestError]
) -> None:
    rig = Receiving()
    await rig.receiver.close(TRANSFER, reason)
    await rig.receiver.close(TRANSFER, ErrorCode.NOT_FOUND)
    with pytest.raises(error):
        rig.receiver.accept(a_frame(ALL), 0)
    with pytest.raises(error):
        await rig.receiver.missing(TRANSFER)
    assert rig.untouched()
    assert rig.receiver.transfers_open == 0


def test_ended_transfers_are_remembered_up_to_a_bound() -> None:
    rig = Receiving()
    rig.receiver.close(TRANSFER, ErrorCode.CANCELLED)
    for i in range(ENDED_MAX):
        with pytest.raises(Cancelled):
            rig.receiver.accept(a_frame(ALL), 0)
        rig.receiver.open(an_opening(f"x{i}"))
        rig.receiver.close(f"x{i}", None)
    with pytest.raises(NotFound):
        rig.receiver.accept(a_frame(ALL), 0)


def test_two_transfers_into_one_block_are_a_programmer_error() -> None:
    rig = Receiving()
    rig.receiver.check_integrity()
    rig.receiver.open(an_opening("t2"))
    with pytest.raises(AssertionError, match="t2 shares blocks"):
        rig.receiver.check_integrity()


@pytest.mark.parametrize(
    "change",
    [
        {"transfer_id": TRANSFER},
        {"first_block": 4},
        {"num_blocks": 4},
        {"num_tokens": 4},
        {"num_tokens": 7},
        {"blocks": (9, 4, NUM_BLOCKS)},
    ],
)
def test_an_opening_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    rig = Receiving()
    with pytest.raises(InvalidArgument):
        rig.receiver.open(replace(an_opening("t2"), **change))  # type: ignore[arg-type]


# Frames whose payload has been written by the sender itself.


def in_place(region: Region, payload: bytes, **changes: object) -> Frame:
    header = Header(TRANSFER, EPOCH, 0, region, in_place=True)
    checksum = xxh3_64_intdigest(payload, checksum_seed(header))
    frame = decode(encode_in_place(header, checksum))
    return replace(frame, header=replace(header, **changes))  # type: ignore[arg-type]


def one_sided() -> tuple[Receiving, bytes]:
    """A rig into whose blocks a sender has written, and what."""
    rig = Receiving(Transport.SHARED_MEMORY)
    payload = bytes(a_memory(seed=3).read([0, 1], ALL.layers, ALL.heads, WRITTEN))
    rig.memory.write([4, 5], ALL.layers, ALL.heads, payload, WRITTEN)
    return rig, payload


@pytest.mark.parametrize("stretch", [0, 1 << 20], ids=["piece by piece", "whole"])
def test_what_lies_in_the_blocks_is_checked(stretch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kv_transfer.digest.STRETCH_BYTES_MIN", stretch)
    rig, payload = one_sided()
    assert rig.receiver.accept(in_place(ALL, payload), 5) is FrameResult.ACCEPTED
    assert rig.receiver.accept(in_place(ALL, payload), 6) is FrameResult.DUPLICATE
    assert rig.events.arrived == [(RANK, TRANSFER, Arrived(len(payload), 1, 0, 0))]
    assert rig.read([4]) == payload_of(payload, range(2))


def payload_of(payload: bytes, tokens: range) -> bytes:
    """Some of the three tokens of a payload over all layers and heads."""
    memory = a_memory()
    memory.write([0, 1], ALL.layers, ALL.heads, payload, WRITTEN)
    return bytes(memory.read([0, 1], ALL.layers, ALL.heads, tokens))


def test_other_bytes_in_the_blocks_are_noticed() -> None:
    rig, payload = one_sided()
    rig.memory.write([5], range(3, 4), range(1, 2), b"\0" * 16, range(1))
    assert rig.receiver.accept(in_place(ALL, payload), 5) is FrameResult.CORRUPT
    assert missing(rig) == [ALL]


def test_nobody_writes_by_itself_into_a_transfer_that_comes_by_frames() -> None:
    rig = Receiving(Transport.GRPC)
    with pytest.raises(InvalidArgument, match="allowed: frames with a payload"):
        rig.receiver.accept(in_place(ALL, bytes(len(a_payload(ALL)))), 0)
    assert missing(rig) == [ALL]


def test_frames_with_a_payload_are_always_taken() -> None:
    rig = Receiving(Transport.SHARED_MEMORY)
    assert rig.receiver.accept(a_frame(ALL), 0) is FrameResult.ACCEPTED


def test_a_frame_in_place_with_a_payload_is_refused() -> None:
    rig, payload = one_sided()
    frame = replace(in_place(ALL, payload), payload=memoryview(b"x"))
    with pytest.raises(InvalidArgument, match="1 bytes; allowed: the 0"):
        rig.receiver.accept(frame, 0)


@pytest.mark.parametrize("region", OUTSIDE)
def test_a_frame_in_place_outside_the_reservation_is_refused(region: Region) -> None:
    rig, payload = one_sided()
    with pytest.raises(InvalidArgument, match="allowed: inside"):
        rig.receiver.accept(in_place(region, payload), 0)


@pytest.mark.parametrize(
    ("change", "error"), [({"epoch": EPOCH - 1}, StaleEpoch), ({"transfer_id": "t9"}, NotFound)]
)
def test_a_frame_in_place_of_somebody_else_is_refused(
    change: dict[str, object], error: type[EastWestError]
) -> None:
    rig, payload = one_sided()
    with pytest.raises(error):
        rig.receiver.accept(in_place(ALL, payload, **change), 0)


def test_what_was_checked_in_place_is_not_written_over_by_a_frame_still_under_way() -> None:
    spec = KVSpec(num_layers=1, num_kv_heads=1, key_dim=64, value_dim=0, dtype="float32")
    memory = ArrayKVMemory(spec, shard_of(spec, ParallelLayout(), 0), 1, 512)
    memory.fill(1)
    events = RecordingEvents()
    receiver = Receiver(memory, events, rank=RANK, epoch=EPOCH)
    receiver.open(Opening(TRANSFER, (0,), 0, 1, 512, Transport.SHARED_MEMORY))
    region, written = Region(range(1), range(1), range(1)), bytes(memory.buffer)
    header = Header(TRANSFER, EPOCH, 0, region)
    slow = receiver.land(decode(encode(header, b"")), len(written))
    assert slow is not None
    assert receiver.accept(in_place(region, written), 0) is FrameResult.ACCEPTED
    slow.room()[:4] = b"\xff" * 4
    slow.filled(4)
    assert bytes(memory.buffer) == written
    assert receiver.landed(slow, 0) is FrameResult.CORRUPT
    assert len(events.arrived) == 1
