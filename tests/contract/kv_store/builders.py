"""Builders and a clock for tests of the offline store."""

from __future__ import annotations

import asyncio
import struct
from random import Random

import numpy as np
from redis.asyncio import Redis
from xxhash import xxh3_64_intdigest

from eastwest.blocks import BlockHash, block_hashes, hash_seed
from eastwest.clock import Clock, SystemClock, ns
from eastwest.layout import KVSpec
from eastwest.ports import Buffer
from kv_store.accounts import Quotas
from kv_store.address import StoreAddress
from kv_store.circuit import Circuit
from kv_store.codec import FORMAT_VERSION, BlockForm, form_of
from kv_store.guard import Guard, StoreCounters
from kv_store.keys import block_stem
from kv_store.redis_sessions import RedisSessionStore
from kv_store.redis_store import RedisBlockStore
from kv_store.sessions import SessionRecord

SPEC = KVSpec(num_layers=5, num_kv_heads=2, key_dim=4, value_dim=4, dtype="bfloat16")
BLOCK_TOKENS = 4
ONE_PART = form_of(SPEC, BLOCK_TOKENS, "model")
THREE_PARTS = form_of(SPEC, BLOCK_TOKENS, "model", part_bytes_max=300)
KEYS_PER_BLOCK = len(THREE_PARTS.part_bytes) + 1
TTL_S = 1000.0


class ManualClock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.elapsed_ns = 0

    def now_ns(self) -> int:
        return self.elapsed_ns

    def wall_s(self) -> float:
        return self.elapsed_ns / 1e9

    def advance(self, seconds: float) -> None:
        self.elapsed_ns += ns(seconds)


def a_block_store(
    url: str,
    form: BlockForm = THREE_PARTS,
    *,
    clock: Clock | None = None,
    timeout_s: float = 30.0,
    namespace: str = "test",
    quotas: Quotas | None = None,
    ttl_s: float = TTL_S,
) -> RedisBlockStore:
    counters = StoreCounters()
    guard = Guard(Circuit(1.0, Random(0)), clock or SystemClock(), timeout_s, counters)
    pipes = StoreAddress.parse(url).pipes(2)
    return RedisBlockStore(pipes, guard, counters, form, namespace, ttl_s, quotas or Quotas())


def a_session_store(
    url: str, *, clock: Clock | None = None, timeout_s: float = 30.0
) -> RedisSessionStore:
    counters = StoreCounters()
    guard = Guard(Circuit(1.0, Random(0)), clock or SystemClock(), timeout_s, counters)
    pipes = StoreAddress.parse(url).pipes(2)
    return RedisSessionStore(pipes, guard, counters, "test", TTL_S)


def a_chain(
    count: int, form: BlockForm = THREE_PARTS, *, seed: int = 0, salt: str = "salt"
) -> list[tuple[BlockHash, Buffer]]:
    """Blocks of one conversation, with random contents."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 1000, count * form.block_tokens).tolist()
    names = block_hashes(tokens, form.block_tokens, hash_seed("model", salt))
    return [(name, rng.bytes(form.block_bytes)) for name in names]


def names_of(blocks: list[tuple[BlockHash, Buffer]]) -> list[BlockHash]:
    return [name for name, _ in blocks]


def payloads_of(blocks: list[tuple[BlockHash, Buffer]]) -> list[Buffer]:
    return [payload for _, payload in blocks]


def a_record(
    *, tenant: str = "tenant", session_id: str = "session", version: int = 1
) -> SessionRecord:
    return SessionRecord(
        tenant=tenant,
        session_id=session_id,
        fingerprint="model",
        tokens=(1, 2, 3, 49151),
        messages=(("user", "Grüße"), ("assistant", "")),
        updated_s=1.5,
        version=version,
    )


async def all_keys(admin: Redis, pattern: str = "*") -> list[bytes]:
    return sorted(key for key in await admin.keys(pattern) if isinstance(key, bytes))


async def block_keys(admin: Redis, name: BlockHash | None = None) -> list[bytes]:
    """Those of a block, its manifest's last; of all blocks where none is named."""
    return await all_keys(admin, f"test:kv*:{block_stem(name)}:*" if name else "test:kv*")


async def turns_of_the_loop(count: int = 5) -> None:
    """Let other tasks run as far as they can without I/O."""
    for _ in range(count):
        await asyncio.sleep(0)


def of_version(manifest: bytes, version: int) -> bytes:
    """The same manifest with another version and a checksum that holds."""
    assert version != FORMAT_VERSION
    body = manifest[:4] + struct.pack("<H", version) + manifest[6:-8]
    return body + struct.pack("<Q", xxh3_64_intdigest(body))
