"""Sessions in Redis or Valkey, one key each: ``{namespace}:s{format}:{digest}``, with a TTL.

The digest covers the lengths of tenant and session id, so no choice of either reaches the key of
another. A record that does not decode, or speaks of another session, is removed and counts as
absent.
"""

from __future__ import annotations

import struct

from blake3 import blake3

from eastwest.errors import CorruptData
from kv_store.guard import Guard, StoreCounters, raise_refusal
from kv_store.pipe import Pipes
from kv_store.resp import Command, Reply
from kv_store.sessions import (
    SESSION_BYTES_MAX,
    SESSION_FORMAT,
    VERSION_OFFSET,
    SessionRecord,
    decode_session,
    encode_session,
    lost_race,
    text_bytes,
)

# KEYS[1]: the session. ARGV: record, its version, time to live in ms. 1 where it was stored.
_PUT_IF_NEWER = b"""
local stored = redis.call('GETRANGE', KEYS[1], %d, %d)
if #stored == 8 and struct.unpack('<I8', stored) >= tonumber(ARGV[2]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return 1
""" % (VERSION_OFFSET, VERSION_OFFSET + 7)


class RedisSessionStore:
    """Implements `kv_store.sessions.SessionStore`; build with `open_session_store`."""

    def __init__(
        self,
        pipes: Pipes,
        guard: Guard,
        counters: StoreCounters,
        namespace: str,
        ttl_s: float,
    ) -> None:
        self._pipes = pipes
        self._guard = guard
        self._prefix = f"{namespace}:s{SESSION_FORMAT}:".encode()
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
        script = (b"EVAL", _PUT_IF_NEWER, b"1", key, data, b"%d" % record.version, self._ttl_ms)
        if await self._ask(Command(script)) != 1:
            raise lost_race(record)
        self.counters.bytes_written += len(data)

    async def delete(self, tenant: str, session_id: str) -> None:
        await self._ask(Command((b"UNLINK", self._key(tenant, session_id))))

    async def close(self) -> None:
        await self._pipes.close()

    def _key(self, tenant: str, session_id: str) -> bytes:
        texts = (text_bytes(tenant), text_bytes(session_id))
        name = b"".join(struct.pack("<I", len(text)) + text for text in texts)
        return self._prefix + blake3(name).digest(length=16).hex().encode()

    async def _ask(self, command: Command) -> Reply:
        async with self._guard.operation(), self._pipes.borrow() as pipe:
            replies = await pipe.request([command], SESSION_BYTES_MAX)
            raise_refusal(replies)
            return replies[0]


def _decode(reply: Reply, tenant: str, session_id: str) -> SessionRecord:
    if not isinstance(reply, bytes):
        raise CorruptData("a session record larger than any that is stored")
    record = decode_session(reply)
    if (record.tenant, record.session_id) != (tenant, session_id):
        raise CorruptData("a session record of another session")
    return record
