"""Quotas and the budget of the store: what is charged is what is stored, and the rest has left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from random import Random

import pytest
from redis.asyncio import Redis

from eastwest.blocks import BlockHash, cache_salt, owner_of
from eastwest.config import StoreConfig
from eastwest.errors import StoreUnavailable
from kv_store.accounts import Quotas
from kv_store.codec import BlockForm
from kv_store.embedded import EmbeddedValkey
from kv_store.redis_store import RedisBlockStore
from kv_store.survey import Survey, Swept, surveying
from kv_store.sweeper import sweeping
from tests.contract.kv_store.builders import (
    KEYS_PER_BLOCK,
    ONE_PART,
    THREE_PARTS,
    TTL_S,
    a_block_store,
    a_chain,
    all_keys,
    block_keys,
    names_of,
)

OWNER = owner_of("salt")
ACCOUNTS = "test:a1:{accounts}:"


def size_of(form: BlockForm) -> int:
    return form.block_bytes + form.manifest_bytes


SIZE = size_of(THREE_PARTS)


class Opener:
    """Opens stores, which are closed at the end."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._opened: list[RedisBlockStore] = []

    def __call__(
        self, form: BlockForm = THREE_PARTS, *, quotas: Quotas | None = None, ttl_s: float = TTL_S
    ) -> RedisBlockStore:
        store = a_block_store(self._url, form, quotas=quotas, ttl_s=ttl_s)
        self._opened.append(store)
        return store

    async def close(self) -> None:
        for store in self._opened:
            await store.close()


@pytest.fixture
async def a_store(server: EmbeddedValkey, admin: Redis) -> AsyncIterator[Opener]:
    opener = Opener(server.url)
    yield opener
    await opener.close()


@pytest.fixture
async def survey(server: EmbeddedValkey, admin: Redis) -> AsyncIterator[Survey]:
    async with surveying(server.url, "test", 30.0, 0.0) as survey:
        yield survey


async def charged(survey: Survey) -> dict[bytes, int]:
    """Bytes by owner."""
    owners = (await survey.usage()).owners
    return {bytes.fromhex(tag): use.bytes for tag, use in owners.items()}


async def stored(store: RedisBlockStore, names: Sequence[BlockHash]) -> int:
    """How many of them are there, wherever in the chain."""
    return sum([await store.match([name]) for name in names])


async def holds(survey: Survey) -> None:
    """What is charged is what is stored."""
    usage = await survey.usage()
    assert sum(use.bytes for use in usage.owners.values()) == sum(
        form.bytes for form in usage.forms.values()
    )
    assert (usage.doomed, usage.incomplete, usage.other, usage.unending) == (0, 0, 0, 0)


async def until_gone(admin: Redis, pattern: str) -> None:
    async with asyncio.timeout(60):
        while await all_keys(admin, pattern):  # noqa: ASYNC110 - the server's clock
            await asyncio.sleep(0.05)


async def test_what_is_written_is_charged_once(a_store: Opener, survey: Survey) -> None:
    store = a_store()
    chain = a_chain(5)
    await store.write(chain)
    await store.write(chain)
    await store.touch(names_of(chain))
    assert await charged(survey) == {OWNER: 5 * SIZE}
    other, whole = a_store(), a_store(ONE_PART)
    await other.write(a_chain(2, salt="other"))
    await whole.write(a_chain(3, ONE_PART))
    assert await charged(survey) == {
        OWNER: 5 * SIZE + 3 * size_of(ONE_PART),
        owner_of("other"): 2 * SIZE,
    }
    await holds(survey)
    await store.erase(names_of(chain))
    assert await charged(survey) == {
        OWNER: 3 * size_of(ONE_PART), owner_of("other"): 2 * SIZE
    }  # fmt: skip
    await holds(survey)
    await store.erase(names_of(chain))
    await holds(survey)


