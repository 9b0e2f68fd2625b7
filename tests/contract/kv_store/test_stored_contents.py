"""The store when the server's contents are not what was written."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from eastwest.blocks import BlockHash
from kv_store.embedded import EmbeddedValkey
from kv_store.redis_store import RedisBlockStore
from tests.contract.kv_store.builders import (
    KEYS_PER_BLOCK,
    ONE_PART,
    THREE_PARTS,
    TTL_S,
    a_block_store,
    a_chain,
    block_keys,
    names_of,
    of_version,
    payloads_of,
)


@pytest.fixture
async def store(server: EmbeddedValkey, admin: Redis) -> AsyncIterator[RedisBlockStore]:
    store = a_block_store(server.url)
    yield store
    await store.close()


async def value_of(admin: Redis, key: bytes) -> bytes:
    data = await admin.get(key)
    assert isinstance(data, bytes)
    return data


async def keys_of(admin: Redis, name: BlockHash) -> tuple[bytes, list[bytes]]:
    """The manifest's key and the parts' keys."""
    *parts, manifest = await block_keys(admin, name)
    assert manifest.endswith(b":m")
    return manifest, parts


async def test_every_key_has_a_time_to_live(store: RedisBlockStore, admin: Redis) -> None:
    chain = a_chain(3)
    await store.write(chain)
    keys = await block_keys(admin)
    assert len(keys) == 3 * KEYS_PER_BLOCK
    for key in keys:
        assert 0 < await admin.pttl(key) <= TTL_S * 1000


@pytest.mark.parametrize("renew", ["touch", "write"])
async def test_use_gives_the_full_time_to_live_again(
    store: RedisBlockStore, admin: Redis, renew: str
) -> None:
    chain = a_chain(2)
    await store.write(chain)
    for key in await block_keys(admin):
        await admin.pexpire(key, 10_000)
    await (store.touch(names_of(chain)) if renew == "touch" else store.write(chain))
    for key in await block_keys(admin):
        assert await admin.pttl(key) > 10_000


@pytest.mark.parametrize("victim", range(KEYS_PER_BLOCK))
async def test_a_block_that_lost_a_key_is_absent_until_it_is_written_again(
    store: RedisBlockStore, admin: Redis, victim: int
) -> None:
    chain = a_chain(3)
    await store.write(chain)
    manifest, parts = await keys_of(admin, chain[1][0])
    await admin.delete([manifest, *parts][victim])
    assert await store.match(names_of(chain)) == 1
    assert await store.read(names_of(chain)) == payloads_of(chain[:1])
    assert store.counters.corrupt == 0
    assert await store.write(chain) == THREE_PARTS.block_bytes
    assert await store.read(names_of(chain)) == payloads_of(chain)


@pytest.mark.parametrize("victim", range(KEYS_PER_BLOCK))
async def test_a_block_with_a_flipped_byte_is_absent_and_removed(
    store: RedisBlockStore, admin: Redis, victim: int
) -> None:
    chain = a_chain(3)
    await store.write(chain)
    manifest, parts = await keys_of(admin, chain[1][0])
    key = [manifest, *parts][victim]
    data = bytearray(await value_of(admin, key))
    data[len(data) // 2] ^= 0x10
    await admin.set(key, bytes(data), keepttl=True)
    assert await store.read(names_of(chain)) == payloads_of(chain[:1])
    assert store.counters.corrupt == 1
    assert await admin.exists(manifest, *parts) == 0
    assert await store.match(names_of(chain)) == 1
    await store.write(chain)
    assert await store.read(names_of(chain)) == payloads_of(chain)


@pytest.mark.parametrize("victim", range(KEYS_PER_BLOCK))
@pytest.mark.parametrize("how", ["shorter", "longer", "list"])
async def test_a_value_of_another_length_or_type_is_absent_and_removed(
    store: RedisBlockStore, admin: Redis, victim: int, how: str
) -> None:
    chain = a_chain(2)
    await store.write(chain)
    manifest, parts = await keys_of(admin, chain[1][0])
    key = [manifest, *parts][victim]
    if how == "list":
        await admin.delete(key)
        await admin.rpush(key, b"x")
    else:
        data = await value_of(admin, key)
        await admin.set(key, data[:-1] if how == "shorter" else data + b"x")
    assert await store.match(names_of(chain)) == 1
    assert await store.read(names_of(chain)) == payloads_of(chain[:1])
    assert store.counters.corrupt == 1
    assert await admin.exists(manifest, *parts) == 0
    assert await store.write(chain) == THREE_PARTS.block_bytes
    assert await store.read(names_of(chain)) == payloads_of(chain)


async def test_a_huge_foreign_value_never_reaches_memory(
    store: RedisBlockStore, admin: Redis
) -> None:
    chain = a_chain(2)
    await store.write(chain)
    manifest, parts = await keys_of(admin, chain[0][0])
    for key in (manifest, parts[1]):
        await admin.setrange(key, 32 << 20, b"x")
    tracemalloc.start()
    try:
        assert await store.match(names_of(chain)) == 0
        assert await store.read(names_of(chain)) == []
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 << 20
    assert store.available
    await store.write(chain)
    assert await store.read(names_of(chain)) == payloads_of(chain)


async def test_a_manifest_of_another_version_is_left_alone_and_counts_as_absent(
    store: RedisBlockStore, admin: Redis
) -> None:
    chain = a_chain(2)
    await store.write(chain)
    manifest, parts = await keys_of(admin, chain[0][0])
    await admin.set(manifest, of_version(await value_of(admin, manifest), 9))
    assert await store.match(names_of(chain)) == 0
    assert await store.read(names_of(chain)) == []
    assert await admin.exists(manifest, *parts) == KEYS_PER_BLOCK
    assert store.counters.corrupt == 0
    assert await store.write(chain) == THREE_PARTS.block_bytes
    assert await store.read(names_of(chain)) == payloads_of(chain)


async def test_the_manifest_of_another_block_is_corrupt(
    store: RedisBlockStore, admin: Redis
) -> None:
    chain = a_chain(2)
    await store.write(chain)
    first, _ = await keys_of(admin, chain[0][0])
    second, _ = await keys_of(admin, chain[1][0])
    await admin.set(first, await value_of(admin, second))
    assert await store.read(names_of(chain)) == []
    assert store.counters.corrupt == 1


async def test_forms_and_namespaces_never_meet(server: EmbeddedValkey, admin: Redis) -> None:
    chain = a_chain(2)
    stores = [
        a_block_store(server.url, ONE_PART),
        a_block_store(server.url, THREE_PARTS),
        a_block_store(server.url, THREE_PARTS, namespace="other"),
    ]
    for store in stores:
        assert await store.match(names_of(chain)) == 0
        assert await store.write(chain) == 2 * THREE_PARTS.block_bytes
    for store in stores:
        assert await store.read(names_of(chain)) == payloads_of(chain)
        await store.close()


async def test_concurrent_writers_of_the_same_blocks_are_harmless(
    server: EmbeddedValkey, admin: Redis
) -> None:
    chain = a_chain(30)
    stores = [a_block_store(server.url) for _ in range(4)]
    await asyncio.gather(*(store.write(chain) for store in stores for _ in range(3)))
    assert len(await block_keys(admin)) == 30 * KEYS_PER_BLOCK
    for store in stores:
        assert await store.read(names_of(chain)) == payloads_of(chain)
        await store.close()


async def test_readers_beside_a_writer_see_whole_blocks(
    server: EmbeddedValkey, admin: Redis
) -> None:
    chain = a_chain(60)
    writer, reader = a_block_store(server.url), a_block_store(server.url)
    writing = asyncio.create_task(writer.write(chain))
    sizes = []
    while not writing.done():
        found = await reader.read(names_of(chain))
        assert found == payloads_of(chain[: len(found)])
        sizes.append(len(found))
    assert sizes == sorted(sizes)
    assert reader.counters.corrupt == 0
    await writer.close()
    await reader.close()
