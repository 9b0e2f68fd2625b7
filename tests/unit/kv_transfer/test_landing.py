"""Payloads that are received straight into the blocks reserved for them."""

from __future__ import annotations

import numpy as np
import pytest

from eastwest import http2
from eastwest.clock import SystemClock
from eastwest.errors import ErrorCode, LeaseExpired
from eastwest.http2 import MessageBuffer
from eastwest.layout import KVSpec, ParallelLayout, shard_of
from eastwest.messages import Transport
from eastwest.testing.kv_memory import ArrayKVMemory
from kv_transfer.frame_codec import Header, encode
from kv_transfer.intake import FrameIntake
from kv_transfer.landing import Landing
from kv_transfer.plan import Region
from kv_transfer.ranks import Opening
from kv_transfer.receiver import Receiver
from tests.unit.kv_transfer.builders import RecordingEvents

SPEC = KVSpec(num_layers=1, num_kv_heads=1, key_dim=64, value_dim=64, dtype="float32")
BLOCK_TOKENS = 512  # 128 KiB of keys a block: long enough to land
NUM_BLOCKS = 6
BLOCKS = (2, 3, 4)
TOKENS = len(BLOCKS) * BLOCK_TOKENS
ONE = range(1)
SIZE = SPEC.slice_bytes(TOKENS, 1, 1)


class Rank:
    """A receiving rank with transfer t1 open, and streams to it."""

    def __init__(self) -> None:
        shard = shard_of(SPEC, ParallelLayout(), 0)
        self.memory = ArrayKVMemory(SPEC, shard, NUM_BLOCKS, BLOCK_TOKENS)
        self.events = RecordingEvents()
        self.receiver = Receiver(self.memory, self.events, rank=0, epoch=1)
        self.receiver.open(Opening("t1", BLOCKS, 0, len(BLOCKS), TOKENS, Transport.GRPC))

    def held(self, blocks: tuple[int, ...] = BLOCKS) -> bytes:
        return bytes(self.memory.read(blocks, ONE, ONE))

    @property
    def arrived(self) -> bool:
        return bool(self.events.arrived)


class Stream:
    """One push stream to a rank."""

    def __init__(self, rank: Rank) -> None:
        self.intake = FrameIntake(rank.receiver, SystemClock())
        self._buffer: MessageBuffer[Landing] = MessageBuffer(
            1 << 24, self.intake.take, self.intake.place, self.intake.placed
        )

    def feed(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            room = self._buffer.room()
            count = min(len(room), len(rest))
            room[:count] = rest[:count]
            self._buffer.filled(count)
            rest = rest[count:]


def payload(seed: int, blocks: range = range(len(BLOCKS))) -> bytes:
    return np.random.default_rng(seed).bytes(SIZE // len(BLOCKS) * len(blocks))


def message(data: bytes, blocks: range = range(len(BLOCKS)), transfer_id: str = "t1") -> bytes:
    framed = encode(Header(transfer_id, 1, 0, Region(ONE, blocks, ONE)), data)
    return http2.message_prefix(len(framed)) + framed


@pytest.mark.parametrize("cut", [1, 5, 100, 600, SIZE // 2, SIZE])
def test_a_payload_lands_however_it_is_cut(cut: int) -> None:
    rank, data = Rank(), payload(1)
    stream, sent = Stream(rank), message(payload(1)) * 2
    stream.feed(sent[:cut])
    stream.feed(sent[cut:])
    assert rank.held() == data
    assert rank.arrived
    assert rank.held((0, 1, 5)) == bytes(SIZE)
    receipt = stream.intake.receipt
    assert (receipt.accepted_frames, receipt.duplicate_frames) == (1, 1)
    assert receipt.accepted_bytes == SIZE


def test_what_has_landed_lies_where_the_rest_of_the_frame_will_go() -> None:
    rank, data = Rank(), payload(1)
    Stream(rank).feed(message(data)[: SIZE // 4])
    assert rank.held()[: SIZE // 8] == data[: SIZE // 8]
    assert not rank.arrived


def test_a_damaged_payload_counts_for_nothing_and_can_come_again() -> None:
    rank, data = Rank(), payload(1)
    stream = Stream(rank)
    sent = bytearray(message(data))
    sent[-1] ^= 1
    stream.feed(bytes(sent))
    assert stream.intake.receipt.corrupt_frames == 1
    assert not rank.arrived
    stream.feed(message(data))
    assert rank.held() == data
    assert rank.arrived


def test_a_stream_that_breaks_off_leaves_the_place_to_another() -> None:
    rank, data = Rank(), payload(1)
    Stream(rank).feed(message(payload(2))[: SIZE // 2])
    Stream(rank).feed(message(data))
    assert rank.held() == data
    assert rank.arrived


def test_a_slow_stream_writes_nothing_over_what_came_by_another() -> None:
    rank, data = Rank(), payload(1)
    slow, sent = Stream(rank), message(payload(2))
    slow.feed(sent[: SIZE // 2])
    Stream(rank).feed(message(payload(1, range(1, 2)), range(1, 2)))
    slow.feed(sent[SIZE // 2 :])
    assert slow.intake.receipt.corrupt_frames == 1
    assert rank.held(BLOCKS[1:2]) == payload(1, range(1, 2))
    assert not rank.arrived
    Stream(rank).feed(message(data))
    assert rank.arrived


def test_a_frame_over_what_has_arrived_in_part_disturbs_none_of_it() -> None:
    rank = Rank()
    first = payload(1, range(1))
    Stream(rank).feed(message(first, range(1)))
    Stream(rank).feed(message(payload(2))[: SIZE - 1])
    assert rank.held(BLOCKS[:1]) == first


def test_a_closed_transfer_is_written_to_no_more() -> None:
    rank = Rank()
    stream, sent = Stream(rank), message(payload(1))
    stream.feed(sent[: SIZE // 2])
    rank.receiver.close("t1", ErrorCode.LEASE_EXPIRED)
    rank.memory.buffer[:] = 7
    with pytest.raises(LeaseExpired):
        stream.feed(sent[SIZE // 2 :])
    assert (rank.memory.buffer == 7).all()


@pytest.mark.parametrize(
    "header",
    [
        Header("t2", 1, 0, Region(ONE, range(3), ONE)),
        Header("t1", 2, 0, Region(ONE, range(3), ONE)),
        Header("t1", 1, 0, Region(ONE, range(4), ONE)),
        Header("t1", 1, 0, Region(range(1, 2), range(3), ONE)),
        Header("t1", 1, 0, Region(ONE, range(2), ONE)),
        Header("t1", 1, 0, Region(ONE, range(3), ONE), in_place=True),
    ],
    ids=["transfer", "epoch", "blocks", "layers", "size", "in place"],
)
def test_what_would_be_refused_does_not_land(header: Header) -> None:
    rank = Rank()
    framed = encode(header, payload(1))
    Stream(rank).feed((http2.message_prefix(len(framed)) + framed)[:-1])
    assert not rank.memory.buffer.any()