async def test_beyond_its_quota_an_owner_loses_what_it_used_least_recently(
    a_store: Opener, survey: Survey
) -> None:
    store = a_store(quotas=Quotas(of={OWNER: 6 * SIZE}))
    old, used, fresh = (names_of(a_chain(2, seed=seed)) for seed in range(3))
    for seed in range(3):
        await store.write(a_chain(2, seed=seed))
        await store.write(a_chain(2, seed=seed, salt="other"))
    await store.touch(used)
    await store.touch(old[:1])
    latest = a_chain(3, seed=3)
    await store.write(latest)
    there = [await stored(store, names) for names in (old, used, fresh, names_of(latest))]
    assert there == [1, 2, 0, 3]
    assert await stored(store, old[:1]) == 1
    assert await charged(survey) == {OWNER: 6 * SIZE, owner_of("other"): 6 * SIZE}
    assert store.counters.evicted == 3
    await holds(survey)


async def test_of_a_chain_that_is_too_long_the_beginning_is_stored(
    a_store: Opener, survey: Survey
) -> None:
    store = a_store(quotas=Quotas(owner=4 * SIZE + 1))
    chain = a_chain(9)
    assert await store.write(chain) == 4 * THREE_PARTS.block_bytes
    assert await store.match(names_of(chain)) == 4
    assert await stored(store, names_of(chain)) == 4
    await holds(survey)
    nothing = a_store(quotas=Quotas(owner=SIZE - 1))
    assert await nothing.write(a_chain(3, seed=1)) == 0
    await holds(survey)


async def test_beyond_the_budget_whoever_has_most_gives_way(
    a_store: Opener, survey: Survey
) -> None:
    store = a_store(quotas=Quotas(budget=10 * SIZE))
    await store.write(a_chain(8, salt="much"))
    await store.write(a_chain(2, salt="little"))
    await store.write(a_chain(4, salt="new"))
    tags = {salt: owner_of(salt) for salt in ("much", "little", "new")}
    assert await charged(survey) == {
        tags["much"]: 4 * SIZE, tags["little"]: 2 * SIZE, tags["new"]: 4 * SIZE
    }  # fmt: skip
    # Of the chain, its end has left.
    assert await store.match(names_of(a_chain(8, salt="much"))) == 4
    await holds(survey)


async def test_blocks_of_another_form_give_way_as_well(a_store: Opener, survey: Survey) -> None:
    quotas = Quotas(budget=5 * size_of(ONE_PART))
    parts, whole = a_store(), a_store(ONE_PART, quotas=quotas)
    await parts.write(a_chain(4))
    await whole.write(a_chain(5, ONE_PART, seed=1))
    assert await stored(parts, names_of(a_chain(4))) == 0
    assert await whole.match(names_of(a_chain(5, ONE_PART, seed=1))) == 5
    await holds(survey)


async def test_what_expires_is_off_the_account(
    a_store: Opener, admin: Redis, survey: Survey
) -> None:
    store = a_store(ttl_s=0.2)
    lasting = a_store()
    await store.write(a_chain(3))
    await lasting.write(a_chain(2, salt="other"))
    await until_gone(admin, f"test:kv*:{OWNER.hex()}:*")
    assert await charged(survey) == {owner_of("other"): 2 * SIZE}
    await holds(survey)


async def test_every_key_of_the_accounts_has_a_time_to_live(a_store: Opener, admin: Redis) -> None:
    store = a_store(quotas=Quotas(budget=2 * SIZE))
    await store.write(a_chain(3))
    await store.write(a_chain(1, seed=1))
    keys = await all_keys(admin, ACCOUNTS + "*")
    assert keys
    for key in keys:
        assert TTL_S * 1000 < await admin.pttl(key) <= (TTL_S + 60) * 1000


