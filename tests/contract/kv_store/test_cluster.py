"""The stores on a real Cluster, and behind real Sentinels."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import Redis

from eastwest.errors import StoreUnavailable
from kv_store.accounts import Quotas
from kv_store.address import StoreAddress
from kv_store.survey import surveying
from tests.contract.kv_store.builders import (
    THREE_PARTS,
    a_block_store,
    a_chain,
    a_record,
    a_session_store,
    names_of,
    payloads_of,
)
from tests.contract.kv_store.servers import Server, a_cluster, a_watched_master, say, until

SIZE = THREE_PARTS.block_bytes + THREE_PARTS.manifest_bytes


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[list[Server]]:
    async with a_cluster(tmp_path) as servers:
        yield servers


def url_of(cluster: list[Server]) -> str:
    """One node is enough; the first of these is not there."""
    return f"redis+cluster://127.0.0.1:1,127.0.0.1:{cluster[1].port}"


async def test_blocks_spread_over_the_nodes_and_are_found(cluster: list[Server]) -> None:
    url = url_of(cluster)
    store, chain = a_block_store(url), a_chain(600)
    assert await store.write(chain) == 600 * THREE_PARTS.block_bytes
    assert await store.match(names_of(chain)) == 600
    assert await store.read(names_of(chain)) == payloads_of(chain)
    await store.touch(names_of(chain))
    assert await store.write(chain) == 0
    for server in cluster:
        async with server.client() as admin:
            assert len(await admin.keys("test:kv*:m")) > 100
    async with surveying(url, "test", 30.0, 0.0) as survey:
        usage = await survey.usage()
        assert [form.blocks for form in usage.forms.values()] == [600]
        assert [use.bytes for use in usage.owners.values()] == [600 * SIZE]
        assert usage.memory > 0
        assert (await survey.verify(remove=False)).blocks == 600
        async with cluster[0].client() as admin:
            lost = await admin.keys("test:kv*:1")
            for key in lost[:50]:
                await admin.delete(key)
        swept = await survey.sweep()
        assert (swept.keys, swept.settled > 0) == (50 * 3, True)
        await store.erase(names_of(chain))
        assert (await survey.usage()).owners == {}
    assert await store.match(names_of(chain)) == 0
    await store.close()


async def test_quotas_hold_over_all_nodes(cluster: list[Server]) -> None:
    url = url_of(cluster)
    store = a_block_store(url, quotas=Quotas(budget=50 * SIZE))
    for seed in range(5):
        await store.write(a_chain(20, seed=seed))
    assert await store.match(names_of(a_chain(20, seed=4))) == 20
    assert await store.match(names_of(a_chain(20, seed=0))) == 0
    async with surveying(url, "test", 30.0, 0.0) as survey:
        usage = await survey.usage()
    assert [form.bytes for form in usage.forms.values()] == [50 * SIZE]
    await store.close()


async def test_sessions_are_listed(cluster: list[Server]) -> None:
    store = a_session_store(url_of(cluster))
    for name in "cab":
        await store.put(a_record(session_id=name))
    assert [s.session_id for s in await store.page("tenant", "", 10)] == ["a", "b", "c"]
    assert await store.get("tenant", "b") == a_record(session_id="b")
    await store.close()


async def test_slots_that_move_are_followed(cluster: list[Server]) -> None:
    store, chain = a_block_store(url_of(cluster)), a_chain(200)
    await store.write(chain)
    donor, heir = cluster[0], cluster[2]
    async with donor.client() as one, heir.client() as two:
        await one.flushall()
        name = (await say(two, "CLUSTER", "MYID")).decode()
        slots = (await say(two, "CLUSTER", "SLOTS"))[0]
        moving = range(slots[0], slots[0] + 2000)
        for slot in moving:
            await say(two, "CLUSTER", "SETSLOT", slot, "NODE", name)
            await say(one, "CLUSTER", "SETSLOT", slot, "NODE", name)
    # What was there is gone with the old node, and nothing that is read is wrong.
    read = [await store.read([block]) for block in names_of(chain)]
    assert 0 < sum(map(len, read)) < 200
    for (block,), (_, payload) in ((r, c) for r, c in zip(read, chain, strict=True) if r):
        assert block == payload
    await store.write(chain)
    assert await store.read(names_of(chain)) == payloads_of(chain)
    await store.close()


async def test_a_node_that_dies_is_unavailable_and_hangs_nobody(cluster: list[Server]) -> None:
    store, chain = a_block_store(url_of(cluster)), a_chain(50)
    await store.write(chain)
    cluster[2].kill()
    with pytest.raises(StoreUnavailable):
        await store.read(names_of(chain))
    assert not store.available
    await store.close()


async def test_a_server_that_is_of_no_cluster_is_said_so(tmp_path: Path) -> None:
    async with a_watched_master(tmp_path) as (master, _, _):
        store = a_block_store(f"redis+cluster://127.0.0.1:{master.port}")
        with pytest.raises(StoreUnavailable, match="cluster"):
            await store.match(names_of(a_chain(1)))
        await store.close()


async def test_a_failover_is_followed(tmp_path: Path) -> None:
    async with a_watched_master(tmp_path) as (master, replica, sentinel):
        url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/kv/0"
        store, chain = a_block_store(url, timeout_s=5.0), a_chain(20)
        assert await store.write(chain) == 20 * THREE_PARTS.block_bytes
        async with surveying(url, "test", 30.0, 0.0) as survey:
            assert [form.blocks for form in (await survey.usage()).forms.values()] == [20]
        async with replica.client() as admin:

            async def copied() -> bool:
                return len(await admin.keys("test:kv*:m")) == 20

            await until(copied)
        master.kill()
        with pytest.raises(StoreUnavailable):
            await store.read(names_of(chain))
        async with sentinel.client() as admin:
            await until(partial(_is_master, admin, replica))
        await until(lambda: store.match(names_of(chain)))
        assert await store.read(names_of(chain)) == payloads_of(chain)
        assert await store.write(a_chain(3, seed=1)) == 3 * THREE_PARTS.block_bytes
        await store.close()


async def test_a_master_that_is_one_no_more_is_left(tmp_path: Path) -> None:
    async with a_watched_master(tmp_path) as (master, replica, sentinel):
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/kv"
        store, chain = a_block_store(url, timeout_s=5.0), a_chain(20)
        await store.write(chain)
        async with sentinel.client() as admin:
            await until(lambda: say(admin, "SENTINEL", "FAILOVER", "kv"))
            await until(partial(_is_master, admin, replica))
        # The former master only reads from some time on.
        async with master.client() as admin:

            async def demoted() -> bool:
                return bool((await admin.info("replication"))["role"] == "slave")

            await until(demoted)
        await until(lambda: store.write(a_chain(3, seed=1)))
        async with replica.client() as admin:
            assert (await admin.info("replication"))["role"] == "master"
            assert len(await admin.keys("test:kv*:m")) == 23
        await store.close()


async def _is_master(sentinel: Redis, server: Server) -> bool:
    _, port = await say(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "kv")
    return int(port) == server.port


def test_an_address_shows_no_password() -> None:
    assert "secret" not in repr(StoreAddress.parse("redis+cluster://u:secret@a:1,b:2"))
