"""Frames to bytes and back.

1. What goes in comes out, and the payload is not copied on the way out of a message.
2. The bytes are those of the generated protobuf class, both ways.
3. Any damaged bit is noticed; any truncation and any foreign bytes are refused, never a crash.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eastwest.errors import CorruptData, InvalidArgument
from eastwest.ports import Buffer
from eastwest.v1 import kv_transfer_pb2 as wire
from kv_transfer.frame_codec import HEADER_BYTES_MAX, Header, decode, encode, message_bytes
from kv_transfer.plan import Region

untimed = settings(deadline=None)  # machines may be busy
u32 = st.integers(0, 2**31 - 1)
spans = st.tuples(u32, u32).map(lambda pair: range(pair[0], pair[0] + pair[1]))
headers = st.builds(
    Header,
    transfer_id=st.text(max_size=40),
    epoch=st.integers(-(2**63), 2**63 - 1),
    source_rank=u32,
    region=st.builds(Region, spans, spans, spans),
)
payloads = st.binary(max_size=300)
SAMPLE = encode(
    Header("d0.17", 3, 1, Region(range(4, 6), range(2, 130), range(1))), bytes(range(200))
)


@untimed
@given(headers, payloads)
def test_a_frame_comes_back_as_it_went(header: Header, payload: bytes) -> None:
    message = encode(header, payload)
    frame = decode(message)
    assert frame.header == header
    assert frame.payload == payload
    assert frame.payload.obj is message
    assert frame.intact()
    assert len(message) <= message_bytes(len(payload))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda b: np.frombuffer(b).data])
def test_any_buffer_can_be_a_payload(kind: Callable[[bytes], Buffer]) -> None:
    payload = bytes(range(64))
    header = Header("t", 1, 0, Region(range(1), range(1), range(1)))
    assert decode(encode(header, kind(payload))).payload == payload


@untimed
@given(headers, payloads)
def test_the_generated_class_reads_what_we_write(header: Header, payload: bytes) -> None:
    message = wire.KvFrame.FromString(encode(header, payload))
    assert message.payload == payload
    assert message.header.transfer_id == header.transfer_id
    assert message.header.epoch == header.epoch
    assert message.header.source_rank == header.source_rank
    assert message.header.layer_start == header.region.layers.start
    assert message.header.layer_count == len(header.region.layers)
    assert message.header.block_start == header.region.blocks.start
    assert message.header.block_count == len(header.region.blocks)
    assert message.header.head_start == header.region.heads.start
    assert message.header.head_count == len(header.region.heads)


@untimed
@given(headers, payloads.filter(bool))
def test_we_read_what_the_generated_class_writes(header: Header, payload: bytes) -> None:
    ours = encode(header, payload)
    theirs = wire.KvFrame.FromString(ours).SerializeToString()
    assert decode(theirs).intact()
    assert decode(theirs).header == header
    assert decode(theirs).payload == payload


def noticed(message: bytes) -> bool:
    try:
        return not decode(message).intact()
    except CorruptData:
        return True


def test_any_flipped_bit_is_noticed() -> None:
    for bit in range(8 * len(SAMPLE)):
        damaged = bytearray(SAMPLE)
        damaged[bit // 8] ^= 1 << bit % 8
        assert noticed(bytes(damaged)), f"bit {bit}"


def test_any_truncation_is_refused() -> None:
    for length in range(len(SAMPLE)):
        with pytest.raises(CorruptData):
            decode(SAMPLE[:length])


@untimed
@given(st.binary(max_size=80), st.binary(max_size=4))
def test_foreign_bytes_are_refused(message: bytes, tail: bytes) -> None:
    assert noticed(message)
    assert noticed(bytes([0x0A, len(message)]) + message + tail)
    assert noticed(SAMPLE + tail) or not tail


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x0a",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a header longer than memory
        b"\x0a" + b"\x80" * 20,  # a length that does not end
        b"\x0a\x00",  # no payload
        b"\x12\x00\x0a\x00",  # the payload first
        b"\x0a\x00\x12\x05abc",  # a payload that lies about its length
        b"\x0a\x02\x08\x01\x12\x01x",  # a header field of another type
        b"\x0a\x03\x0a\x01\xff\x12\x01x",  # a transfer id that is not UTF-8
        b"\x0a\xd1\x0f" + b"\x1a\xce\x0f" + bytes(1998) + b"\x12\x01x",  # a huge header
    ],
)
def test_malformed_messages_are_refused(message: bytes) -> None:
    assert noticed(message)


def test_a_good_payload_under_a_changed_header_is_noticed() -> None:
    frame = wire.KvFrame.FromString(SAMPLE)
    frame.header.block_start += 1
    assert not decode(frame.SerializeToString()).intact()


def test_a_transfer_id_too_long_for_a_header_is_refused_at_the_sender() -> None:
    region = Region(range(1), range(1), range(1))
    with pytest.raises(InvalidArgument, match="allowed: up to"):
        encode(Header("x" * HEADER_BYTES_MAX, 1, 0, region), b"")
