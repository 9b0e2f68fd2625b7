"""The stored form of a session: what goes in comes out, and nothing else ever does."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eastwest.errors import CorruptData, TooLarge
from kv_store.sessions import (
    SESSION_BYTES_MAX,
    VERSION_OFFSET,
    SessionRecord,
    decode_session,
    encode_session,
)
from tests.contract.kv_store.builders import a_record

untimed = settings(deadline=None)  # machines may be busy
texts = st.text(max_size=20)
records = st.builds(
    SessionRecord,
    tenant=texts,
    session_id=texts,
    fingerprint=texts,
    tokens=st.lists(st.integers(0, 2**32 - 1), max_size=20).map(tuple),
    messages=st.lists(st.tuples(texts, texts), max_size=4).map(tuple),
    updated_s=st.floats(allow_nan=False),
    version=st.integers(1, 2**53),
)


@untimed
@given(records)
def test_what_is_encoded_decodes_to_the_same_record(record: SessionRecord) -> None:
    assert decode_session(encode_session(record)) == record


def test_lone_surrogates_survive() -> None:
    record = replace(a_record(), messages=(("user", "a\ud800b"),))
    assert decode_session(encode_session(record)) == record


@untimed
@given(st.integers(0, len(encode_session(a_record())) - 1), st.integers(0, 7))
def test_any_flipped_bit_is_corrupt_data(position: int, bit: int) -> None:
    data = bytearray(encode_session(a_record()))
    data[position] ^= 1 << bit
    with pytest.raises(CorruptData):
        decode_session(bytes(data))


@untimed
@given(st.integers(0, len(encode_session(a_record())) - 1))
def test_any_truncation_is_corrupt_data(length: int) -> None:
    with pytest.raises(CorruptData):
        decode_session(encode_session(a_record())[:length])


@untimed
@given(st.binary(max_size=100))
def test_bytes_of_anybody_are_never_a_record(data: bytes) -> None:
    with pytest.raises(CorruptData):
        decode_session(data)


def test_the_version_stands_where_the_script_looks_for_it() -> None:
    data = encode_session(replace(a_record(), version=258))
    assert struct.unpack_from("<Q", data, VERSION_OFFSET) == (258,)


def test_a_session_beyond_the_limit_is_refused() -> None:
    record = replace(a_record(), messages=(("user", "x" * SESSION_BYTES_MAX),))
    with pytest.raises(TooLarge, match=str(SESSION_BYTES_MAX)):
        encode_session(record)
