"""HTTP/2 as a push stream uses it.

1. However the bytes of a connection are cut, the same messages come out of it.
2. Whatever comes, it is taken or refused: nothing else is raised, and no more room is asked for
   than there is.
"""

from __future__ import annotations

import contextlib
from itertools import pairwise
from typing import Any

import pytest
from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from eastwest import http2
from eastwest.errors import EastWestError, InvalidArgument
from eastwest.http2 import Fields, Inbound, Kind, MessageBuffer, ProtocolError

untimed = settings(deadline=None)
BYTES_MAX = 1 << 16


class Seen:
    """A `Handler` that remembers; streams are there once their headers are."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, bytes]] = []
        self.events: list[object] = []
        self.buffers: dict[int, MessageBuffer[Any]] = {}

    def on_settings(self, settings: dict[int, int]) -> None:
        self.events.append(settings)

    def on_headers(self, stream: int, fields: Fields, end: bool) -> None:
        self.events.append((stream, fields, end))
        self.buffers[stream] = MessageBuffer(
            BYTES_MAX, lambda message: self.messages.append((stream, bytes(message)))
        )

    def on_reset(self, stream: int, code: int) -> None:
        self.events.append(("reset", stream, code))

    def on_window(self, stream: int, increment: int) -> None:
        self.events.append(("window", stream, increment))

    def on_ping(self, payload: bytes) -> None:
        self.events.append(("ping", payload))

    def on_goaway(self, code: int) -> None:
        self.events.append(("goaway", code))

    def buffer(self, stream: int) -> MessageBuffer[Any] | None:
        return self.buffers.get(stream)

    def on_error(self, stream: int, error: EastWestError) -> None:
        self.events.append((stream, error.code))
        del self.buffers[stream]

    def on_data(self, stream: int, size: int, end: bool) -> None:
        self.events.append((stream, size, end))


def feed(inbound: Inbound, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        room = inbound.room()
        count = min(len(room), len(rest))
        assert count > 0
        room[:count] = rest[:count]
        inbound.filled(count)
        rest = rest[count:]


def headers(stream: int, *, flags: int = 0, cut: int | None = None) -> bytes:
    block = Encoder().encode([(":path", "/somewhere"), ("name", "ä value")])
    if cut is None:
        return http2.frame(Kind.HEADERS, http2.END_HEADERS | flags, stream, block)
    return http2.frame(Kind.HEADERS, flags, stream, block[:cut]) + http2.frame(
        Kind.CONTINUATION, http2.END_HEADERS, stream, block[cut:]
    )


def data(stream: int, payload: bytes, flags: int = 0) -> bytes:
    return http2.frame(Kind.DATA, flags, stream, payload)


@untimed
@given(
    st.lists(st.binary(max_size=300), max_size=6),
    st.lists(st.integers(0, 2000)),
    st.lists(st.integers(0, 4000)),
)
def test_messages_do_not_depend_on_how_they_are_cut(
    messages: list[bytes], frame_cuts: list[int], read_cuts: list[int]
) -> None:
    stream = b"".join(http2.message_prefix(len(m)) + m for m in messages)
    edges = sorted({0, len(stream), *(cut for cut in frame_cuts if cut < len(stream))})
    frames = [data(1, stream[start:stop]) for start, stop in pairwise(edges)]
    sent = http2.PREFACE + http2.opening(streams=3) + headers(1, cut=3) + b"".join(frames)
    sent += data(1, b"", http2.END_STREAM)
    seen = Seen()
    inbound = Inbound(seen, preface=True)
    edges = sorted({0, len(sent), *(cut for cut in read_cuts if cut < len(sent))})
    for start, stop in pairwise(edges):
        feed(inbound, sent[start:stop])
    assert seen.messages == [(1, message) for message in messages]
    assert seen.events[2] == (1, [(":path", "/somewhere"), ("name", "ä value")], False)
    assert seen.events[-1] == (1, 0, True)


@untimed
@given(st.lists(st.binary(max_size=200) | st.sampled_from([headers(1), data(1, b"abc")])))
def test_noise_is_taken_or_refused(noise: list[bytes]) -> None:
    inbound = Inbound(Seen(), preface=False)
    with contextlib.suppress(ProtocolError):
        feed(inbound, b"".join(noise))


@untimed
@given(
    st.sampled_from(Kind),
    st.integers(0, 255),
    st.integers(0, 3),
    st.binary(max_size=40),
)
def test_any_frame_is_taken_or_refused(kind: Kind, flags: int, stream: int, payload: bytes) -> None:
    inbound = Inbound(Seen(), preface=False)
    with contextlib.suppress(ProtocolError):
        feed(inbound, headers(1) + http2.frame(kind, flags, stream, payload))


@pytest.mark.parametrize(
    "prefix", [b"\1" + bytes(4), (BYTES_MAX + 1).to_bytes(5), b"\0" + b"\xff" * 4]
)
def test_a_message_that_cannot_be_taken_ends_its_stream_only(prefix: bytes) -> None:
    seen = Seen()
    inbound = Inbound(seen, preface=False)
    feed(inbound, headers(1) + headers(3) + data(1, prefix + b"rest") + data(1, b"more"))
    assert (1, InvalidArgument.code) in seen.events
    feed(inbound, data(3, http2.message_prefix(2) + b"ok"))
    assert seen.messages == [(3, b"ok")]


@pytest.mark.parametrize(
    "sent",
    [
        data(0, b"of no stream"),
        data(1, b"\0", http2.PADDED),
        http2.frame(Kind.SETTINGS, 0, 0, bytes(1 << 16)),
        http2.frame(Kind.SETTINGS, 0, 0, b"short"),
        http2.frame(Kind.RST_STREAM, 0, 1, b"abc"),
        http2.frame(Kind.CONTINUATION, http2.END_HEADERS, 1),
        http2.frame(Kind.HEADERS, 0, 1) + data(1, b""),
        http2.frame(Kind.HEADERS, http2.END_HEADERS, 1, b"\xff\xff\xff"),
        http2.frame(Kind.PUSH_PROMISE, 0, 1),
    ],
)
def test_what_is_no_http2_is_refused(sent: bytes) -> None:
    with pytest.raises(ProtocolError):
        feed(Inbound(Seen(), preface=False), sent)


def test_a_peer_that_is_no_client_is_refused() -> None:
    with pytest.raises(ProtocolError):
        feed(Inbound(Seen(), preface=True), b"GET / HTTP/1.1\r\n")
