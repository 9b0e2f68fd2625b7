"""The store when its server is gone, hangs, comes back, refuses, is full or evicts."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from redis.asyncio import Redis

from eastwest.errors import StoreUnavailable
from kv_store.codec import BlockForm
from kv_store.embedded import EmbeddedValkey
from tests.contract.kv_store.builders import (
    BLOCK_TOKENS,
    KEYS_PER_BLOCK,
    THREE_PARTS,
    ManualClock,
    a_block_store,
    a_chain,
    a_record,
    a_session_store,
    block_keys,
    names_of,
    payloads_of,
    turns_of_the_loop,
)

SOON_S = 0.2  # a deadline for servers that will not answer
LATER_S = 100.0  # after any retry time
LARGE = BlockForm(
    digest=bytes(16),
    block_tokens=BLOCK_TOKENS,
    block_bytes=12 << 20,
    part_bytes=(4 << 20,) * 3,
    manifest_bytes=THREE_PARTS.manifest_bytes,
)


async def test_a_server_that_is_gone_costs_one_attempt_until_the_retry_time(
    own_server: EmbeddedValkey,
) -> None:
    clock = ManualClock()
    store = a_block_store(own_server.url, clock=clock)
    chain = a_chain(3)
    await store.write(chain)
    own_server.kill()
    with pytest.raises(StoreUnavailable, match="the store: "):
        await store.match(names_of(chain))
    assert not store.available
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="not asked again yet") as caught:
            await store.write(chain)
        assert caught.value.retry_after_s is not None
        assert caught.value.retry_after_s > 0
    assert store.counters.errors == 1

    own_server.start()
    with pytest.raises(StoreUnavailable):
        await store.match(names_of(chain))
    clock.advance(LATER_S)
    assert await store.match(names_of(chain)) == 0
    assert store.available
    await store.write(chain)
    assert await store.read(names_of(chain)) == payloads_of(chain)
    await store.close()


async def test_a_server_that_is_down_at_start_is_found_once_it_is_up(
    own_server: EmbeddedValkey,
) -> None:
    own_server.kill()
    clock = ManualClock()
    store = a_block_store(own_server.url, clock=clock)
    assert store.available
    with pytest.raises(StoreUnavailable):
        await store.match(names_of(a_chain(1)))
    own_server.start()
    clock.advance(LATER_S)
    assert await store.match(names_of(a_chain(1))) == 0
    await store.close()


async def test_a_restart_between_two_calls_is_not_noticed(own_server: EmbeddedValkey) -> None:
    store = a_block_store(own_server.url)
    chain = a_chain(2)
    await store.write(chain)
    own_server.kill()
    own_server.start()
    await turns_of_the_loop()
    assert await store.match(names_of(chain)) == 0
    await store.close()


async def test_a_server_that_hangs_costs_one_deadline(own_server: EmbeddedValkey) -> None:
    clock = ManualClock()
    store = a_block_store(own_server.url, clock=clock, timeout_s=SOON_S)
    chain = a_chain(2)
    await store.write(chain)
    assert own_server.pid is not None
    os.kill(own_server.pid, signal.SIGSTOP)
    with pytest.raises(StoreUnavailable, match=f"no answer within {SOON_S} s"):
        await store.read(names_of(chain))
    with pytest.raises(StoreUnavailable, match="not asked again yet"):
        await store.read(names_of(chain))
    os.kill(own_server.pid, signal.SIGCONT)
    clock.advance(LATER_S)
    assert await store.read(names_of(chain)) == payloads_of(chain)
    await store.close()


async def test_a_server_that_hangs_from_the_start_costs_one_deadline(
    own_server: EmbeddedValkey,
) -> None:
    store = a_block_store(own_server.url, timeout_s=SOON_S)
    assert own_server.pid is not None
    os.kill(own_server.pid, signal.SIGSTOP)
    with pytest.raises(StoreUnavailable):
        await store.match(names_of(a_chain(1)))
    assert not store.available
    await store.close()


async def test_a_cancelled_call_leaves_nothing_behind(own_server: EmbeddedValkey) -> None:
    """A write that is cut off in the middle of a block: no key of it appears, ever."""
    store = a_block_store(own_server.url, LARGE)
    chain = a_chain(1, LARGE)
    assert own_server.pid is not None
    await store.match(names_of(chain))
    os.kill(own_server.pid, signal.SIGSTOP)
    writing = asyncio.create_task(store.write(chain))
    reading = asyncio.create_task(store.read(names_of(chain)))
    await turns_of_the_loop()
    assert not writing.done()
    writing.cancel()
    reading.cancel()
    await asyncio.wait([writing, reading])
    assert writing.cancelled()
    assert reading.cancelled()
    os.kill(own_server.pid, signal.SIGCONT)
    assert store.available
    async with Redis.from_url(own_server.url) as admin:
        assert await block_keys(admin) == []
    await store.write(chain)
    assert await store.read(names_of(chain)) == payloads_of(chain)
    await store.close()


async def test_a_server_killed_in_mid_write_is_unavailable(own_server: EmbeddedValkey) -> None:
    store = a_block_store(own_server.url, LARGE)
    chain = a_chain(4, LARGE)
    await store.match(names_of(chain))
    assert own_server.pid is not None
    os.kill(own_server.pid, signal.SIGSTOP)
    writing = asyncio.create_task(store.write(chain))
    await turns_of_the_loop()
    own_server.kill()
    with pytest.raises(StoreUnavailable):
        await writing
    await store.close()


async def test_sessions_share_the_rule(own_server: EmbeddedValkey) -> None:
    clock = ManualClock()
    store = a_session_store(own_server.url, clock=clock)
    await store.put(a_record())
    own_server.kill()
    with pytest.raises(StoreUnavailable, match="the store: "):
        await store.get("tenant", "session")
    with pytest.raises(StoreUnavailable, match="not asked again yet"):
        await store.put(a_record(version=2))
    own_server.start()
    clock.advance(LATER_S)
    await store.put(a_record(version=2))
    assert await store.get("tenant", "session") == a_record(version=2)
    await store.close()


async def test_a_wrong_password_is_unavailable_and_never_shown(
    own_server: EmbeddedValkey,
) -> None:
    async with Redis.from_url(own_server.url) as admin:
        await admin.config_set("requirepass", "hunter2")
    path = own_server.url.removeprefix("unix://")
    right = a_block_store(f"unix://:hunter2@{path}")
    wrong = a_block_store(f"unix://:hunter3@{path}")
    chain = a_chain(1)
    await right.write(chain)
    assert await right.match(names_of(chain)) == 1
    with pytest.raises(StoreUnavailable) as caught:
        await wrong.match(names_of(chain))
    assert "hunter" not in str(caught.value)
    await right.close()
    await wrong.close()


async def test_a_full_server_refuses_and_keeps_blocks_whole(own_server: EmbeddedValkey) -> None:
    store = a_block_store(own_server.url, LARGE)
    chain = a_chain(6, LARGE)
    async with Redis.from_url(own_server.url) as admin:
        await admin.config_set("maxmemory-policy", "noeviction")
        await admin.config_set("maxmemory", 3 * LARGE.block_bytes)
        with pytest.raises(StoreUnavailable, match="OOM"):
            await store.write(chain)
        stored = await store.match(names_of(chain))
        assert 0 < stored < 4
        assert len(await block_keys(admin)) == stored * KEYS_PER_BLOCK
        assert await store.read(names_of(chain)) == payloads_of(chain[:stored])
        assert store.available
        await admin.config_set("maxmemory", 256 << 20)
        assert await store.write(chain) == (6 - stored) * LARGE.block_bytes
        assert await store.match(names_of(chain)) == 6
    await store.close()


async def test_an_evicting_server_never_gives_half_a_block(own_server: EmbeddedValkey) -> None:
    store = a_block_store(own_server.url, LARGE)
    chain = a_chain(6, LARGE)
    async with Redis.from_url(own_server.url) as admin:
        await admin.config_set("maxmemory-policy", "allkeys-random")
        await admin.config_set("maxmemory", 4 * LARGE.block_bytes)
        await store.write(chain)
        for name, payload in chain:
            assert await store.read([name]) in ([], [payload])
    await store.close()


async def test_a_full_server_refuses_sessions(own_server: EmbeddedValkey) -> None:
    store = a_session_store(own_server.url)
    async with Redis.from_url(own_server.url) as admin:
        await admin.config_set("maxmemory-policy", "noeviction")
        await admin.config_set("maxmemory", 1)
        with pytest.raises(StoreUnavailable, match="OOM"):
            await store.put(a_record())
        assert await store.get("tenant", "session") is None
    await store.close()
