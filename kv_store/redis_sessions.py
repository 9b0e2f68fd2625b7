"""Sessions in Redis or Valkey, one key each: ``{namespace}:s{format}:{{tenant}}:{digest}``, with a
TTL; and for each tenant a hash of what it has, ``{namespace}:l{format}:{{tenant}}``, which lives as
long as the latest of them.

Both are digests; that of a session covers the lengths of tenant and id, so no choice of either
reaches the key of another. The inner braces are part of the key: a cluster keeps all of a tenant's
in one slot, where one script may touch them. A record that does not decode, or speaks of another
session, is removed and counts as absent. What the hash says of a session whose key is gone, expired
or evicted, is removed when a listing comes upon it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from blake3 import blake3

from eastwest.errors import CorruptData, StoreUnavailable
from eastwest.ports import Buffer
from kv_store.guard import Guard, StoreCounters, raise_refusal
from kv_store.pipe import AnyPipes
from kv_store.resp import Command, Reply
from kv_store.sessions import (
    SESSION_BYTES_MAX,
    SESSION_FORMAT,
    VERSION_OFFSET,
    SessionRecord,
    SessionSummary,
    decode_session,
    encode_session,
    leading_in_common,
    lost_race,
    marks_in_common,
    prefix_marks,
    text_bytes,
)

# KEYS: the session, and its tenant's listing. ARGV: record, its version, time to live in ms, its
# name in the listing, and what that says of it; "" for nothing. 1 where it was stored.
_PUT_IF_NEWER = b"""
local stored = redis.call('GETRANGE', KEYS[1], %d, %d)
if #stored == 8 and struct.unpack('<I8', stored) >= tonumber(ARGV[2]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
if ARGV[5] == '' then
  redis.call('HDEL', KEYS[2], ARGV[4])
