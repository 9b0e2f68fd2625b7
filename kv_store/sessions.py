"""What is kept of a conversation besides its KV: who, which model, tokens and messages.

`SessionRecord` and its stored form, the `SessionStore` protocol, and the store in memory; the one
in Redis is `kv_store.redis_sessions`.

A session that was deleted leaves a record without tokens for as long as one lives, so that a copy
that another router has at hand is not taken for the latest. Listings and clients do not see it.

A record counts its own versions: a request reads version n and puts n + 1. A put that does not
find an older version there has lost a race, so that two requests on one session never mix.

The stored form is little-endian: magic, format, version, updated_s, number of tokens and of
messages, tokens (u32 each), texts (length and UTF-8: tenant, session_id, fingerprint, then role
and content of each message), and xxh3_64 of all of that.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nsmallest
from operator import attrgetter
from typing import Protocol

import numpy as np
from xxhash import xxh3_64_digest, xxh3_64_intdigest

from eastwest.clock import Clock, ns
from eastwest.errors import CorruptData, Overloaded, TooLarge

SESSION_FORMAT = 3
SESSION_BYTES_MAX = 16 << 20
VERSION_OFFSET = 6  # of the version (u64) in the stored form, where a script can compare it

MARK_BYTES = 4
_MARKED_TOKENS = 16

_MAGIC = b"EWSN"
_HEAD = struct.Struct("<4sHQdII")
_LENGTH = struct.Struct("<I")
_SUM = struct.Struct("<Q")
_FIXED_TEXTS = 3


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """One conversation as it stands after a request.

    fingerprint: of the model whose vocabulary `tokens` are in. tokens: everything so far, output
    included. messages: (role, content) of each turn. updated_s: wall time of the last request.
    version: 1 for a new session, else one more than the record that the request began with.
    """

    tenant: str
    session_id: str
    fingerprint: str
    tokens: tuple[int, ...]
    messages: tuple[tuple[str, str], ...]
    updated_s: float
    version: int

    @property
    def deleted(self) -> bool:
        """Whether it only says that the session is gone; every other record has tokens."""
        return not self.tokens

    def summary(self) -> SessionSummary:
        """What a listing says of it."""
        return SessionSummary(
            self.session_id, self.fingerprint, len(self.tokens), len(self.messages),
            self.updated_s, self.version,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class SessionSummary:
    """A record without its content: numbers of tokens and messages. Else as `SessionRecord`."""

    session_id: str
    fingerprint: str
    tokens: int
    messages: int
    updated_s: float
    version: int


class SessionStore(Protocol):
    """Sessions by tenant and id. Every method may raise `StoreUnavailable`."""

    async def get(self, tenant: str, session_id: str) -> SessionRecord | None:
        """The latest record, None where there is none (or none that is intact)."""

    async def put(self, record: SessionRecord) -> None:
        """Store `record` and give it its full time to live.

        Raises `Overloaded` where the stored version is not older: another request has used the
        session meanwhile. A session that was evicted meanwhile is stored again.
        """

    async def page(self, tenant: str, after: str, limit: int) -> list[SessionSummary]:
        """The tenant's sessions in order of their ids: the first `limit` behind `after`."""

    async def common_tokens(self, record: SessionRecord) -> int:
        """How many of the leading tokens of `record` another session of its tenant and model has
        as well, as far as that can be told without reading all of them: fewer, then."""

    async def delete(self, tenant: str, session_id: str) -> None:
        """Forget the record, deleted or not. Idempotent."""

    async def close(self) -> None:
        """Close connections. Idempotent."""


def lost_race(record: SessionRecord) -> Overloaded:
    """The error of a put that came too late."""
    return Overloaded(
        f"session {record.session_id!r} is in use by another request; allowed: one request of "
        "a session at a time"
    )


def leading_in_common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    length = min(len(one), len(other))
    differ = np.asarray(one[:length]) != np.asarray(other[:length])
    return int(np.argmax(differ)) if differ.any() else length


def prefix_marks(tokens: Sequence[int]) -> bytes:
    """Digests of the first 16 tokens, the first 32, 64, …, of `MARK_BYTES` each: what a listing
    keeps of a session, so that those which begin alike are found without reading them."""
    data = np.asarray(tokens, dtype="<u4").tobytes()
    marks, length = [], 4 * _MARKED_TOKENS
    while length <= len(data):
        marks.append(xxh3_64_digest(data[:length])[:MARK_BYTES])
        length *= 2
    return b"".join(marks)


def marks_in_common(one: bytes, other: bytes) -> int:
    """How many `prefix_marks` are equal."""
    return leading_in_common(
        np.frombuffer(one, "<u4").tolist(), np.frombuffer(other, "<u4").tolist()
    )


