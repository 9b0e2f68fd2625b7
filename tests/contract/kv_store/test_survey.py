"""What operators are told of a store, and what they may do to it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from eastwest.blocks import BlockHash
from eastwest.errors import ConfigError, StoreUnavailable
from eastwest.layout import KVSpec
from kv_store.codec import form_of
from kv_store.embedded import EmbeddedValkey
from kv_store.keys import block_stem
from kv_store.redis_store import RedisBlockStore
from kv_store.survey import Survey, Swept, surveying
from tests.contract.kv_store.builders import (
    KEYS_PER_BLOCK,
    ONE_PART,
    THREE_PARTS,
    TTL_S,
    a_block_store,
    a_chain,
    a_record,
    a_session_store,
    all_keys,
    block_keys,
    names_of,
    of_version,
)

FORM = THREE_PARTS.digest.hex()
WHOLE_BYTES = THREE_PARTS.block_bytes + THREE_PARTS.manifest_bytes


@pytest.fixture
async def store(server: EmbeddedValkey, admin: Redis) -> AsyncIterator[RedisBlockStore]:
    store = a_block_store(server.url)
    yield store
    await store.close()


@pytest.fixture
async def survey(server: EmbeddedValkey, admin: Redis) -> AsyncIterator[Survey]:
    async with surveying(server.url, "test", 30.0, 0.1) as survey:
        yield survey


async def test_an_empty_store_has_nothing(survey: Survey) -> None:
    usage = await survey.usage()
    assert (usage.forms, usage.sessions, usage.other, usage.payload) == ({}, 0, 0, 0)
    assert usage.server.startswith("valkey 9")
    assert usage.memory > 0
    assert await survey.sweep() == Swept(0, 0)
    assert (await survey.verify(remove=True)).blocks == 0


async def test_usage_counts_what_is_there(
    server: EmbeddedValkey, admin: Redis, store: RedisBlockStore, survey: Survey
) -> None:
    await store.write(a_chain(300))  # more than are looked at in one round trip
    other = a_block_store(server.url, ONE_PART)
    await other.write(a_chain(2, ONE_PART))
    await other.close()
    foreign = a_block_store(server.url, namespace="test2")
    await foreign.write(a_chain(5))
    await foreign.close()
    sessions = a_session_store(server.url)
    for number in range(3):
        await sessions.put(a_record(session_id=f"s{number}"))
    await sessions.close()
    await admin.set("test:mine", "x")
    usage = await survey.usage()
    assert set(usage.forms) == {FORM, ONE_PART.digest.hex()}
    form = usage.forms[FORM]
    assert (form.blocks, form.bytes) == (300, 300 * WHOLE_BYTES)
    assert form.block_tokens == THREE_PARTS.block_tokens
    assert 0 < form.soonest_s <= form.latest_s <= TTL_S
    assert usage.forms[ONE_PART.digest.hex()].blocks == 2
    assert usage.sessions == 3
    assert usage.session_bytes > 0
    assert (usage.other, usage.unending, usage.incomplete) == (1, 1, 0)
    assert usage.payload < usage.memory


async def test_the_server_needs_little_more_than_the_bytes(
    server: EmbeddedValkey, admin: Redis, survey: Survey
) -> None:
    """Of the default model in bfloat16, whose blocks are the smallest that matter."""
    form = form_of(KVSpec(30, 3, 64, 64, "bfloat16"), 16, "model")
    empty = (await survey.usage()).memory
    store = a_block_store(server.url, form)
    for seed in range(8):
        await store.write(a_chain(10, form, seed=seed))
    await store.close()
    usage = await survey.usage()
    assert usage.forms[form.digest.hex()].blocks == 80
    assert usage.memory - empty < 1.05 * usage.payload


async def damaged_one(admin: Redis, number: int) -> bytes:
    """The key of a part of one block."""
    return (await all_keys(admin, "*:1"))[number]


async def test_a_sweep_removes_what_is_not_whole_and_nothing_else(
    admin: Redis, store: RedisBlockStore, survey: Survey
) -> None:
    chain = a_chain(8)
    await store.write(chain)
    names = names_of(chain)

    async def key(block: int, last: str) -> bytes:
        (found,) = await all_keys(admin, f"*:{block_stem(names[block])}:{last}")
        return found

    await admin.delete(await key(0, "1"))  # a part is gone
    await admin.delete(await key(1, "m"))  # the manifest is gone
    await admin.set(await key(2, "0"), b"short")
    await admin.set(await key(3, "m"), b"no manifest at all")
    manifest = await admin.get(await key(4, "m"))
    assert isinstance(manifest, bytes)
    newer = await key(4, "m")
    await admin.set(newer, of_version(manifest, 9))
    await admin.delete(await key(5, "0"), await key(5, "1"), await key(5, "2"))
    mistyped = await key(6, "m")
    await admin.delete(mistyped)
    await admin.lpush(mistyped, "a list")
    before = await survey.usage()
    assert (before.forms[FORM].blocks, before.incomplete) == (1, 6)
    assert before.other == KEYS_PER_BLOCK  # those of another version are nobody's business
    swept = await survey.sweep()
    lost = 1 + 1 + 0 + 0 + len(THREE_PARTS.part_bytes) + 0
    assert swept.keys == 6 * KEYS_PER_BLOCK - lost
    assert swept.bytes == before.incomplete_bytes
    after = await survey.usage()
    assert (after.forms[FORM].blocks, after.incomplete) == (1, 0)
    assert await store.match(names[7:]) == 1
    assert len(await block_keys(admin)) == 2 * KEYS_PER_BLOCK
    assert await survey.sweep() == Swept(0, 0)


async def test_what_is_written_again_meanwhile_stays(
    admin: Redis, store: RedisBlockStore, survey: Survey, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = a_chain(1)
    await store.write(chain)
    for last in ("1", "m"):
        await admin.delete(*await all_keys(admin, f"*:{last}"))
    ask = survey._ask

    async def slow(commands: list[tuple[object, ...]]) -> list[object]:
        if commands[0][0] == "EVAL":
            await store.write(chain)
        return await ask(commands)

    monkeypatch.setattr(survey, "_ask", slow)
    assert await survey.sweep() == Swept(0, 0)
    assert await store.match(names_of(chain)) == 1
    # The same manifest, and a part that has come back.
    await admin.delete(await damaged_one(admin, 0))
    assert await survey.sweep() == Swept(0, 0)
    assert await store.match(names_of(chain)) == 1


async def test_verify_finds_each_damaged_block(
    admin: Redis, store: RedisBlockStore, survey: Survey
) -> None:
    chain = a_chain(5)
    await store.write(chain)
    key = await damaged_one(admin, 2)
    await admin.setrange(key, 3, b"\xff\xfe\xfd")
    await admin.delete((await all_keys(admin, "*:m"))[0])
    found = await survey.verify(remove=False)
    assert (found.blocks, found.unfinished) == (4, 1)
    assert found.bytes == 4 * WHOLE_BYTES
    _, _, _, owner, chained, _ = key.decode().split(":")
    name = owner + chained.strip("{}")
    assert found.damaged == {f"{FORM}:{name}": "part 1 is not what was written"}
    assert len(await block_keys(admin, BlockHash(bytes.fromhex(name)))) == KEYS_PER_BLOCK
    assert (await survey.verify(remove=True)).damaged == found.damaged
    assert await block_keys(admin, BlockHash(bytes.fromhex(name))) == []
    assert (await survey.verify(remove=False)).damaged == {}


async def test_a_form_that_nobody_serves_any_more_can_be_dropped(
    server: EmbeddedValkey, admin: Redis, store: RedisBlockStore, survey: Survey
) -> None:
    await store.write(a_chain(3))
    other = a_block_store(server.url, ONE_PART)
    await other.write(a_chain(2, ONE_PART))
    await other.close()
    assert await survey.drop(FORM) == Swept(3 * KEYS_PER_BLOCK, 3 * WHOLE_BYTES)
    assert set((await survey.usage()).forms) == {ONE_PART.digest.hex()}
    for form in (FORM, "*", ""):
        with pytest.raises(ConfigError, match="eastwest store status"):
            await survey.drop(form)
    assert len((await survey.usage()).forms) == 1


async def test_a_server_that_is_not_there_is_said_so() -> None:
    async with surveying("unix:///nowhere/socket", "test", 1.0, 1.0) as survey:
        for question in (survey.usage, survey.sweep):
            with pytest.raises(StoreUnavailable, match="does not answer"):
                await question()
    with pytest.raises(ConfigError, match=r"store\.url"):
        async with surveying("http://x", "test", 1.0, 1.0):
            pass