else
  redis.call('HSET', KEYS[2], ARGV[4], ARGV[5])
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
end
return 1
""" % (VERSION_OFFSET, VERSION_OFFSET + 7)
# Tokens, messages, updated_s, version, bytes of `prefix_marks`; these and the fingerprint follow.
_LISTED = struct.Struct("<IIdQI")
# Of the sessions that begin alike for longest, as far as the listing tells, so many are read.
_COMPARED = 8
_SCAN = b"1000"  # fields of a listing that are asked for at once, about


class RedisSessionStore:
    """Implements `kv_store.sessions.SessionStore`; build with `open_session_store`."""

    def __init__(
        self,
        pipes: AnyPipes,
        guard: Guard,
        counters: StoreCounters,
        namespace: str,
        ttl_s: float,
    ) -> None:
        self._pipes = pipes
        self._guard = guard
        self._namespace = namespace.encode()
        self._ttl_ms = b"%d" % max(1, round(ttl_s * 1000))
        self.counters = counters

    @property
    def available(self) -> bool:
        """Whether the store answered when it was last asked."""
        return self._guard.available

    async def get(self, tenant: str, session_id: str) -> SessionRecord | None:
        key = self._key(tenant, session_id)
        reply = await self._ask(Command((b"GET", key)))
        if reply is None:
            self.counters.misses += 1
            return None
        try:
            record = _decode(reply, tenant, session_id)
        except CorruptData:
            self.counters.corrupt += 1
            self.counters.misses += 1
            await self._ask(Command((b"UNLINK", key)))
            return None
        self.counters.hits += 1
        self.counters.bytes_read += len(reply) if isinstance(reply, bytes) else 0
        return record

    async def put(self, record: SessionRecord) -> None:
        data = encode_session(record)
        key = self._key(record.tenant, record.session_id)
        keys = (b"2", key, self._listing(record.tenant))
        shown = b"" if record.deleted else _listed(record)
        version, name = b"%d" % record.version, text_bytes(record.session_id)
        script = (b"EVAL", _PUT_IF_NEWER, *keys, data, version, self._ttl_ms, name, shown)
        if await self._ask(Command(script)) != 1:
            raise lost_race(record)
        self.counters.bytes_written += len(data)

    async def page(self, tenant: str, after: str, limit: int) -> list[SessionSummary]:
        known = {name: told for name, told in await self._listed_of(tenant) if name > after}
        found: list[SessionSummary] = []
        names = sorted(known)
        while names and len(found) < limit:
            wanted = limit - len(found)
            page, names = names[:wanted], names[wanted:]
            alive = await self._alive(tenant, page)
            found += [_told(name, known[name])[0] for name in page if name in alive]
        return found

    async def common_tokens(self, record: SessionRecord) -> int:
        marks = prefix_marks(record.tokens)
        alike: dict[int, list[str]] = {}
        for name, told in await self._listed_of(record.tenant):
            if name != record.session_id:
                summary, other = _told(name, told)
                if summary.fingerprint == record.fingerprint:
                    same = marks_in_common(marks, other)
                    alike.setdefault(same, []).append(name)
        most = max(alike, default=0)
        common = 0
        for name in alike.get(most, ())[:_COMPARED]:
            found = await self.get(record.tenant, name)
            if found is not None:
                common = max(common, leading_in_common(record.tokens, found.tokens))
        return common

    async def delete(self, tenant: str, session_id: str) -> None:
        listed = (b"HDEL", self._listing(tenant), text_bytes(session_id))
        await self._request([(b"UNLINK", self._key(tenant, session_id)), listed])

    async def close(self) -> None:
        await self._pipes.close()

    async def _listed_of(self, tenant: str) -> list[tuple[str, bytes]]:
        """All that the tenant's listing says, in any order, perhaps more than once."""
        told: list[tuple[str, bytes]] = []
        cursor: bytes = b"0"
        while True:
            scan = (b"HSCAN", self._listing(tenant), cursor, b"COUNT", _SCAN)
            reply = await self._ask(Command(scan))
            if not isinstance(reply, list) or len(reply) != 2 or not isinstance(reply[1], list):
                raise StoreUnavailable("the server lists sessions in a form that is not known")
            names, values = reply[1][::2], reply[1][1::2]
            for name, value in zip(names, values, strict=True):
                if isinstance(name, bytes) and isinstance(value, bytes):
                    told.append((name.decode("utf-8", "surrogatepass"), value))
            if reply[0] == b"0" or not isinstance(reply[0], bytes):
                return told
            cursor = reply[0]

    async def _alive(self, tenant: str, names: Sequence[str]) -> set[str]:
        """Those whose records are there; the listing forgets the others."""
        replies = await self._request([(b"EXISTS", self._key(tenant, name)) for name in names])
        alive = {name for name, there in zip(names, replies, strict=True) if there == 1}
        if gone := [text_bytes(name) for name in names if name not in alive]:
            await self._ask(Command((b"HDEL", self._listing(tenant), *gone)))
        return alive

    def _key(self, tenant: str, session_id: str) -> bytes:
        name = _digest(tenant, session_id)
        return b"%s:s%d:{%s}:%s" % (self._namespace, SESSION_FORMAT, _digest(tenant), name)

    def _listing(self, tenant: str) -> bytes:
        return b"%s:l%d:{%s}" % (self._namespace, SESSION_FORMAT, _digest(tenant))

    async def _ask(self, command: Command) -> Reply:
        return (await self._request([command.args]))[0]

    async def _request(self, commands: Sequence[tuple[Buffer, ...]]) -> list[Reply]:
        async with self._guard.operation(), self._pipes.borrow() as pipe:
            replies = await pipe.request([Command(args) for args in commands], SESSION_BYTES_MAX)
            raise_refusal(replies)
            return replies


def _digest(*texts: str) -> bytes:
    named = (text_bytes(text) for text in texts)
    name = b"".join(struct.pack("<I", len(text)) + text for text in named)
    return blake3(name).digest(length=16).hex().encode()


def _listed(record: SessionRecord) -> bytes:
    numbers = (len(record.tokens), len(record.messages), record.updated_s, record.version)
    marks = prefix_marks(record.tokens)
    return _LISTED.pack(*numbers, len(marks)) + marks + text_bytes(record.fingerprint)


def _told(name: str, told: bytes) -> tuple[SessionSummary, bytes]:
    """What a listing says of a session, and its `prefix_marks`."""
    *numbers, length = _LISTED.unpack_from(told)
    tokens, messages, updated_s, version = numbers
    end = _LISTED.size + length
    fingerprint = told[end:].decode("utf-8", "surrogatepass")
    summary = SessionSummary(name, fingerprint, tokens, messages, updated_s, version)
    return summary, told[_LISTED.size : end]


def _decode(reply: Reply, tenant: str, session_id: str) -> SessionRecord:
    if not isinstance(reply, bytes):
        raise CorruptData("a session record larger than any that is stored")
    record = decode_session(reply)
    if (record.tenant, record.session_id) != (tenant, session_id):
        raise CorruptData("a session record of another session")
    return record
