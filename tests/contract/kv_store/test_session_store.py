"""What every store of sessions promises (`kv_store.sessions.SessionStore`), for each of them."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from eastwest.errors import Overloaded
from kv_store.embedded import EmbeddedValkey
from kv_store.redis_sessions import RedisSessionStore
from kv_store.sessions import MemorySessionStore, SessionStore, encode_session
from tests.contract.kv_store.builders import (
    TTL_S,
    ManualClock,
    a_record,
    a_session_store,
    all_keys,
)


class SessionStoreContract(ABC):
    @pytest.fixture
    @abstractmethod
    def store(self) -> SessionStore:
        """An empty store."""

    async def test_an_unknown_session_is_none(self, store: SessionStore) -> None:
        assert await store.get("tenant", "unknown") is None

    async def test_what_was_put_is_got(self, store: SessionStore) -> None:
        await store.put(a_record())
        assert await store.get("tenant", "session") == a_record()

    async def test_a_later_version_takes_the_place(self, store: SessionStore) -> None:
        later = replace(a_record(version=2), tokens=(9,))
        await store.put(a_record())
        await store.put(later)
        assert await store.get("tenant", "session") == later

    @pytest.mark.parametrize("late", [1, 2])
    async def test_of_two_requests_on_one_session_the_second_to_end_loses(
        self, store: SessionStore, late: int
    ) -> None:
        await store.put(a_record(version=1))
        await store.put(a_record(version=2))
        with pytest.raises(Overloaded, match="in use by another request"):
            await store.put(replace(a_record(version=late), tokens=(9,)))
        assert await store.get("tenant", "session") == a_record(version=2)

    async def test_exactly_one_of_many_wins(self, store: SessionStore) -> None:
        puts = (store.put(replace(a_record(), tokens=(i,))) for i in range(8))
        ends = await asyncio.gather(*puts, return_exceptions=True)
        assert sorted(map(type, ends), key=str) == [type(None)] + [Overloaded] * 7

    async def test_versions_compare_as_numbers(self, store: SessionStore) -> None:
        for version in (255, 256, 65536, 2**40):
            await store.put(a_record(version=version))
        with pytest.raises(Overloaded):
            await store.put(a_record(version=257))

    async def test_a_session_that_was_evicted_meanwhile_is_stored_again(
        self, store: SessionStore
    ) -> None:
        await store.put(a_record(version=7))
        assert await store.get("tenant", "session") == a_record(version=7)

    async def test_deleting_forgets_and_may_be_repeated(self, store: SessionStore) -> None:
        await store.put(a_record())
        await store.delete("tenant", "session")
        await store.delete("tenant", "session")
        assert await store.get("tenant", "session") is None
        await store.put(a_record())

    async def test_sessions_are_listed_in_order_page_by_page(self, store: SessionStore) -> None:
        names = [f"s{number:02}" for number in (3, 0, 11, 7, 5)]
        for name in names:
            await store.put(a_record(session_id=name))
        await store.put(a_record(session_id="s05", version=2))
        await store.put(a_record(tenant="other", session_id="s01"))
        first = await store.page("tenant", "", 2)
        rest = await store.page("tenant", first[-1].session_id, 10)
        assert [s.session_id for s in (*first, *rest)] == sorted(names)
        assert [s.version for s in (*first, *rest)] == [1, 1, 2, 1, 1]
        assert first[0] == a_record(session_id="s00").summary()
        assert await store.page("tenant", "s11", 10) == []
        assert await store.page("nobody", "", 10) == []

    async def test_what_was_deleted_is_not_listed(self, store: SessionStore) -> None:
        for name in "abc":
            await store.put(a_record(session_id=name))
        await store.delete("tenant", "a")
        gone = replace(a_record(session_id="b", version=2), tokens=(), messages=())
        await store.put(gone)
        assert [s.session_id for s in await store.page("tenant", "", 10)] == ["c"]
        assert await store.get("tenant", "b") == gone
        await store.put(a_record(session_id="b", version=3))
        assert [s.session_id for s in await store.page("tenant", "", 10)] == ["b", "c"]

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (("a", "s"), ("b", "s")),
            (("a:b", "c"), ("a", "b:c")),
            (("ab", "c"), ("a", "bc")),
            (("", "ab"), ("ab", "")),
            (("a\0", "b"), ("a", "\0b")),
            (("a", "*"), ("a", "s")),
            (("ä", "ß"), ("ä", "ss")),
        ],
    )
    async def test_no_names_reach_the_session_of_others(
        self, store: SessionStore, one: tuple[str, str], other: tuple[str, str]
    ) -> None:
        await store.put(a_record(tenant=one[0], session_id=one[1]))
        assert await store.get(*other) is None
        await store.delete(*other)
        assert await store.get(*one) is not None

    async def test_it_tells_with_how_many_tokens_another_session_begins_as_well(
        self, store: SessionStore
    ) -> None:
        first = replace(a_record(session_id="first"), tokens=tuple(range(300)))
        assert await store.common_tokens(first) == 0
        await store.put(first)
        assert await store.common_tokens(first) == 0
        others = {
            "none": (7, *range(1, 300)),
            "some": (*range(40), *range(1000, 1100)),
            "most": (*range(133), *range(2000, 2300)),
            "less": tuple(range(70)),
        }
        for name, tokens in others.items():
            await store.put(replace(first, session_id=name, tokens=tokens))
        await store.put(replace(first, tenant="other"))
        await store.put(replace(first, session_id="model", fingerprint="another"))
        assert await store.common_tokens(first) == 133
        fork = replace(first, session_id="fork", tokens=(*first.tokens, 1))
        await store.put(fork)
        assert await store.common_tokens(first) == 300
        assert await store.common_tokens(fork) == 300
        assert await store.common_tokens(replace(first, tenant="nobody")) == 0

    async def test_closing_twice_is_allowed(self, store: SessionStore) -> None:
        await store.close()
        await store.close()


class TestMemorySessionStore(SessionStoreContract):
    @pytest.fixture
    def store(self) -> MemorySessionStore:
        return MemorySessionStore(100, TTL_S, ManualClock())

    async def test_sessions_expire(self) -> None:
        clock = ManualClock()
        store = MemorySessionStore(100, TTL_S, clock)
        await store.put(a_record())
        clock.advance(TTL_S)
        assert await store.get("tenant", "session") is None
        await store.put(a_record())

    async def test_at_most_so_many_are_kept(self) -> None:
        store = MemorySessionStore(2, TTL_S, ManualClock())
        for session_id in "abc":
            await store.put(a_record(session_id=session_id))
        found = [await store.get("tenant", session_id) for session_id in "abc"]
        assert [record is not None for record in found] == [False, True, True]


class TestRedisSessionStore(SessionStoreContract):
    @pytest.fixture
    async def store(self, server: EmbeddedValkey, admin: Redis) -> AsyncIterator[RedisSessionStore]:
        store = a_session_store(server.url)
        yield store
        await store.close()

    async def test_every_key_has_a_time_to_live_and_shows_no_name(
        self, store: RedisSessionStore, admin: Redis
    ) -> None:
        await store.put(a_record(tenant="acme", session_id="s*:[x]"))
        keys = sorted(await all_keys(admin))
        assert [key[:8] for key in keys] == [b"test:l3:", b"test:s3:"]
        for key in keys:
            assert not any(text in key for text in (b"acme", b"*", b"["))
            assert 0 < await admin.pttl(key) <= TTL_S * 1000

    async def test_a_listing_forgets_what_the_server_has_evicted(
        self, store: RedisSessionStore, admin: Redis
    ) -> None:
        for name in "abc":
            await store.put(a_record(session_id=name))
        await admin.delete(*[key for key in await all_keys(admin) if key.startswith(b"test:s3:")])
        await store.put(a_record(session_id="c"))
        assert [s.session_id for s in await store.page("tenant", "", 2)] == ["c"]
        (listing,) = [key for key in await all_keys(admin) if key.startswith(b"test:l3:")]
        assert await admin.hkeys(listing) == [b"c"]

    async def test_more_are_listed_than_the_server_tells_at_once(
        self, store: RedisSessionStore
    ) -> None:
        names = [f"{number:04}" for number in range(2500)]
        await asyncio.gather(*(store.put(a_record(session_id=name)) for name in names))
        assert [s.session_id for s in await store.page("tenant", "", 3000)] == names

    @pytest.mark.parametrize("position", [0, 4, 6, 20, -1])
    async def test_a_flipped_byte_makes_the_session_absent(
        self, store: RedisSessionStore, admin: Redis, position: int
    ) -> None:
        await store.put(a_record())
        key = await _session_key(admin)
        stored = await admin.get(key)
        assert isinstance(stored, bytes)
        data = bytearray(stored)
        data[position] ^= 1
        await admin.set(key, bytes(data))
        assert await store.get("tenant", "session") is None
        assert store.counters.corrupt == 1
        assert not await admin.exists(key)
        await store.put(a_record())

    async def test_the_record_of_another_session_is_not_taken(
        self, store: RedisSessionStore, admin: Redis
    ) -> None:
        await store.put(a_record())
        key = await _session_key(admin)
        await admin.set(key, encode_session(a_record(tenant="mallory")))
        assert await store.get("tenant", "session") is None
        assert store.counters.corrupt == 1


async def _session_key(admin: Redis) -> bytes:
    """Of the one session that is stored."""
    (key,) = [key for key in await all_keys(admin) if key.startswith(b"test:s3:")]
    return key
