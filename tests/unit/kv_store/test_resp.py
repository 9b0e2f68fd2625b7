"""The protocol: whatever pieces a reply arrives in, it is the same reply."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from kv_store.resp import (
    INLINE_BYTES,
    LINE_BYTES,
    Command,
    Discarded,
    Landed,
    ProtocolViolation,
    ReplyError,
    ReplyReader,
    encode,
)

untimed = settings(deadline=None)  # machines may be busy
VALUE_MAX = 64


def on_the_wire(reply: object) -> bytes:
    match reply:
        case None:
            return b"$-1\r\n"
        case int():
            return b":%d\r\n" % reply
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(reply), reply)
        case str():
            return b"+%b\r\n" % reply.encode()
        case ReplyError(text):
            return b"-%b\r\n" % text.encode()
        case list():
            return b"*%d\r\n" % len(reply) + b"".join(map(on_the_wire, reply))
    raise AssertionError(reply)


def feed(reader: ReplyReader, data: bytes, sizes: Sequence[int] = ()) -> None:
    """Hand over `data` in pieces of `sizes` (repeated), as far as each place has room."""
    at = turn = 0
    while at < len(data):
        place = reader.buffer()
        size = sizes[turn % len(sizes)] if sizes else len(data)
        count = min(size, len(place), len(data) - at)
        place[:count] = data[at : at + count]
        reader.received(count)
        at += count
        turn += 1


simple = st.one_of(
    st.none(), st.integers(-(2**63), 2**63 - 1), st.binary(max_size=VALUE_MAX), st.just("QUEUED")
)
replies = st.lists(st.one_of(simple, st.lists(simple, max_size=4)), min_size=1, max_size=8)
pieces = st.lists(st.integers(1, 40), min_size=1, max_size=5)


def expected(reply: object) -> object:
    if isinstance(reply, list):
        return [expected(item) for item in reply]
    return reply.encode() if isinstance(reply, str) else reply


@untimed
@given(replies, pieces)
def test_replies_do_not_depend_on_how_they_were_cut(sent: list[object], sizes: list[int]) -> None:
    reader = ReplyReader()
    reader.begin(VALUE_MAX)
    for _ in sent:
        reader.expect(None)
    feed(reader, b"".join(map(on_the_wire, sent)), sizes)
    assert reader.done
    assert reader.replies == expected(sent)


@untimed
@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=5), pieces)
def test_values_land_in_their_places_with_their_checksums(
    values: list[bytes], sizes: list[int]
) -> None:
    places = [memoryview(bytearray(len(value))) for value in values]
    reader = ReplyReader()
    reader.begin(0)
    for place in places:
        reader.expect(place)
    feed(reader, b"".join(map(on_the_wire, values)), sizes)
    assert reader.done
    assert places == values
    assert reader.replies == [Landed(xxh3_64_intdigest(value)) for value in values]


@untimed
@given(st.integers(1, 100_000).filter(lambda n: n != 10), pieces)
def test_a_value_of_another_length_is_thrown_away_and_its_place_untouched(
    length: int, sizes: list[int]
) -> None:
    place = memoryview(bytearray(10))
    reader = ReplyReader()
    reader.begin(VALUE_MAX)
    reader.expect(place)
    reader.expect(None)
    feed(reader, on_the_wire(b"x" * length) + b":7\r\n", [*sizes, 50_000])
    assert reader.replies == [Discarded(length), 7]
    assert place == bytes(10)


def test_a_value_beyond_the_limit_never_grows_the_reader() -> None:
    reader = ReplyReader()
    reader.begin(VALUE_MAX)
    reader.expect(None)
    feed(reader, b"$%d\r\n" % 2**40)
    assert len(reader.buffer()) <= LINE_BYTES
    assert reader.replies == [Discarded(2**40)]
    assert not reader.done


def test_an_error_is_noticed_before_the_last_reply() -> None:
    reader = ReplyReader()
    reader.begin(0)
    reader.expect(None)
    reader.expect(None)
    feed(reader, b"-OOM command not allowed\r\n")
    assert reader.refused
    assert reader.replies == [ReplyError("OOM command not allowed")]
    assert isinstance(reader.replies[0], ReplyError)
    assert reader.replies[0].code == "OOM"
    assert not reader.done


@pytest.mark.parametrize(
    "data",
    [
        b"?what\r\n",
        b":seven\r\n",
        b"$x\r\n",
        b"*100000\r\n",
        b"+" + b"x" * LINE_BYTES,
        b":1\r\n:2\r\n",
    ],
    ids=["kind", "number", "length", "array", "line", "surplus"],
)
def test_what_is_not_the_protocol_is_a_violation(data: bytes) -> None:
    reader = ReplyReader()
    reader.begin(VALUE_MAX)
    reader.expect(None)
    with pytest.raises(ProtocolViolation):
        feed(reader, data)


@untimed
@given(st.lists(st.lists(st.binary(max_size=20), min_size=1, max_size=4), max_size=5))
def test_commands_are_arrays_of_their_arguments(commands: list[list[bytes]]) -> None:
    sent = b"".join(encode(Command(tuple(args)) for args in commands))
    assert sent == b"".join(on_the_wire(args) for args in commands)


def test_a_large_argument_is_sent_as_it_is() -> None:
    large = memoryview(bytearray(INLINE_BYTES + 1))
    buffers = list(encode([Command((b"SET", b"k", large)), Command((b"GET", b"k"))]))
    assert any(buffer is large for buffer in buffers)
    assert b"".join(buffers) == on_the_wire([b"SET", b"k", bytes(large)]) + on_the_wire(
        [b"GET", b"k"]
    )


def test_commands_are_drawn_only_as_they_are_sent() -> None:
    drawn: list[int] = []

    def commands() -> Iterator[Command]:
        for i in range(3):
            drawn.append(i)
            yield Command((b"SET", b"k", bytes(INLINE_BYTES + 1)))

    next(encode(commands()))
    assert drawn == [0]
