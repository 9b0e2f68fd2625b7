"""The Redis protocol (RESP2) for values of megabytes: no I/O, no copy of a large value.

`encode` turns commands into buffers to send; large arguments stay the caller's memory.
`ReplyReader` says where the next received bytes belong and is told how many came: the body of a
value lands directly in its destination, and its checksum is taken as it comes, while it is still
in the processor's cache. A value of another length than was agreed is thrown away as it arrives,
so what somebody else has put into the server never grows this process.

States of a `ReplyReader`: reading a line; filling a body; discarding bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from xxhash import xxh3_64

from eastwest.ports import Buffer

INLINE_BYTES = 4096  # smaller arguments are joined: one copy is cheaper than one more send
LINE_BYTES = 16384
ITEMS_MAX = 65536  # of one array reply

_STATUS, _ERROR, _INTEGER, _VALUE, _ARRAY = b"+-:$*"


class Command(NamedTuple):
    """One command. `into`: where its value goes, if it is exactly as long."""

    args: tuple[Buffer, ...]
    into: memoryview | None = None


@dataclass(frozen=True, slots=True)
class ReplyError:
    """The server's refusal of one command; `text` begins with its code, such as OOM."""

    text: str

    @property
    def code(self) -> str:
        return self.text.partition(" ")[0]


@dataclass(frozen=True, slots=True)
class Discarded:
    """A value of another length than was agreed; its bytes are gone."""

    length: int


@dataclass(frozen=True, slots=True)
class Landed:
    """The value is in the command's `into`."""

    checksum: int  # xxh3_64


Reply: TypeAlias = bytes | int | Landed | ReplyError | Discarded | list["Reply"] | None


class ProtocolViolation(ConnectionError):
    """What arrived is not RESP2; the connection cannot be used any more."""


def encode(commands: Iterable[Command]) -> Iterator[Buffer]:
    """The commands on the wire, as buffers to be sent one after another.

    `commands` is drawn from as it goes, so that what a caller computes over a large argument is
    done right before that is sent.
    """
    small: list[Buffer] = []
    for args, _ in commands:
        small.append(b"*%d\r\n" % len(args))
        for arg in args:
            length = len(arg)
            if length > INLINE_BYTES:
                yield b"".join((*small, b"$%d\r\n" % length))
                yield arg
                small = [b"\r\n"]
            else:
                small += (b"$%d\r\n" % length, arg, b"\r\n")
    yield b"".join(small)


class ReplyReader:
    """Reads the replies to one request at a time; see the module docstring."""

    def __init__(self) -> None:
        self._data = bytearray(LINE_BYTES)
        self._line = memoryview(self._data)
        self._start = self._end = 0  # received and not yet parsed
        self._body: memoryview | None = None
        self._filled = 0
        self._sum: xxh3_64 | None = None  # of the body so far, where it has its own place
        self._discard = 0
        self._arrays: list[tuple[list[Reply], int]] = []
        self._intos: list[memoryview | None] = []
        self._value_max = 0
        self.replies: list[Reply] = []
        self.refused = False  # one of them is an error
        self.demoted = False  # one has been that the server only reads

    @property
    def done(self) -> bool:
        """Every reply that was expected is there."""
        return len(self.replies) == len(self._intos) and not self._discard

    def begin(self, value_max: int) -> None:
        """A new request; values that have no place of their own are `value_max` bytes at most."""
        assert self.done
        self._value_max = value_max
        self._intos = []
        self.replies = []
        self.refused = False

    def expect(self, into: memoryview | None) -> None:
        """One more command is about to be sent."""
        self._intos.append(into)

    def buffer(self) -> memoryview:
        """Where the next received bytes belong; never empty."""
        if self._body is not None:
            return self._body[self._filled :]
        return self._line[self._end :]

    def received(self, count: int) -> None:
        """`count` bytes were put into `buffer()`. Raises `ProtocolViolation`."""
        if self._body is not None:
            self._fill(count)
        else:
            self._end += count
            self._parse()

    def _parse(self) -> None:
        while self._start < self._end:
            if self._discard:
                count = min(self._discard, self._end - self._start)
                self._discard -= count
                self._start += count
            elif self._body is not None:
                count = min(len(self._body) - self._filled, self._end - self._start)
                source = self._line[self._start : self._start + count]
                self._body[self._filled : self._filled + count] = source
                self._start += count
                self._fill(count)
            elif not self._parse_line():
                break
        rest = self._end - self._start
        if rest == LINE_BYTES:
            raise ProtocolViolation(f"a reply line is longer than {LINE_BYTES} bytes")
        if rest and self._start:
            self._line[:rest] = bytes(self._line[self._start : self._end])
        self._start, self._end = 0, rest

    def _parse_line(self) -> bool:
        data = self._data
        end = data.find(b"\r\n", self._start, self._end)
        if end < 0:
            return False
        if len(self.replies) == len(self._intos):
            raise ProtocolViolation("a reply to no command")
        kind, text = data[self._start], data[self._start + 1 : end]
        self._start = end + 2
        if kind == _INTEGER:
            self._emit(_number(text))
        elif kind == _STATUS:
            self._emit(bytes(text))
        elif kind == _VALUE:
            self._begin_value(_number(text))
        elif kind == _ARRAY:
            self._begin_array(_number(text))
        elif kind == _ERROR:
            self.refused = True
            self.demoted = self.demoted or text.startswith(b"READONLY")
            self._emit(ReplyError(text.decode("utf-8", "replace")))
        else:
            raise ProtocolViolation(f"a reply of unknown kind {chr(kind)!r}")
        return True

    def _begin_value(self, length: int) -> None:
        into = None if self._arrays else self._intos[len(self.replies)]
        if length < 0:
            self._emit(None)
        elif length != len(into) if into is not None else length > self._value_max:
            self._discard = length + 2
            self._emit(Discarded(length))
        elif into is None and self._end - self._start >= length + 2:
            value = bytes(self._line[self._start : self._start + length])
            self._start += length + 2
            self._emit(value)
        else:
            self._body = memoryview(bytearray(length)) if into is None else into
            self._sum = None if into is None else xxh3_64()
            self._filled = 0

    def _fill(self, count: int) -> None:
        body = self._body
        assert body is not None
        end = self._filled + count
        if self._sum is not None:
            self._sum.update(body[self._filled : end])
        self._filled = end
        if end == len(body):
            self._body = None
            self._discard = 2  # CR LF
            self._emit(bytes(body) if self._sum is None else Landed(self._sum.intdigest()))

    def _begin_array(self, length: int) -> None:
        if length > ITEMS_MAX:
            raise ProtocolViolation(f"an array of {length} replies; allowed: {ITEMS_MAX}")
        if length <= 0:
            self._emit(None if length < 0 else [])
        else:
            self._arrays.append(([], length))

    def _emit(self, reply: Reply) -> None:
        while self._arrays:
            items, length = self._arrays[-1]
            items.append(reply)
            if len(items) < length:
                return
            self._arrays.pop()
            reply = items
        self.replies.append(reply)


def _number(text: bytearray) -> int:
    try:
        return int(text)
    except ValueError:
        raise ProtocolViolation(f"{bytes(text[:32])!r} where a number belongs") from None
