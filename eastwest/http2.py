"""The part of HTTP/2 (RFC 9113) that a gRPC stream between our own processes needs, without I/O.

`Inbound` takes what comes from a socket and tells a `Handler`. The contents of DATA frames are
received straight into the buffer of the message that they belong to, so that a payload is not
copied on its way from the socket: that is why this is not left to a library. Headers are left to
`hpack`. Padded frames are refused: no gRPC implementation sends them.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

from hpack import Decoder, HPACKError

from eastwest.errors import EastWestError, InvalidArgument

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES = 9
FRAME_BYTES_MAX = (1 << 24) - 1
WINDOW_BYTES = 1 << 24  # of a stream and of the connection; replenished by halves
DEFAULT_WINDOW_BYTES = 65_535
DEFAULT_FRAME_BYTES = 16_384
WINDOW_BYTES_MAX = (1 << 31) - 1
_SCRATCH_BYTES = 1 << 15  # the largest frame of another kind than DATA
_HEADER = struct.Struct("!HBBBI")  # high and low part of the size, kind, flags, stream
_SETTING = struct.Struct("!HI")
_MESSAGE = struct.Struct("!BI")  # gRPC: whether compressed, length
MESSAGE_PREFIX_BYTES = _MESSAGE.size

PEEK_BYTES = 512
Fields = list[tuple[str, str]]
PlaceT = TypeVar("PlaceT", bound="Place")


class Kind(enum.IntEnum):
    """Frame types; others are ignored."""

    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY = 0x20


class Setting(enum.IntEnum):
    """Settings that are sent or heeded."""

    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5


class Code(enum.IntEnum):
    """Why a stream or a connection is ended."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    CANCEL = 8


class ProtocolError(Exception):
    """The peer does not speak HTTP/2; the connection cannot go on."""


class Place(Protocol):
    """Where the rest of one message goes. left: so many bytes are still to come."""

    @property
    def left(self) -> int: ...
    def room(self) -> memoryview: ...
    def filled(self, count: int) -> None: ...


class MessageBuffer(Generic[PlaceT]):
    """Joins the data of one stream into gRPC messages, in one buffer for all of them.

    on_message: called with each one, which is valid until it returns. place, on_placed: called with
    the first `PEEK_BYTES` of a larger message and its size; where that gives a place, the rest goes
    there, and then the second is called instead.
    """

    def __init__(
        self,
        bytes_max: int,
        on_message: Callable[[memoryview], None],
        place: Callable[[memoryview, int], PlaceT | None] = lambda head, size: None,
        on_placed: Callable[[PlaceT], None] = lambda place: None,
    ) -> None:
        self._bytes_max = bytes_max
        self._on_message = on_message
        self._find_place = place
        self._on_placed = on_placed
        self._prefix = memoryview(bytearray(MESSAGE_PREFIX_BYTES))
        self._memory = memoryview(bytearray(PEEK_BYTES))
        self._target = self._prefix
        self._filled = 0
        self._size = 0
        self._place: PlaceT | None = None

    def room(self) -> memoryview:
        """Where the next bytes go; never empty."""
        return self._target[self._filled :] if self._place is None else self._place.room()

    def filled(self, count: int) -> None:
        """So many of `room` are there. Raises what the callbacks do; `InvalidArgument` for a
        message that is too large, or compressed."""
        if self._place is not None:
            self._place.filled(count)
            if not self._place.left:
                place, self._place = self._place, None
                self._on_placed(place)
            return
        self._filled += count
        if self._filled < len(self._target):
            return
        if self._target is self._prefix:
            self._begin()
        elif self._filled < self._size:
            self._go_on()
        if self._target is not self._prefix and self._filled == self._size:
            message = self._target
            self._rewind()
            self._on_message(message)

    def _begin(self) -> None:
        compressed, size = _MESSAGE.unpack(self._prefix)
        if compressed or size > self._bytes_max:
            raise InvalidArgument(
                f"a message has {size} bytes{', compressed' if compressed else ''}; allowed: up "
                f"to {self._bytes_max}, not compressed"
            )
        self._size, self._filled = size, 0
        self._target = self._memory[: min(size, PEEK_BYTES)]

    def _go_on(self) -> None:
        """The beginning of a large message is there."""
        head = self._memory[:PEEK_BYTES]
        place = self._find_place(head, self._size)
        if place is not None:
            self._rewind()
            self._place = place
            return
        if self._size > len(self._memory):
            self._memory = memoryview(bytearray(self._size))
            self._memory[:PEEK_BYTES] = head
        self._target = self._memory[: self._size]

    def _rewind(self) -> None:
        self._target, self._filled = self._prefix, 0


