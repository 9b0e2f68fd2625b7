"""A frame to bytes and back: `KvFrame` of ``kv_transfer.proto`` with its payload left alone.

The bytes are legal protobuf, any protobuf library reads and writes them. Only the small header
goes through one here; around the payload the two field tags and lengths are put and taken off by
hand, so that it is copied once on the way out (one join) and not at all on the way in.

The checksum is xxh3_64 of the payload, seeded with the xxh3_64 of the other header fields: epoch
as little-endian int64; source_rank, layer_start, layer_count, block_start, block_count,
head_start, head_count as little-endian uint32; in_place as one byte; transfer_id as UTF-8. A frame
whose header was damaged therefore fails its check like one whose payload was, and good bytes
cannot land in a wrong place. It guards against accidents, not against a forger.

A frame in place has an empty payload field: its payload lies in the receiver's blocks already, and
the checksum is that of what lies there.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

from google.protobuf.message import DecodeError
from xxhash import xxh3_64, xxh3_64_intdigest

from eastwest.errors import CorruptData, InvalidArgument
from eastwest.ports import Buffer
from eastwest.v1 import kv_transfer_pb2 as wire
from kv_transfer.plan import Region

# The bytes of a frame, in pieces: what a payload lies in need not be copied to send it.
Message = Sequence[Buffer]

HEADER_BYTES_MAX = 1024
_HEADER_TAG = 0x0A  # field 1, length-delimited
_PAYLOAD_TAG = 0x12  # field 2, length-delimited
_NUMBERS = struct.Struct("<q7I?")


@dataclass(frozen=True, slots=True)
class Header:
    """Where a payload belongs. `source_rank` is the sending rank. in_place: the payload has been
    written there already."""

    transfer_id: str
    epoch: int
    source_rank: int
    region: Region
    in_place: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded frame. `payload` is a view into the received message."""

    header: Header
    checksum: int
    payload: memoryview

    def intact(self) -> bool:
        """Whether header and payload are what the sender checked. Of a frame in place only who
        holds the blocks can tell."""
        return xxh3_64_intdigest(self.payload, checksum_seed(self.header)) == self.checksum


def message_bytes(frame_bytes: int) -> int:
    """Most bytes of a message whose payload is at most `frame_bytes`."""
    return frame_bytes + HEADER_BYTES_MAX + 16


def encode(header: Header, payload: Buffer) -> bytes:
    """The message of a frame. `InvalidArgument` where the transfer id is too long."""
    checksum = xxh3_64_intdigest(payload, checksum_seed(header))
    return b"".join((_prefix(header, checksum, memoryview(payload).nbytes), payload))


def encode_parts(header: Header, payload: Sequence[Buffer]) -> Message:
    """The same of a payload that lies in several places; keeps views of them, which are flat."""
    checksum = xxh3_64(seed=checksum_seed(header))
    for part in payload:
        checksum.update(part)
    size = sum(len(part) for part in payload)
    return [_prefix(header, checksum.intdigest(), size), *payload]


def encode_in_place(header: Header, checksum: int) -> bytes:
    """The message of a frame whose payload, of that checksum, lies where it belongs."""
    assert header.in_place, "the payload is still to be sent"
    return _prefix(header, checksum, 0)


def decode(message: bytes | memoryview) -> Frame:
    """The frame in `message`, which its payload is a view of.

    `CorruptData` where it is not a header followed by a payload."""
    frame, payload_start = decode_head(message, len(message))
    return replace(frame, payload=memoryview(message)[payload_start:])


def decode_head(message: bytes | memoryview, size: int) -> tuple[Frame, int]:
    """The frame whose message of `size` bytes begins with `message`, with no payload, and where
    in the message its payload begins. `CorruptData` where there is no whole header."""
    head_start, head_stop = _field(message, 0, size, _HEADER_TAG, "header")
    payload_start, payload_stop = _field(message, head_stop, size, _PAYLOAD_TAG, "payload")
    if head_stop - head_start > HEADER_BYTES_MAX:
        raise CorruptData(
            f"a frame header has {head_stop - head_start} bytes; allowed: up to {HEADER_BYTES_MAX}"
        )
    if payload_stop != size:
        raise CorruptData(f"a frame has {size - payload_stop} bytes after its payload")
    try:
        head = wire.FrameHeader.FromString(bytes(message[head_start:head_stop]))
    except DecodeError as error:
        raise CorruptData(f"a frame header is not valid protobuf: {error}") from None
    region = Region(
        range(head.layer_start, head.layer_start + head.layer_count),
        range(head.block_start, head.block_start + head.block_count),
        range(head.head_start, head.head_start + head.head_count),
    )
    header = Header(head.transfer_id, head.epoch, head.source_rank, region, head.in_place)
    return Frame(header, head.checksum, memoryview(b"")), payload_start


def checksum_seed(header: Header) -> int:
    """The seed of the checksum of a payload that goes with `header`."""
    region = header.region
    numbers = _NUMBERS.pack(
        header.epoch,
        header.source_rank,
        region.layers.start,
        len(region.layers),
        region.blocks.start,
        len(region.blocks),
        region.heads.start,
        len(region.heads),
        header.in_place,
    )
    return xxh3_64_intdigest(numbers + header.transfer_id.encode())


def _prefix(header: Header, checksum: int, payload_bytes: int) -> bytes:
    """All of a message that comes before its payload."""
    region = header.region
    head = wire.FrameHeader(
        transfer_id=header.transfer_id,
        epoch=header.epoch,
        source_rank=header.source_rank,
        layer_start=region.layers.start,
        layer_count=len(region.layers),
        block_start=region.blocks.start,
        block_count=len(region.blocks),
        head_start=region.heads.start,
        head_count=len(region.heads),
        checksum=checksum,
        in_place=header.in_place,
    ).SerializeToString()
    if len(head) > HEADER_BYTES_MAX:
        raise InvalidArgument(
            f"a frame header has {len(head)} bytes; allowed: up to {HEADER_BYTES_MAX}"
        )
    return b"\x0a" + _varint(len(head)) + head + b"\x12" + _varint(payload_bytes)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(
    message: bytes | memoryview, start: int, total: int, tag: int, name: str
) -> tuple[int, int]:
    """Where the contents of the length-delimited field at `start` begin and end, in a message
    of `total` bytes."""
    if start >= len(message) or message[start] != tag:
        raise CorruptData(f"a frame has no {name} at byte {start}")
    size = 0
    for i, byte in enumerate(message[start + 1 : start + 11]):
        size |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            begin = start + 2 + i
            if size > total - begin:
                raise CorruptData(
                    f"a frame's {name} claims {size} bytes; there are {total - begin}"
                )
            return begin, begin + size
    raise CorruptData(f"the length of a frame's {name} does not end")