async def test_a_damaged_block_is_off_the_account(
    a_store: Opener, admin: Redis, survey: Survey
) -> None:
    store = a_store()
    chain = a_chain(3)
    await store.write(chain)
    *_, manifest = await block_keys(admin, chain[1][0])
    await admin.setrange(manifest, 20, b"damaged")
    assert len(await store.read(names_of(chain))) == 1
    assert await charged(survey) == {OWNER: 2 * SIZE}
    await holds(survey)


async def test_a_refused_write_is_off_the_account(own_server: EmbeddedValkey) -> None:
    opener = Opener(own_server.url)
    store = opener()
    async with (
        Redis.from_url(own_server.url) as admin,
        surveying(own_server.url, "test", 30.0, 0.0) as survey,
    ):
        await store.write(a_chain(2))
        await admin.config_set("maxmemory-policy", "noeviction")
        await admin.config_set("maxmemory", "1mb")
        # The charge itself may be refused, or what follows it.
        with pytest.raises(StoreUnavailable, match="OOM"):
            await store.write(a_chain(3, seed=1))
        await admin.config_set("maxmemory", "0")
        assert await charged(survey) == {OWNER: 2 * SIZE}
        await holds(survey)
    await opener.close()


@pytest.mark.parametrize("lost", ["t:", "used", "due", "all"])
async def test_a_sweep_settles_accounts_that_the_server_has_evicted(
    a_store: Opener, admin: Redis, survey: Survey, lost: str
) -> None:
    store = a_store()
    await store.write(a_chain(4))
    await store.write(a_chain(3, salt="other"))
    gone = [
        key
        for key in await all_keys(admin, ACCOUNTS + "*")
        if lost == "all" or key.startswith((ACCOUNTS + lost).encode())
    ]
    await admin.delete(*gone)
    swept = await survey.sweep()
    assert (swept.keys, swept.settled > 0) == (0, lost != "due")
    assert await charged(survey) == {OWNER: 4 * SIZE, owner_of("other"): 3 * SIZE}
    assert (await survey.sweep()).settled == 0
    await holds(survey)


async def test_a_sweep_strikes_off_what_the_server_has_evicted(
    a_store: Opener, admin: Redis, survey: Survey
) -> None:
    store = a_store()
    await store.write(a_chain(600))
    keys = await all_keys(admin, "test:kv*")
    Random(0).shuffle(keys)
    await admin.delete(*keys[:200])
    # An owner that has nothing left, too.
    await store.write(a_chain(2, salt="other"))
    await admin.delete(*await all_keys(admin, f"test:kv*:{owner_of('other').hex()}:*"))
    swept = await survey.sweep()
    assert swept.keys > 0
    assert swept.settled > 0
    assert (await charged(survey)).keys() == {OWNER}
    await holds(survey)
    assert await survey.sweep() == Swept(0, 0, 0)


async def test_a_sweep_finishes_what_a_writer_that_died_has_left(
    a_store: Opener, admin: Redis, survey: Survey
) -> None:
    store = a_store()
    chain = a_chain(3)
    await store.write(chain)
    # It had charged a block that it never wrote, and was told which others have to leave.
    dying = a_store(quotas=Quotas(owner=2 * SIZE))
    async with dying._pipes.borrow() as pipe:
        await dying._accounts.charge(pipe, names_of(a_chain(1, seed=1)))
    usage = await survey.usage()
    assert usage.doomed == 2
    assert await charged(survey) == {OWNER: 2 * SIZE}
    # One of the two is used again before somebody cleans up.
    (leaves_first, leaves_next) = names_of(chain)[2], names_of(chain)[1]
    await store.write([block for block in chain if block[0] == leaves_next])
    await survey.sweep()
    assert await store.match(names_of(chain)) == 2
    assert await store.match([leaves_first]) == 0
    assert await charged(survey) == {OWNER: 2 * SIZE}
    await holds(survey)