class Handler(Protocol):
    """What a connection does with what comes. Each may raise `ProtocolError`."""

    def on_settings(self, settings: dict[int, int]) -> None: ...
    def on_headers(self, stream: int, fields: Fields, end: bool) -> None: ...
    def on_reset(self, stream: int, code: int) -> None: ...
    def on_window(self, stream: int, increment: int) -> None: ...
    def on_ping(self, payload: bytes) -> None: ...
    def on_goaway(self, code: int) -> None: ...

    def buffer(self, stream: int) -> MessageBuffer[Any] | None:
        """Where the data of a stream goes; None to drop it."""

    def on_error(self, stream: int, error: EastWestError) -> None:
        """The buffer of a stream raised this; it is not used any more."""

    def on_data(self, stream: int, size: int, end: bool) -> None:
        """A DATA frame of `size` bytes has gone to the buffer, or was dropped."""


class Inbound:
    """One direction of one connection. preface: whether the peer is a client."""

    def __init__(self, handler: Handler, *, preface: bool) -> None:
        self._handler = handler
        self._preface = PREFACE if preface else b""
        self._scratch = memoryview(bytearray(HEADER_BYTES + _SCRATCH_BYTES))
        self._stop = 0  # of what the scratch holds
        self._decoder = Decoder()
        # The DATA frame that is being received.
        self._stream = 0
        self._size = 0
        self._left = 0
        self._end = False
        self._buffer: MessageBuffer[Any] | None = None
        # The header block that is not complete yet.
        self._block = bytearray()
        self._block_of = 0
        self._block_end = False

    def room(self) -> memoryview:
        """Where the next bytes from the socket go; never empty."""
        if not self._left:
            return self._scratch[self._stop :]
        place = self._scratch if self._buffer is None else self._buffer.room()
        return place[: self._left]

    def filled(self, count: int) -> None:
        """So many of `room` are there. Raises `ProtocolError`."""
        if self._left:
            self._took(count)
            return
        self._stop += count
        at = 0
        while (used := self._next(self._scratch[at : self._stop])) > 0:
            at += used
        rest = bytes(self._scratch[at : self._stop])
        self._scratch[: len(rest)] = rest
        self._stop = len(rest)

    def _next(self, held: memoryview) -> int:
        """Take one frame, or a part of one; how many bytes that was, 0 to wait for more."""
        if self._left:
            return self._copy(held)
        if self._preface:
            if not self._preface.startswith(held[: len(self._preface)]):
                raise ProtocolError("no HTTP/2 client")
            if len(held) < len(self._preface):
                return 0
            self._preface = b""
            return len(PREFACE)
        if len(held) < HEADER_BYTES:
            return 0
        fields: tuple[int, int, int, int, int] = _HEADER.unpack_from(held)
        high, low, kind, flags, stream = fields
        size, stream = high << 8 | low, stream & WINDOW_BYTES_MAX
        if self._block_of and kind != Kind.CONTINUATION:
            raise ProtocolError("a header block is interrupted")
        if kind == Kind.DATA:
            self._begin(stream, size, flags)
            return HEADER_BYTES
        if size > _SCRATCH_BYTES:
            raise ProtocolError(f"a frame of type {kind} has {size} bytes")
        if len(held) < HEADER_BYTES + size:
            return 0
        self._control(kind, flags, stream, bytes(held[HEADER_BYTES : HEADER_BYTES + size]))
        return HEADER_BYTES + size

    def _begin(self, stream: int, size: int, flags: int) -> None:
        if not stream or flags & PADDED:
            raise ProtocolError("data without a stream, or padded")
        self._stream, self._size, self._left = stream, size, size
        self._end = bool(flags & END_STREAM)
        self._buffer = self._handler.buffer(stream)
        if not size:
            self._handler.on_data(stream, 0, self._end)

    def _copy(self, held: memoryview) -> int:
        count = min(len(held), self._left)
        if self._buffer is not None:
            room = self._buffer.room()
            count = min(count, len(room))
            room[:count] = held[:count]
        if count:
            self._took(count)
        return count

    def _took(self, count: int) -> None:
        self._left -= count
        if self._buffer is not None:
            try:
                self._buffer.filled(count)
            except EastWestError as error:
                self._buffer = None
                self._handler.on_error(self._stream, error)
        if not self._left:
            self._handler.on_data(self._stream, self._size, self._end)

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        try:
            self._dispatch(kind, flags, stream, payload)
        except (struct.error, HPACKError) as error:
            raise ProtocolError(f"a frame of type {kind} is malformed: {error}") from None

    def _dispatch(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        handler = self._handler
        match kind:
            case Kind.HEADERS | Kind.CONTINUATION:
                self._headers(kind, flags, stream, payload)
            case Kind.RST_STREAM:
                handler.on_reset(stream, _word(payload))
            case Kind.SETTINGS if not flags & ACK:
                handler.on_settings(dict(_SETTING.iter_unpack(payload)))
            case Kind.PING if not flags & ACK:
                handler.on_ping(payload)
            case Kind.GOAWAY:
                handler.on_goaway(_word(payload[4:8]))
            case Kind.WINDOW_UPDATE:
                handler.on_window(stream, _word(payload) & WINDOW_BYTES_MAX)
            case Kind.PUSH_PROMISE:
                raise ProtocolError("pushed streams were not allowed")

    def _headers(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == Kind.HEADERS:
            if flags & PADDED or not stream:
                raise ProtocolError("headers without a stream, or padded")
            self._block_of, self._block_end = stream, bool(flags & END_STREAM)
            payload = payload[5:] if flags & PRIORITY else payload
        elif stream != self._block_of:
            raise ProtocolError("a continuation of nothing")
        self._block += payload
        if len(self._block) > _SCRATCH_BYTES:
            raise ProtocolError("a header block is too large")
        if flags & END_HEADERS:
            fields = [(_text(name), _text(value)) for name, value in self._decode()]
            self._handler.on_headers(stream, fields, self._block_end)

    def _decode(self) -> Iterable[tuple[bytes, bytes]]:
        block, self._block, self._block_of = bytes(self._block), bytearray(), 0
        fields: Iterable[tuple[bytes, bytes]] = self._decoder.decode(block, raw=True)
        return fields


class Credit:
    """How much a peer may send, replenished by halves of the window."""

    def __init__(self, window_bytes: int = WINDOW_BYTES) -> None:
        self._half = window_bytes // 2
        self._taken = 0

    def took(self, size: int) -> int:
        """So much has come; what to give back now."""
        self._taken += size
        if self._taken < self._half:
            return 0
        taken, self._taken = self._taken, 0
        return taken


def frame_head(kind: Kind, flags: int, stream: int, size: int) -> bytes:
    """What comes before the `size` bytes of a frame."""
    return _HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream)


def frame(kind: Kind, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return frame_head(kind, flags, stream, len(payload)) + payload


def opening(*, streams: int, window_bytes: int = WINDOW_BYTES) -> bytes:
    """The first frames of either side, which let the other open so many streams, and send so much
    on each that is not taken yet. That of the connection never is less than HTTP/2's own."""
    values = {
        Setting.MAX_CONCURRENT_STREAMS: streams,
        Setting.INITIAL_WINDOW_SIZE: window_bytes,
        Setting.MAX_FRAME_SIZE: FRAME_BYTES_MAX,
    }
    payload = b"".join(_SETTING.pack(name, value) for name, value in values.items())
    settings, more = frame(Kind.SETTINGS, 0, 0, payload), window_bytes - DEFAULT_WINDOW_BYTES
    return settings + window_update(0, more) if more > 0 else settings


def window_update(stream: int, increment: int) -> bytes:
    return frame(Kind.WINDOW_UPDATE, 0, stream, increment.to_bytes(4))


def reset(stream: int, code: Code) -> bytes:
    return frame(Kind.RST_STREAM, 0, stream, code.to_bytes(4))


def message_prefix(size: int) -> bytes:
    """What gRPC puts before a message of `size` bytes."""
    return _MESSAGE.pack(0, size)


def _word(payload: bytes) -> int:
    if len(payload) != 4:
        raise ProtocolError("a number has not 4 bytes")
    return int.from_bytes(payload)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