def text_bytes(text: str) -> bytes:
    """UTF-8 of any `str`; lone surrogates, which JSON can hold, included."""
    return text.encode("utf-8", "surrogatepass")


def encode_session(record: SessionRecord) -> bytes:
    """The stored form. Raises `TooLarge` beyond `SESSION_BYTES_MAX`."""
    pieces = [
        _HEAD.pack(
            _MAGIC,
            SESSION_FORMAT,
            record.version,
            record.updated_s,
            len(record.tokens),
            len(record.messages),
        ),
        np.asarray(record.tokens, dtype="<u4").tobytes(),
    ]
    texts = [record.tenant, record.session_id, record.fingerprint]
    texts += [text for message in record.messages for text in message]
    for text in texts:
        data = text_bytes(text)
        pieces += (_LENGTH.pack(len(data)), data)
    body = b"".join(pieces)
    if len(body) + _SUM.size > SESSION_BYTES_MAX:
        raise TooLarge(f"a session of {len(body)} bytes; allowed: {SESSION_BYTES_MAX}")
    return body + _SUM.pack(xxh3_64_intdigest(body))


def decode_session(data: bytes) -> SessionRecord:
    """The record. Raises `CorruptData` where any byte is wrong or missing."""
    view = memoryview(data)
    body, tail = view[: -_SUM.size], view[-_SUM.size :]
    if len(body) < _HEAD.size or _SUM.unpack(tail) != (xxh3_64_intdigest(body),):
        raise CorruptData("a session record does not match its checksum")
    magic, form, version, updated_s, num_tokens, num_messages = _HEAD.unpack_from(body)
    if magic != _MAGIC or form != SESSION_FORMAT:
        raise CorruptData(f"a session record of format {form}; allowed: {SESSION_FORMAT}")
    end = _HEAD.size + 4 * num_tokens
    if end > len(body):
        raise CorruptData("a session record has fewer tokens than it says")
    tokens = tuple(np.frombuffer(body[_HEAD.size : end], dtype="<u4").tolist())
    texts = _texts(body[end:], _FIXED_TEXTS + 2 * num_messages)
    tenant, session_id, fingerprint = texts[:_FIXED_TEXTS]
    messages = tuple(zip(texts[_FIXED_TEXTS::2], texts[_FIXED_TEXTS + 1 :: 2], strict=True))
    return SessionRecord(tenant, session_id, fingerprint, tokens, messages, updated_s, version)


def _texts(data: memoryview, count: int) -> list[str]:
    texts: list[str] = []
    start = 0
    while len(texts) < count and start + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size
        try:
            texts.append(str(data[start : start + length], "utf-8", "surrogatepass"))
        except UnicodeDecodeError as error:
            raise CorruptData("a session record has a text that is not UTF-8") from error
        start += length
    if len(texts) != count or start != len(data):
        raise CorruptData("a session record has other texts than it says")
    return texts


class MemorySessionStore:
    """Sessions in this process: at most `sessions_max`, those put longest ago leaving first."""

    def __init__(self, sessions_max: int, ttl_s: float, clock: Clock) -> None:
        self._sessions_max = sessions_max
        self._ttl_ns = ns(ttl_s)
        self._clock = clock
        self._records: OrderedDict[tuple[str, str], tuple[SessionRecord, int]] = OrderedDict()

    async def get(self, tenant: str, session_id: str) -> SessionRecord | None:
        record, expires_ns = self._records.get((tenant, session_id), (None, 0))
        return record if self._clock.now_ns() < expires_ns else None

    async def put(self, record: SessionRecord) -> None:
        stored = await self.get(record.tenant, record.session_id)
        if stored is not None and stored.version >= record.version:
            raise lost_race(record)
        name = record.tenant, record.session_id
        self._records[name] = record, self._clock.now_ns() + self._ttl_ns
        self._records.move_to_end(name)
        while len(self._records) > self._sessions_max:
            self._records.popitem(last=False)

    async def page(self, tenant: str, after: str, limit: int) -> list[SessionSummary]:
        now_ns = self._clock.now_ns()
        found = (
            record
            for record, expires_ns in self._records.values()
            if record.tenant == tenant
            and record.session_id > after
            and now_ns < expires_ns
            and not record.deleted
        )
        return [r.summary() for r in nsmallest(limit, found, key=attrgetter("session_id"))]

    async def common_tokens(self, record: SessionRecord) -> int:
        now_ns = self._clock.now_ns()
        return max(
            (
                leading_in_common(record.tokens, other.tokens)
                for other, expires_ns in self._records.values()
                if (other.tenant, other.fingerprint) == (record.tenant, record.fingerprint)
                and other.session_id != record.session_id
                and now_ns < expires_ns
            ),
            default=0,
        )

    async def delete(self, tenant: str, session_id: str) -> None:
        self._records.pop((tenant, session_id), None)

    async def close(self) -> None:
        self._records.clear()