async def test_many_writers_stay_within_quota_and_budget(
    a_store: Opener, admin: Redis, survey: Survey
) -> None:
    quotas = Quotas(budget=40 * SIZE, owner=15 * SIZE, of={owner_of("c"): 5 * SIZE})

    async def write(seed: int) -> None:
        rng, store = Random(seed), a_store(quotas=quotas)
        for _ in range(15):
            chain = a_chain(
                rng.randint(1, 12), seed=rng.randint(0, 9), salt=rng.choice(["a", "b", "c", "d"])
            )
            await store.write(chain)
            if rng.random() < 0.3:
                await store.erase(names_of(chain)[rng.randint(0, 3) :])
            if rng.random() < 0.3:
                await store.touch(names_of(chain))

    async with asyncio.TaskGroup() as group:
        for seed in range(6):
            group.create_task(write(seed))
    await survey.sweep()
    await holds(survey)
    use = await charged(survey)
    assert sum(use.values()) <= 40 * SIZE
    assert max(use.values()) <= 15 * SIZE
    assert use.get(owner_of("c"), 0) <= 5 * SIZE
    assert len(await block_keys(admin)) == sum(use.values()) // SIZE * KEYS_PER_BLOCK


async def test_the_server_may_evict_at_random_meanwhile(own_server: EmbeddedValkey) -> None:
    opener = Opener(own_server.url)
    store = opener(quotas=Quotas(budget=900 * SIZE))
    async with (
        Redis.from_url(own_server.url) as admin,
        surveying(own_server.url, "test", 30.0, 0.0) as survey,
    ):
        await admin.config_set("maxmemory-policy", "allkeys-random")
        used = int((await admin.info())["used_memory"])
        await admin.config_set("maxmemory", str(used + (1 << 19)))
        for seed in range(60):
            chain = a_chain(20, seed=seed)
            await store.write(chain)
            read = await store.read(names_of(chain))
            assert read == [payload for _, payload in chain][: len(read)]
        assert int((await admin.info())["evicted_keys"]) > 0
        await admin.config_set("maxmemory", "0")
        await survey.sweep()
        await holds(survey)
        assert (await survey.sweep()).settled == 0
    await opener.close()


async def test_a_deployment_sweeps_now_and_then_and_two_take_turns(
    a_store: Opener, server: EmbeddedValkey, admin: Redis, survey: Survey
) -> None:
    store = a_store()
    await store.write(a_chain(3))
    for part in await all_keys(admin, "test:kv*:0"):
        await admin.delete(part)
    often = StoreConfig(namespace="test", sweep_s=0.05, timeout_s=0.01)
    async with sweeping(often, server.url):
        await until_gone(admin, "test:kv*")
    assert await charged(survey) == {}
    assert await survey.claim(60.0)
    assert not await survey.claim(60.0)


async def test_a_store_that_is_away_is_swept_when_it_is_back(own_server: EmbeddedValkey) -> None:
    opener = Opener(own_server.url)
    often = StoreConfig(namespace="test", sweep_s=0.05, timeout_s=0.01)
    own_server.kill()
    async with sweeping(often, own_server.url), asyncio.timeout(60):
        await asyncio.sleep(0.2)
        own_server.start()
        store = opener()
        await store.write(a_chain(3))
        async with Redis.from_url(own_server.url) as admin:
            for part in await all_keys(admin, "test:kv*:0"):
                await admin.delete(part)
            await until_gone(admin, "test:kv*")
    await opener.close()


def test_quotas_are_as_the_configuration_says() -> None:
    tags = {name: owner_of(cache_salt(name)) for name in ("", "acme")}
    assert Quotas.of_config(StoreConfig()) == Quotas()
    shared = StoreConfig(budget_bytes=1000, tenant_share=0.25)
    assert Quotas.of_config(shared) == Quotas(1000, 250, {})
    both = StoreConfig(budget_bytes=1000, tenant_bytes=100, tenant_quotas={"": 7, "acme": 900})
    assert Quotas.of_config(both) == Quotas(1000, 100, {tags[""]: 7, tags["acme"]: 900})
