"""A session that was deleted is gone: from memory, from the store, and from the index."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from eastwest import AsyncClient
from eastwest.blocks import BlockHash, block_hashes, cache_salt, hash_seed
from eastwest.clock import SystemClock
from eastwest.errors import NotFound, Overloaded, StoreUnavailable
from eastwest.sessions_client import SessionsClient
from eastwest.testing.engine import simulated_model
from kv_store.connect import open_session_store
from kv_store.embedded import EmbeddedValkey
from kv_store.memory_store import MemoryBlockStore
from kv_store.sessions import MemorySessionStore
from kv_store.survey import surveying
from router.server import Router
from tests.integration.test_serving import a_prompt
from tests.integration.test_sessions import a_stored_rig, replace_workers, spilled
from tests.rig import Rig, a_config, a_rig

BLOCK = 8


@pytest.fixture
def valkey() -> EmbeddedValkey:
    return EmbeddedValkey(64 << 20)


@asynccontextmanager
async def beside(rig: Rig) -> AsyncIterator[tuple[SessionsClient, AsyncClient]]:
    """Who looks after sessions, and another tenant."""
    async with (
        SessionsClient(rig.address) as client,
        AsyncClient(rig.address, tenant="other") as other,
    ):
        yield client, other


def names(tokens: tuple[int, ...], tenant: str = "") -> list[BlockHash]:
    seed = hash_seed(simulated_model().fingerprint, cache_salt(tenant))
    return block_hashes(tokens, BLOCK, seed)


def in_memory(rig: Rig) -> set[BlockHash]:
    """Blocks that some worker has by name."""
    return {name for r in rig.replicas.values() for name in r._holdings.pool.names()}


async def stored(valkey: EmbeddedValkey) -> int:
    async with Redis.from_url(valkey.url) as admin:
        return len(await admin.keys("eastwest:kv*:m"))


async def a_session(rig: Rig, name: str, prompt: tuple[int, ...], spills: int) -> tuple[int, ...]:
    """Its tokens, once it is in the store."""
    done = await rig.client.generate(prompt, session=name, temperature=0.0, max_tokens=9)
    await rig.until(lambda: spilled(rig) == spills)
    return (*prompt, *done.token_ids)


async def test_a_deleted_session_leaves_nothing(
    tiny_model_dir: Path, valkey: EmbeddedValkey
) -> None:
    async with a_stored_rig(tiny_model_dir, valkey) as rig, beside(rig) as (client, _):
        prompt = tuple(a_prompt(60))
        tokens = await a_session(rig, "s", prompt, 1)
        assert in_memory(rig) >= set(names(prompt))
        assert await stored(valkey) == 8
        assert await client.delete("s")
        await rig.until(lambda: not in_memory(rig))
        # The router expects it nowhere.
        await rig.until(lambda: rig.router._shell.kv_of(tokens, cache_salt("")) == (0, {}))
        async with surveying(valkey.url, "eastwest", 30.0, 0.0) as survey:
            usage = await survey.usage()
        assert (usage.forms, usage.owners, usage.incomplete) == ({}, {}, 0)
        again = await rig.client.generate(prompt, temperature=0.0, max_tokens=9)
        assert (*prompt, *again.token_ids) == tokens
        assert (again.usage.cached_tokens, again.usage.loaded_tokens) == (0, 0)
        with pytest.raises(NotFound):
            await client.get("s")


async def test_what_another_session_begins_with_stays(
    tiny_model_dir: Path, valkey: EmbeddedValkey
) -> None:
    async with a_stored_rig(tiny_model_dir, valkey) as rig, beside(rig) as (client, other):
        shared = tuple(a_prompt(45))
        one = await a_session(rig, "one", (*shared, *a_prompt(20, seed=1)), 1)
        two = await a_session(rig, "two", (*shared, *a_prompt(30, seed=2)), 2)
        # Of another tenant, with the same tokens.
        same = await other.generate(one[:65], session="one", temperature=0.0, max_tokens=9)
        await rig.until(lambda: spilled(rig) == 3)
        assert await client.delete("one")
        gone, kept = set(names(one)) - set(names(two)), set(names(two)[: (len(two) - 1) // BLOCK])
        await rig.until(lambda: not gone & in_memory(rig))
        await rig.until(lambda: rig.router._shell.kv_of(one, cache_salt(""))[0] == 40)
        await replace_workers(rig)
        resumed = await rig.client.generate(
            a_prompt(9, seed=5), session="two", temperature=0.0, max_tokens=4
        )
        assert resumed.usage.loaded_tokens == BLOCK * len(kept)
        others = await other.generate(
            a_prompt(9, seed=5), session="one", temperature=0.0, max_tokens=4
        )
        assert others.usage.loaded_tokens == (65 + len(same.token_ids) - 1) // BLOCK * BLOCK


async def test_a_turn_that_ends_behind_the_deletion_leaves_nothing(
    tiny_model_dir: Path, valkey: EmbeddedValkey
) -> None:
    async with a_stored_rig(tiny_model_dir, valkey) as rig:
        records = open_session_store(rig.config.store, valkey.url, SystemClock())
        other = Router(rig.config, tiny_model_dir, records, SystemClock(), random.Random(8))
        address = await other.start()
        for worker_id, replica in rig.replicas.items():
            other.add_worker(worker_id, replica.info().address)
        await other.wait_ready()
        try:
            await a_session(rig, "s", tuple(a_prompt(60)), 1)
            gate = rig.engine("decode-0").gate
            gate.clear()
            async with rig.client.generate(
                a_prompt(20, seed=1), session="s", temperature=0.0, max_tokens=20
            ) as turn:
                await anext(turn)
                async with SessionsClient(address) as client:
                    assert await client.delete("s")
                gate.set()
                with pytest.raises(Overloaded, match="in use"):
                    await turn
            await rig.until(lambda: not in_memory(rig))
            async with asyncio.timeout(60):
                while await stored(valkey):  # noqa: ASYNC110 - nothing announces it
                    await asyncio.sleep(0.01)
        finally:
            await other.stop()
            await records.close()


class Reluctant(MemoryBlockStore):
    """Erases only when it was asked often enough."""

    refusals = 3

    async def erase(self, hashes: Sequence[BlockHash]) -> None:
        if self.refusals:
            self.refusals -= 1
            raise StoreUnavailable("not now")
        await super().erase(hashes)


async def test_a_store_that_is_away_is_asked_again(tiny_model_dir: Path) -> None:
    store = Reluctant(64 << 20)
    config = a_config(store={"idle_s": 0.05, "retry_after_s": 0.02})
    clock = SystemClock()
    records = MemorySessionStore(10, 1000.0, clock)
    async with (
        a_rig(tiny_model_dir, config=config, store=store, sessions=records) as rig,
        beside(rig) as (client, _),
    ):
        tokens = await a_session(rig, "s", tuple(a_prompt(60)), 1)
        assert await store.match(names(tokens)) == 8
        assert await client.delete("s")
        async with asyncio.timeout(60):
            while await store.match(names(tokens)):  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.01)
        assert store.refusals == 0
        # What rests besides goes to the store as ever.
        await a_session(rig, "t", tuple(a_prompt(30, seed=1)), 2)
